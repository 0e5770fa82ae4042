"""What it costs that a run is kept from harm: training with our callbacks, beside the Trainer's own saving, in turns.

python benchmarks/guards.py --ladder out/nano

The recipes of a finished nano ladder on their own YAML, with fewer steps and saves as often as the YAML's in proportion: with
`SkipNonFinite` and `Saving`, and with neither, in turns. Only `train()` is timed. Whole runs on a busy machine say little about a
few per cent, so what is done in the guards is timed by itself too, a step and a save; `share` is theirs of a run of the YAML's own
steps and saves, and the bar of 2 % is for it.
"""

import contextlib
import importlib.util
import io
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from groundup import callbacks
from groundup.command_line import parse, quieten
from groundup.finite import SkipNonFinite
from groundup.running import Run
from groundup.saving import Saving
from groundup.stats import bootstrap
from measure import header, last_line, median, parser, table
from runs import ROOT, nano
from transformers import ProgressCallback, Trainer

BAR = 0.02
STEPS = {"pretrain": 100, "sft": 150, "ppo": 10, "grpo": 12}
# For --quick
SMALL = {"per_device_train_batch_size": 8, "max_completion_length": 8, "max_length": 64, "eval_strategy": "no", "max_rows": 64}
HOOKS = {
    SkipNonFinite: ("on_train_begin", "on_step_begin", "on_pre_optimizer_step", "log"),
    Saving: ("on_train_begin", "on_step_end", "on_prediction_step"),
}


class Meter:
    """Seconds in the guards of one trainer, by what is done for each step and for each save."""

    def __init__(self, trainer: Trainer):
        self.steps = self.saves = self.within = 0.0
        for callback in trainer.callback_handler.callbacks:
            for name in HOOKS.get(type(callback), ()):
                if name == "log":  # goes on to the Trainer's own
                    callback.tell = self.timed(callback.tell, "within")
                    trainer.log = self.timed(callback.log, "steps")
                else:
                    setattr(callback, name, self.timed(getattr(callback, name), "steps"))
            if isinstance(callback, Saving):
                callback.save = self.timed(callback.save, "within")
                trainer._save_checkpoint = self.timed(callback.save_and_seal, "saves")

    def timed(self, function: Callable, name: str) -> Callable:
        def call(*args, **kwargs):
            began, inner = time.perf_counter(), self.within
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - began
                if name != "within":
                    spent, self.within = spent - (self.within - inner), inner
                setattr(self, name, getattr(self, name) + spent)

        return call


def settings_of(name: str, ladder: Path, steps: int) -> tuple[dict[str, Any], dict[str, int]]:
    """A nano rung of `ladder` in few steps; and the steps of its YAML between saves and in all, where that says so."""
    settings = nano(name)
    for key, value in settings.items():
        if isinstance(value, str) and value.startswith("out/nano/"):
            settings[key] = str(ladder / value.removeprefix("out/nano/"))
    for reward in settings.get("rewards", []):
        if "model" in reward:
            reward["model"] = str(ladder / "reward")
    record = json.loads((ladder / name / "run.json").read_text())
    whole = {"steps": record["steps"], "saves": math.ceil(record["steps"] / settings["save_steps"])}
    settings |= {"max_steps": steps, "save_steps": max(1, round(settings["save_steps"] * steps / whole["steps"]))}
    settings.pop("random_init_dir", None)
    if "eval_steps" in settings:
        settings["eval_steps"] = settings["save_steps"]
    return settings | ({"force": True} if name == "grpo" else {}), whole


