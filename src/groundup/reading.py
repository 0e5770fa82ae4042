"""Models and tokenizers of anybody's, read without running what lies beside them."""

import contextlib
from collections.abc import Iterator

from groundup.errors import InputError
from safetensors import SafetensorError
from transformers import dynamic_module_utils

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
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        words = str(error)
        if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" not in words:
            raise
        what, fix = f"the {kind} `{path}` cannot be read", "put the files back as they were written"
        if "custom code" in words:
            what, fix = f"the {kind} `{path}` brings Python code of its own, which is not run", f"take a {kind} that needs none"
        elif "ignore_mismatched_sizes" in words:
            what += ": its weights have other sizes than its config.json says"
        elif isinstance(error, OSError) and ("connect" in words or "offline" in words):
            what = f"no {kind} `{path}`: it is no directory here, nor in the cache of the Hub, which cannot be reached"
            first = "run recipes/tokenizer.py first, or check the path" if kind == "tokenizer" else "check the path"
            fix = f"{first}; an id of the Hub: hf download {path}"
        else:
            what += f": {words.strip().splitlines()[0][:200]}"
        raise InputError(what, where or path, fix) from error
