"""What every recipe does before its first line of science, and after its last: `start` and `finish`."""

import os
import shlex
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from groundup import card, record
from groundup.chat import END_OF_TEXT
from groundup.checkpoint import Lock, checkpoints, newest_checkpoint, step_of, sweep
from groundup.configs import DataArguments, RunArguments
from groundup.errors import InputError, RunError
from groundup.hardware import peak_memory
from groundup.hub import Pushing, Repository
from groundup.model import count_parameters
from groundup.plan import foresee
from groundup.preflight import asked_world_size, check_allowed, check_schedules, check_unchanged, check_world_size
from groundup.running import Run
from groundup.saving import room_for, size_of_weights, weights_file
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

REPLY_TOKENS = 64  # how long pipeline() lets a model of ours talk unless told otherwise


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

    With `push_to_hub` the Hub is asked first whether it will take what the run makes, and with `hub_strategy: checkpoint` or
    `all_checkpoints` a directory without a run goes on with the one that is there. A run that has begun here only says what
    is wrong.

    Args:
        rung: `pretrain`, `sft`, ...
        others: the other argument classes of the recipe; they are recorded.
        parent: the model this rung starts from.

    Raises:
        InputError: a launch that lost processes, a directory in use, settings or a model other than those the interrupted run had,
            checkpoints that are all damaged, memory or disk that will not do, or a Hub that will not take the run.
        RunError: the Hub is in trouble.
    """
    check_world_size(training_args, asked_world_size())
    if training_args.save_only_model and training_args.save_strategy != "no":
        raise InputError("a run cannot go on from weights alone", "save_only_model", "leave it out, or write `save_strategy: no`")
    directory, main = Path(training_args.output_dir), training_args.process_index == 0
    settings = next((other for other in others if isinstance(other, RunArguments)), RunArguments())
    config, lock = resolved(training_args, *others), None
    check_allowed(settings.allow_change, config)
    check_schedules(rung, training_args, next((other for other in others if isinstance(other, DataArguments)), None))
    hub = pushing(rung, training_args) if main else None
    training_args.push_to_hub, training_args.hub_token = False, None  # a checkpoint's training_args.bin is pushed too

    def look() -> dict[str, Any]:
        """What stands in the directory, and what this run will be."""
        nonlocal lock
        lock = Lock(directory)
        before = record.read(directory) or {}
        if hub and before.get("status") != "finished":
            before = ask_hub(hub, directory, before)
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
            "command": shlex.join(sys.argv),
            "git_commit": record.git_commit(),
            "versions": record.versions(),
            "hardware": record.hardware(),
            "world_size": training_args.world_size,
            "started": before.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": before.get("seconds", 0.0),
            "hub_model_id": hub.repository.name if hub else None,
        }
        if not before and checkpoints(directory):
            fix = f"put back {record.FILE} as it was written, or give another `output_dir`"
            raise InputError(
                f"there are checkpoints, and {record.FILE} is missing: what they are of is not known", str(directory), fix
            )
        sweep(directory)
        checkpoint, passed_over = newest_checkpoint(directory, before.get("saved_step"))
        if checkpoint:
            check_unchanged(before, entry, settings.allow_change)
        if checkpoint:
            entry["saved_step"] = step_of(checkpoint)
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
    if isinstance(error := found.get("error"), (InputError, RunError)):
        raise error
    if "finished" in found:
        if main:
            print(f"{rung}: finished already, {directory} (remove the directory to run it again)", flush=True)
        training_args.distributed_state.wait_for_everyone()
        sys.exit(0)
    training_args.logging_nan_inf_filter = False  # it would log NaN as loss 0.0
    training_args.ddp_find_unused_parameters = bool(training_args.ddp_find_unused_parameters)
    set_seed(training_args.seed)
    run = Run(directory, found["entry"], found["checkpoint"], frozenset(settings.allow_change), found["before"], lock, hub)
    Run.under_way = run
    if 0 < training_args.max_steps < training_args.warmup_steps:
        low = f"`warmup_steps: {training_args.warmup_steps}` is more than the run's {training_args.max_steps} steps"
        run.say(f"{low}: `learning_rate` is never reached")
    return run


def agreed(look: Callable[[], dict[str, Any]], main: bool) -> dict[str, Any]:
    """What `look` returns in the first process, in all of them: one looks, and all start or stop. What is wrong is an `error`."""
    found = [{}]
    if main:
        try:
            found = [look()]
        except (InputError, RunError) as error:
            found = [{"error": error}]
    broadcast_object_list(found)
    return found[0]


def pushing(rung: str, args: TrainingArguments) -> Pushing | None:
    """Where the arguments say that the run is pushed; None where they do not. Private, unless `hub_private_repo: false`."""
    if not args.push_to_hub:
        return None
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    repository = Repository(name, args.hub_token, args.hub_private_repo is not False, args.hub_revision)
    return Pushing(repository, args.hub_strategy.value, args.hub_always_push, lambda line: print(f"{rung}: {line}", flush=True))


def ask_hub(hub: Pushing, directory: Path, before: dict[str, Any]) -> dict[str, Any]:
    """See that the Hub will take the run, and bring what it has of it where there is nothing here; the record of what is here then.

    Raises:
        InputError, RunError: it will not, and nothing has been trained yet that could be lost.
    """
    try:
        hub.repository.open()
        if not before and hub.resumes and (brought := hub.repository.fetch(directory)):
            hub.say(f"{brought}; to begin anew, give another `hub_model_id`")
            return record.read(directory) or {}
    except (InputError, RunError) as error:
        if not before:
            fix = f"{error.fix}; or train with `--push_to_hub false` and push it later (recipes/push.py)"
            raise type(error)(error.what, error.where, fix) from None
        hub.say(f"{error.what}; the run goes on, and pushing is tried again")
    return before


def describe_parent(parent: str) -> dict[str, Any]:
    """Path or id of the model a rung starts from, with the hashes that tell it from another of the same name.

    Raises:
        InputError: its rung has not finished, or its weights or its tokenizer are not those that its rung left.
    """
    left = (record.read(parent) if Path(parent).is_dir() else None) or {}
    if (status := left.get("status", "finished")) != "finished":
        raise InputError(f"its rung has not finished: {status}", str(parent), "run the rung that makes it to its end first")
    found = record.hashes(parent)
    if changes := record.altered(left, found):
        fix = "put the files back as they were, or run the rung that made them again"
        raise InputError(f"the model was changed or damaged since its rung ended: {'; '.join(changes)}", str(parent), fix)
    return {"path": parent, **found}


def save_random_init(directory: str | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: Run) -> None:
    """Keep the weights before training as a stage directory of their own, the foot of the ladder."""
    if directory is None or record.read(directory) or int(os.environ.get("RANK", "0")):
        return
    model.generation_config = chat_generation_config(tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    write_for_older(directory)
    entry = {"rung": "random", "status": "finished", "parameters": count_parameters(model), "metrics": {}, "hub_model_id": None}
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
    with room_for(run.directory / weights_file(model), size_of_weights(model), args.should_save):
        trainer.save_model(args.output_dir)
        trainer.save_state()
    peak = torch.tensor([peak_memory()], device=args.device)
    peak = int(trainer.accelerator.gather(peak).max())
    if args.should_save:
        write_for_older(run.directory)
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
    trainer.accelerator.end_training()  # Trainer.end, which transformers 5.17 does not have
    # Last: no other process waits for it, and the run has finished whatever the Hub says.
    if run.hub and not run.hub.finish(run.directory):
        card.write_card(run.directory, record.update(run.directory, hub_model_id=None))  # it is loaded from here then
    if run.lock:
        run.lock.release()
    Run.under_way = None


def write_for_older(directory: str | Path) -> None:
    """Have what transformers 5 wrote in a stage directory read by 4.57 too, as by vLLM and others that stay there.

    It names a tokenizer's class, and the rest of its special tokens, by words that 4.57 does not know, and writes RoPE's base where
    4.57 does not look and takes 10,000 instead. transformers 5 reads both.
    """
    path = Path(directory) / "tokenizer_config.json"
    settings = record.read_json(path) or {}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        if "extra_special_tokens" in settings:
            settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        for how_it_was_loaded in ("backend", "is_local", "local_files_only"):
            settings.pop(how_it_was_loaded, None)
        record.write_json(path, settings)
    path = Path(directory) / "config.json"
    settings = record.read_json(path) or {}
    if base := (settings.get("rope_parameters") or {}).get("rope_theta"):
        record.write_json(path, {**settings, "rope_theta": base})


def chat_generation_config(tokenizer) -> GenerationConfig:
    """Stops at the end of a turn, or, for a model that has learned no turns, at the end of a document."""
    stops = [tokenizer.eos_token_id]
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    if end_of_text not in (None, tokenizer.unk_token_id, tokenizer.eos_token_id):
        stops.append(end_of_text)
    return GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, max_new_tokens=REPLY_TOKENS, do_sample=False)
