"""What every recipe does before its first line of science, and after its last: `start` and `finish`."""

import math
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import broadcast_object_list
from groundup import card, record
from groundup.chat import END_OF_TEXT
from groundup.checkpoint import Lock, newest_checkpoint
from groundup.configs import DataArguments, RunArguments
from groundup.errors import InputError
from groundup.hardware import peak_memory
from groundup.model import count_parameters
from groundup.plan import foresee
from groundup.running import Run
from groundup.shards import is_prepared, read_manifest
from groundup.stopping import launched
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    get_scheduler,
    set_seed,
)
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
    "hub_token",
    "push_to_hub",
    "check_memory",
    "allow_change",
    "max_skipped_steps",
    "silence_timeout",
    "max_faulty_share",  # a run that a limit has stopped goes on with another
    "reward_timeout",
)
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
REPLY_TOKENS = 64  # how long pipeline() lets a model of ours talk unless told otherwise


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
    parts = [[*(run["config"][key] for key in BATCH[:2]), run["world_size"]] for run in (before, now)]
    if math.prod(parts[0]) != math.prod(parts[1]):
        told = [f"{math.prod(part)} rows a step ({' x '.join(map(str, part))})" for part in parts]
        raise InputError(
            f"{now['config']['output_dir']} holds an interrupted run of {told[0]}, and this one has {told[1]}",
            f"{' x '.join(BATCH[:2])} x processes",
            f"choose them so that their product is {math.prod(parts[0])}, or give another `output_dir`",
        )


def resolved(*arguments: Any) -> dict[str, Any]:
    """All settings of a run as plain values."""
    values: dict[str, Any] = {}
    for argument in arguments:
        values.update(argument.to_dict() if isinstance(argument, TrainingArguments) else asdict(argument))
    return record.plain(values)


def start(rung: str, training_args: TrainingArguments, *others: Any, parent: str | None = None) -> Run:
    """Open the stage directory `training_args.output_dir`, or go on with it.

    A finished rung is said to be finished and ends the process with status 0. An interrupted one resumes from its newest whole
    checkpoint. Of what is in the directory nothing is deleted but a checkpoint whose saving was cut off.

    Args:
        rung: `pretrain`, `sft`, ...
        others: the other argument classes of the recipe; they are recorded.
        parent: the model this rung starts from.

    Raises:
        InputError: a launch that lost processes, a directory in use, settings or a model other than those the interrupted run had,
            checkpoints that are all damaged, or memory or disk that will not do.
    """
    check_world_size(training_args, asked_world_size())
    if training_args.save_only_model and training_args.save_strategy != "no":
        raise InputError("a run cannot go on from weights alone", "save_only_model", "leave it out, or write `save_strategy: no`")
    directory, main = Path(training_args.output_dir), training_args.process_index == 0
    settings = next((other for other in others if isinstance(other, RunArguments)), RunArguments())
    config, lock = resolved(training_args, *others), None
    check_allowed(settings.allow_change, config)
    check_schedules(rung, training_args, next((other for other in others if isinstance(other, DataArguments)), None))

    def look() -> dict[str, Any]:
        """What stands in the directory, and what this run will be."""
        nonlocal lock
        lock = Lock(directory)
        before = record.read(directory) or {}
        if before.get("status") == "finished":
            return {"finished": True}
        entry = {
            "schema": 1,
            "rung": rung,
            "status": "running",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "parent": describe_parent(parent) if parent else None,
            "config": config,
            "data": before.get("data", []),
            "seed": training_args.seed,
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "git_commit": record.git_commit(),
            "versions": record.versions(),
            "hardware": record.hardware(),
            "world_size": training_args.world_size,
            "started": before.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": before.get("seconds", 0.0),
        }
        checkpoint, passed_over = newest_checkpoint(directory, before.get("saved_step"))
        if checkpoint and before:
            check_unchanged(before, entry, settings.allow_change)
        if checkpoint:
            entry["saved_step"] = int(checkpoint.rpartition("-")[2])
        if before:
            for line in [*passed_over, f"going on from {checkpoint or 'the beginning'}"]:
                print(f"{rung}: {line}", flush=True)
        used = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        entry["plan"] = foresee(rung, (training_args, *others), training_args, used)
        record.write(directory, entry)
        return {"entry": entry, "checkpoint": checkpoint, "before": before}

    found = agreed(look, main)
    if "entry" not in found and lock:
        lock.release()
    if isinstance(error := found.get("error"), InputError):
        raise error
    if "finished" in found:
        if main:
            print(f"{rung}: finished already, {directory} (remove the directory to run it again)", flush=True)
        training_args.distributed_state.wait_for_everyone()
        sys.exit(0)
    training_args.logging_nan_inf_filter = False  # it would log NaN as loss 0.0
    training_args.ddp_find_unused_parameters = bool(training_args.ddp_find_unused_parameters)
    set_seed(training_args.seed)
    run = Run(directory, found["entry"], found["checkpoint"], frozenset(settings.allow_change), found["before"], lock)
    Run.under_way = run
    if 0 < training_args.max_steps < training_args.warmup_steps:
        low = f"`warmup_steps: {training_args.warmup_steps}` is more than the run's {training_args.max_steps} steps"
        run.say(f"{low}: `learning_rate` is never reached")
    return run


