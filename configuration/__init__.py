"""What a Dragoman model is: configurations and presets. No torch here."""
