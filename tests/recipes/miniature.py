"""The rungs in miniature: each recipe's `main`, run here on its own nano YAML with paths and sizes replaced."""

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import torch

REPOSITORY = Path(__file__).parents[2]


def load_recipe(name: str) -> ModuleType:
    """recipes/<name>.py as a module of its own, new at each call."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", REPOSITORY / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments_of(recipe: ModuleType, name: str, settings: dict[str, Any]) -> tuple:
    """The recipe's argument classes from its nano YAML, `settings` beating the file as on the command line."""
    from groundup.command_line import parse

    types = [kind for key, kind in get_type_hints(recipe.main).items() if key != "return"]
    line = ["--config", str(REPOSITORY / "recipes" / "nano" / f"{name}.yaml")]
    for key, value in settings.items():
        line += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return parse(types, line)


@dataclass
class Trained:
    """What a recipe left, and the trainer that it left it with."""

    directory: Path
    settings: dict[str, Any]
    trainer: Any

    @property
    def record(self) -> dict:
        return json.loads((self.directory / "run.json").read_text())

    def weights(self) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.directory / "model.safetensors")


def run_recipe(name: str, directory: Path, **settings: Any) -> Trained:
    """Run recipes/<name>.py in this process into `directory`."""
    recipe, trainers = load_recipe(name), []
    if hasattr(recipe, "finish"):
        finish = recipe.finish
        recipe.finish = lambda stage, trainer, **extra: (trainers.append(trainer), finish(stage, trainer, **extra))
    settings = {**settings, "output_dir": str(directory)}
    recipe.main(*arguments_of(recipe, name, settings))
    return Trained(Path(directory), settings, trainers[0] if trainers else None)


def interrupt(trained: Trained, directory: Path, step: int) -> Path:
    """A copy of a finished stage as an interruption after its checkpoint of `step` would have left it."""
    shutil.copytree(trained.directory, directory)
    for path in directory.iterdir():
        late = path.name.startswith("checkpoint-") and int(path.name.removeprefix("checkpoint-")) > step
        if late:
            shutil.rmtree(path)
        elif path.is_file() and path.name != "run.json":
            path.unlink()
    record = json.loads((directory / "run.json").read_text())
    assert record["status"] == "finished"
    (directory / "run.json").write_text(json.dumps({**record, "status": "running"}))
    assert (directory / f"checkpoint-{step}").is_dir()
    return directory


class Rungs:
    """Every rung once for the whole session, each from the one before it."""

    def __init__(self, root: Path, world: Path):
        self.root, self.world = root, world
        self.done: dict[str, Trained] = {}

    def settings(self, name: str) -> dict[str, Any]:
        """What replaces the nano YAML's paths and sizes, and makes checkpoints to resume from."""
        world = {n: str(self.world / f"{n}.jsonl") for n in ("documents", "conversations", "preferences", "prompts")}
        common = {
            "max_steps": 4,
            "logging_steps": 1,
            "save_steps": 2,
            "save_total_limit": 9,
            "warmup_steps": 0,
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "show_samples": 0,
        }
        rollout = {"max_completion_length": 8, "per_device_train_batch_size": 8}
        # A model as random as this one is never right: what it is rewarded for must differ from one reply to the next.
        reachable = [
            {"name": "repetition", "weight": 1.0, "ngram": 1},
            {"name": "length", "weight": 0.5, "max_words": 2},
        ]
        held_out = {"max_eval_rows": 8, "per_device_eval_batch_size": 4}
        return {
            "tokenizer": lambda: {
                "dataset": world["documents"],
                "eval_dataset": str(self.world / "eval_documents.jsonl"),
                "vocab_size": 512,
            },
            "pretrain": lambda: {
                **common,
                **held_out,
                "dataset": world["documents"],
                "eval_dataset": str(self.world / "eval_documents.jsonl"),
                "tokenizer_path": str(self["tokenizer"].directory),
                "random_init_dir": str(self.root / "random"),
                "model_config": {
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                },
                "max_length": 64,
                "eval_steps": 2,
                "lr_scheduler_kwargs": {"num_decay_steps": 2, "decay_type": "linear"},
            },
            "sft": lambda: {
                **common,
                "dataset": world["conversations"],
                "max_rows": 40,
                "model_name_or_path": str(self["pretrain"].directory),
            },
            "reward": lambda: {
                **common,
                **held_out,
                "dataset": world["preferences"],
                "eval_dataset": str(self.world / "eval_preferences.jsonl"),
                "max_rows": 40,
                "model_name_or_path": str(self["sft"].directory),
            },
            "dpo": lambda: {
                **common,
                **held_out,
                "dataset": world["preferences"],
                "eval_dataset": str(self.world / "eval_preferences.jsonl"),
                "max_rows": 40,
                "model_name_or_path": str(self["sft"].directory),
            },
            "ppo": lambda: {
                **common,
                **rollout,
                "dataset": world["prompts"],
                "max_rows": 48,
                "model_name_or_path": str(self["sft"].directory),
                "rewards": [
                    {"model": str(self["reward"].directory), "weight": 1.0},
                    {"name": "groundup.toyland.taste_reward", "weight": 0.0},
                ],
            },
            # Two prompts a generation and four prompts in all: an epoch is two steps, and step 3 is inside the second.
            "grpo": lambda: {
                **common,
                **rollout,
                "dataset": str(self.world / "problems.jsonl"),
                "rehearsal_dataset": world["prompts"],
                "max_rows": 4,
                "num_generations": 4,
                "max_steps": 5,
                "save_steps": 3,
                "model_name_or_path": str(self["sft"].directory),
                "rewards": reachable,
                "gate_prompts": 4,
                "force": True,
            },
        }[name]()

    def __getitem__(self, name: str) -> Trained:
        if name not in self.done:
            self.done[name] = run_recipe(name, self.root / name, **self.settings(name))
        return self.done[name]
