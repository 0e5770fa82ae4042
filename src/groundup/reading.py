"""Models and tokenizers of anybody's, read without running what lies beside them."""

import contextlib
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

from groundup.errors import InputError
from safetensors import SafetensorError
from transformers import PretrainedConfig, dynamic_module_utils

# A model that names Python files of its own (`auto_map`) needs `trust_remote_code=True`, which nothing here says. Not said, it is
# asked for on standard input, where a y runs them and a job on a cluster waits; with no time to answer it is refused at once.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


@contextlib.contextmanager
def reading(path: str, where: str = "", kind: str = "model") -> Iterator[None]:
    """What transformers has to say against the model (or tokenizer: `kind`) in `path`, as InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        words, told = str(error), (OSError, ValueError, ImportError, RuntimeError, SafetensorError, pickle.UnpicklingError)
        if not isinstance(error, told) and type(error) is not Exception:  # tokenizers raises that of a file it cannot read
            raise
        if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" not in words:
            raise
        what, fix = f"the {kind} `{path}` cannot be read", "put the files back as they were written"
        if "custom code" in words:
            what, fix = f"the {kind} `{path}` brings Python code of its own, which is not run", f"take a {kind} that needs none"
        elif "attn_implementation" in words or "FlashAttention" in words:
            what, fix = re.split(r"[.] |\n", words)[0][:200], "write `attn_implementation: sdpa`, or install what is missing"
        elif "ignore_mismatched_sizes" in words:
            what += ": its weights have other sizes than its config.json says"
        elif isinstance(error, pickle.UnpicklingError):
            what, fix = f"the {kind} `{path}` {asks_to_run(error)}", "take it from somebody whom you trust, as safetensors"
        elif not Path(path).exists():
            what = f"no {kind} in `{path}`"
            if "connect" in words or "offline" in words:
                what += ": it is no directory here, nor in the cache of the Hub, which cannot be reached"
            first = "run recipes/tokenizer.py first, or check the path" if kind == "tokenizer" else "check the path"
            fix = f"{first}; an id of the Hub: hf download {path}"
        else:
            first = re.split(r"[.] |\n", words.strip())[0]  # sentence
            what += f": {first[:200]}"
            if "does not recognize this architecture" in words:
                fix = "check `model_type` in config.json; a newer transformers may know it"
        raise InputError(what, where or path, fix) from error


def is_reward_model(config: PretrainedConfig) -> bool:
    """Whether it is a reward model's: one whose head gives a number."""
    return any("SequenceClassification" in name for name in config.architectures or [])


def asks_to_run(error: pickle.UnpicklingError) -> str:
    """What PyTorch, which unpickles numbers only, would not do; without its advice to do it all the same."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"asks to run `{found[1]}`, which is not run" if found else "holds a pickle of more than numbers, which is not run"
