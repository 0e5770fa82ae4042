"""groundup: a language model from random weights to a reasoning assistant, on the Hugging Face stack."""

import logging
import os

__version__ = "0.1.0"

# Must stand before transformers is imported. TRL tells its makers of each trainer that is built; a recipe that says nothing
# of the network should not touch it. bitsandbytes warns on each import that an optional kernel is not installed.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
