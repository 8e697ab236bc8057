"""Dragoman: an encoder-decoder Transformer, a first-class citizen of Hugging Face."""

__version__ = "0.1.0"
