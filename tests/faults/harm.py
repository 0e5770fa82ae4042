"""What a recipe's process can do to itself. Preludes import it: `from harm import signal_before; signal_before(...)`.

A place is `module:name`, the name of a function or of a class's function. It is harmed the `call`th time it is called.
"""

import functools
import importlib
import json
import os
import signal
from collections.abc import Callable


def around(place: str, do: Callable) -> None:
    """Have `do(inner, *args, **kwargs)` called in place of a function."""
    module, _, name = place.partition(":")
    *path, name = name.split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(module))
    inner = getattr(owner, name)
    setattr(owner, name, functools.wraps(inner)(lambda *args, **kwargs: do(inner, *args, **kwargs)))


def before(place: str, call: int, do: Callable) -> None:
    """Have `do()` called before the `call`th call of a function, counted from 1."""
    calls = 0

    def count(inner, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            do()
        return inner(*args, **kwargs)

    around(place, count)


def signal_before(place: str, call: int = 1, name: str = "SIGTERM") -> None:
    before(place, call, lambda: os.kill(os.getpid(), getattr(signal, name)))


def raise_before(place: str, call: int = 1, text: str = "harm") -> None:
    def fail():
        raise ValueError(text)

    before(place, call, fail)


def at_step(trainer, steps) -> bool:
    """Whether a trainer is in one of these steps, counted from 1."""
    return trainer.state.global_step + 1 in steps


def spoil_loss(*steps: int, value: float = float("nan")) -> None:
    """The loss of these steps, and with it its gradient, times `value`."""

    def spoil(inner, trainer, *args, **kwargs):
        if not at_step(trainer, steps):
            return inner(trainer, *args, **kwargs)
        whole = trainer.compute_loss
        trainer.compute_loss = lambda *args, **kwargs: whole(*args, **kwargs) * value
        try:
            return inner(trainer, *args, **kwargs)
        finally:
            del trainer.compute_loss

    around("transformers:Trainer.training_step", spoil)


def add_to_loss(*steps: int, value: float = float("inf")) -> None:
    """The loss of these steps plus `value`: no number, though its gradient is."""

    def spoil(inner, trainer, *args, **kwargs):
        return inner(trainer, *args, **kwargs) + (value if at_step(trainer, steps) else 0.0)

    around("transformers:Trainer.training_step", spoil)


def spoil_gradient(*steps: int, of: str = "model") -> None:
    """The gradient of one weight of `trainer.<of>` is infinite in these steps."""

    def spoil(inner, trainer, *args, **kwargs):
        weight = next(iter(getattr(trainer, of).parameters()))
        handle = weight.register_hook(lambda gradient: gradient * float("inf")) if at_step(trainer, steps) else None
        try:
            return inner(trainer, *args, **kwargs)
        finally:
            if handle:
                handle.remove()

    around("transformers:Trainer.training_step", spoil)


def spoil_weights(step: int) -> None:
    """A weight becomes NaN after a step, by no gradient."""

    def spoil(inner, trainer, *args, **kwargs):
        if trainer.state.global_step == step:
            next(iter(trainer.model.parameters())).data.view(-1)[0] = float("nan")
        return inner(trainer, *args, **kwargs)

    around("transformers:Trainer._maybe_log_save_evaluate", spoil)


def keep_ledger(path: str) -> None:
    """Write down, a line a batch, the rows that each step is given: their tokens, or a rollout's prompts as text."""

    def note(inner, trainer, model, inputs, *args, **kwargs):
        if isinstance(inputs, list):
            rows = [json.dumps(row["prompt"]) for row in inputs]
        else:
            ids = inputs["input_ids"]
            mask = inputs.get("attention_mask", ids == ids).bool()
            rows = [row[some].tolist() for row, some in zip(ids, mask, strict=True)]
        with open(f"{path}.{os.environ.get('RANK', '0')}", "a") as file:
            file.write(json.dumps({"step": trainer.state.global_step + 1, "rows": rows}) + "\n")
        return inner(trainer, model, inputs, *args, **kwargs)

    around("transformers:Trainer.training_step", note)
