"""groundup: a language model from random weights to a reasoning assistant, on the Hugging Face stack."""

__version__ = "0.1.0"
