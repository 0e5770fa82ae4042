"""Runs of the recipes themselves, as a user would start them, for the benchmarks that compare what training comes to."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]


UNWATCHED = {"report_to": "none", "show_samples": 0}  # what is timed is training


def nano(name: str, **changed: Any) -> dict[str, Any]:
    """The settings of `recipes/nano/<name>.yaml`, some changed, with nobody watching."""
    return UNWATCHED | yaml.safe_load((ROOT / "recipes" / "nano" / f"{name}.yaml").read_text()) | changed


def recipe(name: str, settings: dict[str, Any], config: Path) -> None:
    """Run `recipes/<name>.py` on `settings`, written to `config`; what is finished already says so and is kept.

    Raises:
        SystemExit: the recipe failed; its last lines have been printed.
    """
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    command = [sys.executable, str(ROOT / "recipes" / f"{name}.py"), "--config", str(config)]
    with open(config.with_suffix(".log"), "a") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}).returncode
    if code:
        print(config.with_suffix(".log").read_text()[-3000:], file=sys.stderr)
        raise SystemExit(f"{name}.py failed on {config}")


def pretrain(settings: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Pre-train in `directory`, or find it done; returns run.json and, as `log`, the Trainer's lines."""
    recipe("pretrain", {**UNWATCHED, **settings, "output_dir": str(directory)}, directory.with_suffix(".yaml"))
    found = json.loads((directory / "run.json").read_text())
    found["log"] = json.loads((directory / "trainer_state.json").read_text())["log_history"]
    return found


def real_corpus(data: Path, work: Path, vocabulary: int = 4096, max_length: int = 256) -> tuple[Path, Path]:
    """Tokenizer and prepared tokens of the English novels and fairy tales in `data`; the held-out text is two other novels.

    Returns the two directories.
    """
    tokenizer, tokens = work / "tokenizer", work / "tokens"
    # nothing that the held-out questions are asked about is among the fairy tales' `train` split
    sources = [
        {"path": str(data / "eltec_eng" / "train-0*.jsonl.gz")},
        {"path": str(data / "fairytaleqa" / "stories.jsonl.gz"), "text_column": "sections"},
    ]
    held_out = str(data / "eltec_eng" / "val.jsonl.gz")
    both = {"datasets": sources, "eval_dataset": held_out}
    recipe(
        "tokenizer",
        {**both, "output_dir": str(tokenizer), "vocab_size": vocabulary, "max_length": max_length},
        work / "tokenizer.yaml",
    )
    recipe("prepare", {**both, "tokenizer_path": str(tokenizer), "output_dir": str(tokens)}, work / "prepare.yaml")
    return tokenizer, tokens
