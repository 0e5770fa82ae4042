"""What every recipe does before its first line of science, and after its last: `start` and `finish`."""

import math
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from accelerate.utils import broadcast_object_list
from groundup import card, record
from groundup.chat import END_OF_TEXT
from groundup.checkpoint import newest_checkpoint
from groundup.errors import InputError
from groundup.hardware import peak_memory
from groundup.model import count_parameters
from groundup.plan import foresee
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

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
    "max_faulty_share",  # a run that a limit has stopped goes on with another
    "reward_timeout",
)
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
REPLY_TOKENS = 64  # how long pipeline() lets a model of ours talk unless told otherwise


@dataclass
class Run:
    """A rung under way."""

    directory: Path
    record: dict[str, Any]
    checkpoint: str | None  # to resume from
    began: float = field(default_factory=time.perf_counter)
    data: list[dict] = field(default_factory=list)

    def uses(self, *sources: list[dict] | None) -> None:
        """Note where the rows came from (`Loaded.provenance`), and say what was dropped."""
        entries = [entry for source in sources if source for entry in source]
        self.data += entries
        for entry in entries:
            for reason, count in entry.get("dropped", {}).items():
                if os.environ.get("RANK", "0") == "0":
                    print(
                        f"{self.record['rung']}: {count:,} of {entry['rows']:,} rows dropped ({reason}): {entry['name']}",
                        flush=True,
                    )


def asked_world_size() -> int | None:
    """How many processes `accelerate launch` was asked for, by its own command line; None under another launcher."""
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    launcher = next((i for i, word in enumerate(words) if Path(word).name in ("accelerate", "accelerate-launch")), None)
    if launcher is None:
        return None
    words = words[launcher:]

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


def check_global_batch(directory: Path, before: dict, now: dict) -> None:
    """Refuse to go on with another number of rows a step; how they are split may change.

    Raises:
        InputError: names both.
    """
    parts = [[*(run["config"][key] for key in BATCH), run["world_size"]] for run in (before, now)]
    if math.prod(parts[0]) != math.prod(parts[1]):
        told = [f"{math.prod(part)} rows a step ({' x '.join(map(str, part))})" for part in parts]
        raise InputError(
            f"{directory} holds an interrupted run of {told[0]}, and this one has {told[1]}",
            f"{' x '.join(BATCH)} x processes",
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
    checkpoint. Nothing is ever deleted.

    Args:
        rung: `pretrain`, `sft`, ...
        others: the other argument classes of the recipe; they are recorded.
        parent: the model this rung starts from.

    Raises:
        InputError: a launch that lost processes, settings other than those the interrupted run had, or memory or disk that will
            not do.
    """
    check_world_size(training_args, asked_world_size())
    directory = Path(training_args.output_dir)
    config = resolved(training_args, *others)
    before = record.read(directory)
    main = training_args.process_index == 0
    if before and before["status"] == "finished":
        if main:
            print(f"{rung}: finished already, {directory} (remove the directory to run it again)", flush=True)
        training_args.distributed_state.wait_for_everyone()
        sys.exit(0)
    checkpoint = None
    if before:
        splits_freely = rung == "pretrain"  # its order of rows does not depend on who reads them
        changes = record.changed(before["config"], config, ignore=MAY_CHANGE + BATCH * splits_freely)
        checkpoint, passed_over = newest_checkpoint(directory)
        if splits_freely and checkpoint:
            check_global_batch(directory, before, {"config": config, "world_size": training_args.world_size})
        if changes and checkpoint:
            raise InputError(
                f"{directory} holds an interrupted run with other settings: {'; '.join(changes)}",
                fix="run it with the old settings, or give another `output_dir`",
            )
        if main:
            for line in passed_over:
                print(f"{rung}: {line}", flush=True)
            print(f"{rung}: going on from {checkpoint or 'the beginning'}", flush=True)
    prediction = [foresee_or_refuse(rung, training_args, others, resumes=before is not None) if main else None]
    broadcast_object_list(prediction)  # one process looks, and all start or stop
    if isinstance(prediction[0], InputError):
        raise prediction[0]
    training_args.logging_nan_inf_filter = False  # it would log NaN as loss 0.0
    training_args.ddp_find_unused_parameters = bool(training_args.ddp_find_unused_parameters)
    set_seed(training_args.seed)
    entry = {
        "schema": 1,
        "rung": rung,
        "status": "running",
        "parent": describe_parent(parent) if parent else None,
        "config": config,
        "data": [],
        "seed": training_args.seed,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": record.git_commit(),
        "versions": record.versions(),
        "hardware": record.hardware(),
        "world_size": training_args.world_size,
        "started": (before or {}).get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": (before or {}).get("seconds", 0.0),
        "plan": prediction[0],
    }
    if main:
        directory.mkdir(parents=True, exist_ok=True)
        record.write(directory, entry)
    training_args.distributed_state.wait_for_everyone()
    return Run(directory, entry, checkpoint)


def foresee_or_refuse(rung: str, training_args: TrainingArguments, others: tuple, resumes: bool) -> dict | InputError | None:
    """The plan, or why there is none, in a form that the other processes can be told."""
    files = Path(training_args.output_dir).rglob("*") if resumes else ()
    used = sum(path.stat().st_size for path in files if path.is_file())
    try:
        return foresee(rung, (training_args, *others), training_args, used)
    except InputError as error:
        return error


def describe_parent(parent: str) -> dict[str, Any]:
    """Path or id of the model a rung starts from, with the hashes that tell it from another of the same name."""
    return {"path": parent, **record.hashes(parent)}


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
            seconds=round(run.record["seconds"] + time.perf_counter() - run.began, 1),
            tokens=trainer.state.num_input_tokens_seen or None,
            flops=trainer.state.total_flos or None,
            parameters=count_parameters(model),
            steps=trainer.state.global_step,
            peak_memory_bytes=peak,
            metrics=metrics,
            **record.hashes(run.directory),
        )
        run.record.update(extra)
        record.write(run.directory, run.record)
        card.write_card(run.directory, run.record)
        print(f"{run.record['rung']}: done in {run.record['seconds']:.0f} s -> {run.directory}", flush=True)
    trainer.accelerator.wait_for_everyone()
    trainer.end()


def chat_generation_config(tokenizer) -> GenerationConfig:
    """Stops at the end of a turn, or, for a model that has learned no turns, at the end of a document."""
    stops = [tokenizer.eos_token_id]
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    if end_of_text not in (None, tokenizer.unk_token_id, tokenizer.eos_token_id):
        stops.append(end_of_text)
    return GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, max_new_tokens=REPLY_TOKENS, do_sample=False)
