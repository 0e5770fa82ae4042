"""Any rung: the evaluation suite, on one model or on several in a row.

python recipes/evaluate_model.py --config recipes/nano/evaluate.yaml --models out/nano/random out/nano/pretrain ...
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from groundup import card, record
from groundup.command_line import run
from groundup.evaluation import EvaluationArguments, Suite


@dataclass
class ModelsArguments:
    """Which models."""

    models: list[str] = field(metadata={"help": "Stage directories or Hub ids."})
    run_dir: str | None = field(default=None, metadata={"help": "Folder of the models, put before each name."})
    output_dir: str | None = field(default=None, metadata={"help": "For models that are no local directory: where eval.json goes."})
    again: bool = field(default=False, metadata={"help": "Measure a model that has been measured."})


def main(model_args: ModelsArguments, args: EvaluationArguments):
    # 1. Arguments
    suite = Suite(args)

    for name in model_args.models:
        path = str(Path(model_args.run_dir, name)) if model_args.run_dir else name
        directory = Path(path) if Path(path).is_dir() else Path(model_args.output_dir or "out/eval", path.replace("/", "--"))
        weights = record.hash_weights(path) if Path(path).is_dir() else None
        before = record.read_evaluation(directory)
        if before and before.get("weights_sha256") == weights and before["settings"] == suite.settings and not model_args.again:
            print(f"evaluate: finished already, {directory / 'eval.json'}")
            continue

        # 2. Measure
        began = time.perf_counter()
        result = suite.evaluate(path)

        # 3. Hand over
        entry = record.read(directory) or {"rung": Path(path).name, "seed": None}
        record.write_json(
            directory / "eval.json",
            {
                "schema": 1,
                "rung": entry["rung"],
                "seed": entry["seed"],
                "seconds": round(time.perf_counter() - began, 1),
                "weights_sha256": weights,
                "settings": suite.settings,
                **result,
            },
        )
        if record.read(directory):
            card.write_card(directory, record.read(directory))
        figures = "  ".join(f"{key} {value['value']:.3f}" for key, value in result["metrics"].items())
        print(f"evaluate: {entry['rung']}: {figures}", flush=True)


if __name__ == "__main__":
    run(main)
