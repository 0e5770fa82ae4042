"""What is looked at before a run begins: the launch, its settings, and how they differ from those before an interruption."""

import math
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import yaml
from groundup import record
from groundup.configs import DataArguments
from groundup.errors import InputError
from groundup.shards import is_prepared, read_manifest
from groundup.stopping import launched
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

# Settings that may change between an interruption and its resumption: where and how a run is watched, not what it computes.
MAY_CHANGE = (
    "output_dir",  # it holds the record that is compared: it was moved, or is spelt another way
    "logging_dir",
    "disable_tqdm",
    "save_total_limit",
    "report_to",
    "run_name",
    "project",
    "use_cpu",
    "local_rank",
    "deepspeed",
    "push_to_hub",
    "hub_token",
    "hub_model_id",
    "hub_strategy",
    "hub_private_repo",
    "hub_always_push",
    "hub_revision",
    "license",
    "check_memory",
    "allow_change",
    "max_skipped_steps",
    "silence_timeout",
    "show_samples",
    "max_faulty_share",  # a run that a limit has stopped goes on with another
    "reward_timeout",
)
SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps")  # of a step's rows, with the processes
BATCH = (*SPLIT, "steps_per_generation")


def asked_world_size() -> int | None:
    """How many processes `accelerate launch` was asked for, by its own command line; None under another launcher."""
    words = launched()
    if not words:
        return None

    def option(*names: str) -> str | None:
        for i, word in enumerate(words[:-1]):
            if word in names:
                return words[i + 1]
        return next((word.split("=", 1)[1] for word in words for name in names if word.startswith(f"{name}=")), None)

    number, config = option("--num_processes", "--num-processes"), option("--config_file", "--config-file")
    if number is None and config and Path(config).is_file():
        number = yaml.safe_load(Path(config).read_text()).get("num_processes")
    return int(number) if number is not None else None


def check_world_size(args: TrainingArguments, asked: int | None) -> None:
    """Refuse to train with fewer processes than were asked for.

    `accelerate launch --cpu --num_processes 2` starts one process, and `--multi_gpu` on a machine without GPUs two processes
    that each believe to be alone and write to one directory (huggingface/accelerate#2741).

    Raises:
        InputError: names the spelling that works.
    """
    fix = "launch with `accelerate launch --config_file accelerate_configs/cpu_2proc.yaml ...`, or with torchrun"
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != started:
        raise InputError(f"{started} processes were started, but they work as {args.world_size} each", fix=fix)
    if asked is not None and asked != args.world_size:
        raise InputError(f"{asked} processes were asked for and {args.world_size} started", fix=fix)


def check_global_batch(before: dict, now: dict) -> None:
    """Refuse to go on with another number of rows a step; how they are split may change.

    Raises:
        InputError: names both.
    """
    parts = [[*(run["config"][key] for key in SPLIT), run["world_size"]] for run in (before, now)]
    if math.prod(parts[0]) != math.prod(parts[1]):
        told = [f"{math.prod(part)} rows a step ({' x '.join(map(str, part))})" for part in parts]
        raise InputError(
            f"{now['config']['output_dir']} holds an interrupted run of {told[0]}, and this one has {told[1]}",
            f"{' x '.join(SPLIT)} x processes",
            f"choose them so that their product is {math.prod(parts[0])}, or give another `output_dir`",
        )


def check_allowed(names: list[str], config: dict[str, Any]) -> None:
    """Refuse a name in `allow_change` that is no setting.

    Raises:
        InputError: names the nearest.
    """
    known = {*config, "data", "parent"}
    for name in names:
        if name.split(".")[0] not in known:
            near = get_close_matches(name, known, n=1)
            raise InputError(f"`allow_change: {name}` is no setting", fix=f"did you mean `{near[0]}`?" if near else "leave it out")


def check_unchanged(before: dict[str, Any], now: dict[str, Any], allowed: list[str]) -> None:
    """Refuse to go on with settings or a model other than the interrupted run had, except for those in `allowed`.

    Raises:
        InputError: names all that differ.
    """
    changes = record.changed(before["config"], now["config"], ignore=[*MAY_CHANGE, *BATCH, *allowed])
    if "parent" not in allowed:
        then, is_now = (record.plain(entry.get("parent")) or {} for entry in (before, now))
        for what in ("weights_sha256", "tokenizer_sha256"):
            if then.get(what) != is_now.get(what):
                told = " -> ".join(str(entry.get(what))[:12] for entry in (then, is_now))
                changes.append(f"parent: {what} of {is_now.get('path')} {told}")
    if changes:
        names = " ".join(dict.fromkeys(line.split(":")[0] for line in changes))
        raise InputError(
            f"{now['config']['output_dir']} holds an interrupted run with other settings: {'; '.join(changes)}",
            fix=f"run it with the old settings, give another `output_dir`, or go on all the same with `--allow_change {names}`",
        )
    if not set(BATCH) & set(allowed):
        check_global_batch(before, now)


def check_schedules(rung: str, args: TrainingArguments, data: DataArguments | None) -> None:
    """Refuse what the Trainer would, once model and rows are loaded, in its own words.

    Raises:
        InputError: a learning rate's schedule with parameters that it has not, an evaluation without held-out rows, a best
            checkpoint by no metric, or a tracker that is not there.
    """
    try:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10**9, dict(args.lr_scheduler_kwargs or {}))
    except (TypeError, ValueError, KeyError) as error:
        fix = "correct it; `num_warmup_steps` and `num_training_steps` are `warmup_steps` and the run's own"
        raise InputError(f"`lr_scheduler_type: {args.lr_scheduler_type.value}`: {error}", "lr_scheduler_kwargs", fix) from None
    if args.eval_strategy != "no" and rung in ("ppo", "grpo"):
        fix = "leave `eval_strategy` out; recipes/evaluate_model.py measures what came out"
        raise InputError(f"nothing is evaluated while {rung} trains", f"eval_strategy: {args.eval_strategy.value}", fix)
    if args.eval_strategy != "no" and data and not data.eval_dataset:
        prepared = rung == "pretrain" and is_prepared(data.dataset)
        if not prepared or "held_out" not in read_manifest(data.dataset)["splits"]:
            fix = "write `eval_dataset: FILE_OR_HUB_ID`, or leave `eval_strategy` out"
            raise InputError("there are no held-out rows to evaluate on", f"eval_strategy: {args.eval_strategy.value}", fix)
    if args.save_strategy == "best" and not args.metric_for_best_model:
        raise InputError("by what are checkpoints the best?", "save_strategy: best", "write `metric_for_best_model: eval_loss`")
    for name in args.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            near = get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
            raise InputError(f"no tracker is called `{name}`", "report_to", f"did you mean `{(near or ['trackio'])[0]}`?")
        if name not in (*get_available_reporting_integrations(), "flyte"):
            fix = f"pip install {name}, or write `report_to: none`"
            raise InputError(f"the tracker `{name}` is not installed", "report_to", fix)