def agreed(look: Callable[[], dict[str, Any]], main: bool) -> dict[str, Any]:
    """What `look` returns in the first process, in all of them: one looks, and all start or stop. An InputError is an `error`."""
    found = [{}]
    if main:
        try:
            found = [look()]
        except InputError as error:
            found = [{"error": error}]
    broadcast_object_list(found)
    return found[0]


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


def describe_parent(parent: str) -> dict[str, Any]:
    """Path or id of the model a rung starts from, with the hashes that tell it from another of the same name.

    Raises:
        InputError: its weights or its tokenizer are not those that its rung left.
    """
    found = record.hashes(parent)
    left = (record.read(parent) if Path(parent).is_dir() else None) or {}
    for what, now in found.items():
        if left.get("status") == "finished" and left.get(what) not in (None, now):
            told = f"{left[what][:12]} -> {str(now)[:12]}"
            fix = "put the files back as they were, or run the rung that made them again"
            raise InputError(f"the model was changed or damaged since its rung ended: {what} {told}", str(parent), fix)
    return {"path": parent, **found}


def save_random_init(directory: str | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: Run) -> None:
    """Keep the weights before training as a stage directory of their own, the foot of the ladder."""
    if directory is None or record.read(directory) or int(os.environ.get("RANK", "0")):
        return
    model.generation_config = chat_generation_config(tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    entry = {"rung": "random", "status": "finished", "parameters": count_parameters(model), "metrics": {}}
    record.write(directory, {**run.record, **entry, **record.hashes(directory)})
    card.write_card(directory, record.read(directory))


def finish(run: Run, trainer: Trainer, **extra: Any) -> None:
    """Leave a complete stage directory: weights, tokenizer, template, generation settings, record and card.

    Args:
        extra: further fields of run.json, `tokens` or `flops` say.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    tokenizer = trainer.processing_class
    if model.config.vocab_size != len(tokenizer):
        raise InputError(f"the model has {model.config.vocab_size} tokens and the tokenizer {len(tokenizer)}", str(run.directory))
    if model.can_generate():
        model.generation_config = chat_generation_config(tokenizer)
    if trainer.is_fsdp_enabled:  # whatever the checkpoints are saved as, a stage is a whole model
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(args.output_dir)
    trainer.save_state()
    peak = torch.tensor([peak_memory()], device=args.device)
    peak = int(trainer.accelerator.gather(peak).max())
    if args.should_save:
        metrics = {}
        for line in trainer.state.log_history:  # the last value of each
            metrics.update({key: value for key, value in line.items() if isinstance(value, (int, float))})
        run.record.update(
            status="finished",
            data=run.data,
            seconds=run.seconds,
            tokens=trainer.state.num_input_tokens_seen or None,
            flops=trainer.state.total_flos or None,
            parameters=count_parameters(model),
            steps=trainer.state.global_step,
            peak_memory_bytes=peak,
            metrics=metrics,
            **record.hashes(run.directory),
        )
        run.record.update(extra)
        run.record.pop("saved_step", None)
        card.write_card(run.directory, run.record)
        record.write(run.directory, run.record)  # last: what is finished is not begun again
        print(f"{run.record['rung']}: done in {run.record['seconds']:.0f} s -> {run.directory}", flush=True)
    trainer.accelerator.wait_for_everyone()
    trainer.end()
    if run.lock:
        run.lock.release()
    Run.under_way = None


def chat_generation_config(tokenizer) -> GenerationConfig:
    """Stops at the end of a turn, or, for a model that has learned no turns, at the end of a document."""
    stops = [tokenizer.eos_token_id]
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    if end_of_text not in (None, tokenizer.unk_token_id, tokenizer.eos_token_id):
        stops.append(end_of_text)
    return GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, max_new_tokens=REPLY_TOKENS, do_sample=False)
