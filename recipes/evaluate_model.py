"""Any rung, or any model of the Hub: the evaluation suite, on one model or on several in a row.

python recipes/evaluate_model.py --config recipes/nano/evaluate.yaml --models out/nano/random out/nano/pretrain ...
python recipes/evaluate_model.py --model EleutherAI/pythia-70m --tasks arc_easy,hellaswag
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from groundup import card, record, scoreboard
from groundup.command_line import run
from groundup.errors import InputError
from groundup.evaluation import EvaluationArguments
from groundup.exposure import Exposure
from groundup.suite import Suite


@dataclass
class ModelsArguments:
    """Which models."""

    models: list[str] = field(default_factory=list, metadata={"help": "Stage directories or Hub ids."})
    model: str | None = field(default=None, metadata={"help": "The same, of one."})
    run_dir: str | None = field(default=None, metadata={"help": "Folder of the models, put before each name."})
    output_dir: str | None = field(default=None, metadata={"help": "For models that are no local directory: where eval.json goes."})
    again: bool = field(default=False, metadata={"help": "Measure a model that has been measured."})

    def __post_init__(self):
        self.models += [self.model] if self.model else []
        if not self.models:
            raise InputError("no model to measure", "models", "--models out/nano/sft out/nano/grpo, or --model HUB_ID")


def main(model_args: ModelsArguments, args: EvaluationArguments):
    # 1. Arguments
    suite = Suite(args, Path(__file__).parent / "tasks")
    exposure = Exposure(suite.texts) if args.check_overlap else None

    for name in model_args.models:
        path = str(Path(model_args.run_dir, name)) if model_args.run_dir else name
        directory = Path(path) if Path(path).is_dir() else Path(model_args.output_dir or "out/eval", path.replace("/", "--"))
        weights = record.hash_weights(path) if Path(path).is_dir() else None
        before = record.read_evaluation(directory) if (directory / record.ITEMS).is_file() else None
        same = before and (before.get("weights_sha256"), before["settings"]) == (weights, suite.settings)
        if same and before.get("asked", suite.asked) == suite.asked and not model_args.again:
            print(f"evaluate: finished already, {directory / 'eval.json'}")
            continue

        # 2. Measure
        began = time.perf_counter()
        result = suite.evaluate(path)
        overlap = exposure.of(directory) if exposure else {}
        for figure in result["metrics"].values():
            figure["contaminated"] = overlap.get(figure["file"], {}).get("share", "not checked")

        # 3. Hand over
        entry = record.read(directory) or {"rung": Path(path).name, "seed": None}
        record.write_evaluation(
            directory,
            {
                "rung": entry["rung"],
                "seed": entry["seed"],
                "seconds": round(time.perf_counter() - began, 1),
                "weights_sha256": weights,
                "settings": suite.settings,
                "asked": suite.asked,
                "overlap": overlap,
                **result,
            },
        )
        if record.read(directory):
            card.write_card(directory, record.read(directory))
        told = "  ".join(f"{key} {found['value']:.3f} {scoreboard.mark_overlap(found)}" for key, found in result["metrics"].items())
        print(f"evaluate: {entry['rung']}: {told}", flush=True)
        for file, found in overlap.items():
            if "unchecked" in found:
                print(f"evaluate: {entry['rung']}: {file} not checked against the training data: {found['unchecked']}", flush=True)
    print(f"evaluate: {scoreboard.OVERLAP}")


if __name__ == "__main__":
    run(main)
