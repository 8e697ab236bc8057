"""How a Dragoman model computes: the parts of the Transformer, one idea a file."""