def train(name: str, settings: dict[str, Any], guarded: bool) -> tuple[float, Meter | None]:
    """Seconds of one run of a recipe's `train()`, and of its guards in it."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    seconds, meters = [], []

    def watch(trainer, run, run_args):
        if guarded:
            callbacks.watch(trainer, run, run_args)
            meters.append(Meter(trainer))
        else:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(callbacks.ProgressLine())
        whole = trainer.train

        def timed(*args, **kwargs):
            began = time.perf_counter()
            whole(*args, **kwargs)
            seconds.append(time.perf_counter() - began)

        trainer.train = timed

    recipe.watch, recipe.finish = watch, lambda run, trainer, **extra: None
    types = [kind for key, kind in get_type_hints(recipe.main).items() if key != "return"]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        line = [f"--output_dir={folder}/run"]
        for key, value in settings.items():
            if key != "output_dir":
                line += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        recipe.main(*parse(types, line))
        Run.under_way.lock.release()
    return seconds[0], meters[0] if meters else None


def measure(name: str, ladder: Path, steps: int, rounds: int, warm_up: int, **changed: Any) -> dict[str, Any]:
    """One rung, guarded and plain in turns, after `warm_up` turns that are not counted."""
    settings, whole = settings_of(name, ladder, steps)
    settings |= {key: value for key, value in changed.items() if key in settings or key == "max_rows" and name != "grpo"}
    saves = math.ceil(steps / settings["save_steps"])
    plain, guarded, per_step, per_save = [], [], [], []
    for turn in range(rounds + warm_up):
        for kind in (True, False) if turn % 2 else (False, True):
            seconds, meter = train(name, settings, kind)
            if turn < warm_up:
                continue
            (guarded if kind else plain).append(seconds)
            if meter:
                per_step.append(meter.steps / steps)
                per_save.append(meter.saves / saves)
    guards = median(per_step) * whole["steps"] + median(per_save) * whole["saves"]
    rest = median(plain) / steps * whole["steps"]
    ratios = [one / other for one, other in zip(guarded, plain, strict=True)]
    return {
        "seconds_a_step": median(plain) / steps,
        "guards_a_step": median(per_step),
        "guards_a_save": median(per_save),
        "whole": whole,
        "share": guards / (rest + guards),
        "ratio": median(ratios),
        "ratio_interval": bootstrap(ratios),
        "rounds": rounds,
    }


def small_ladder(folder: Path) -> Path:
    """For `--quick`: a small world, and a tiny random model in the place of every rung."""
    from groundup import record
    from groundup.model import build_config, build_model
    from groundup.stage import chat_generation_config
    from groundup.tokenizer import train_tokenizer
    from groundup.toyland import write_world
    from transformers import AutoModelForSequenceClassification

    write_world(folder / "world", seed=0, documents=400, held_out=40)
    rows = (folder / "world" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = train_tokenizer((json.loads(row)["text"] for row in rows), vocab_size=512, max_length=512)
    tokenizer.save_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = build_model(build_config("qwen3", tokenizer, sizes, max_length=512), seed=0)
    model.generation_config = chat_generation_config(tokenizer)
    for name in STEPS:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        record.write(folder / name, {"rung": name, "status": "running", "steps": 100})
    judge = AutoModelForSequenceClassification.from_pretrained(folder / "sft", num_labels=1)
    judge.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    return folder


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--ladder", type=Path, default=Path("out/nano"), help="a finished nano ladder (recipes/ladder.sh)")
    arguments.add_argument("--rungs", nargs="+", choices=list(STEPS), default=list(STEPS))
    arguments.add_argument("--rounds", type=int, default=5, help="turns of each; one before is not counted")
    args = arguments.parse_args()
    about, found = header(), {}
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        ladder = small_ladder(Path(folder)) if args.quick else args.ladder
        for name in args.rungs:
            if args.quick:
                found[name] = measure(name, ladder, 4, 1, 0, **SMALL)
            else:
                found[name] = measure(name, ladder, STEPS[name], args.rounds, 1)
    rows = []
    for name, one in found.items():
        low, high = one["ratio_interval"]
        cost = [f"{one[key] * 1e3:.2f}" for key in ("seconds_a_step", "guards_a_step", "guards_a_save")]
        whole = f"{one['whole']['steps']:,} steps, {one['whole']['saves']} saves"
        rows.append([name, *cost, whole, f"{one['share']:.2%}", f"{one['ratio']:.3f} ({low:.3f}-{high:.3f})"])
    head = ["", "ms a step", "guards, ms a step", "guards, ms a save", "the YAML's run", "share", "guarded / plain, short runs"]
    print(table(head, rows))
    over = [name for name, one in found.items() if one["share"] > BAR]
    print(f"\nbar: at most {BAR:.0%} of a run's time; {'missed by ' + ', '.join(over) if over else 'met by all'}\n")
    last_line({**about, "bar": BAR, "met": not over, "rungs": found})


if __name__ == "__main__":
    main()
