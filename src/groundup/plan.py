"""What a rung will cost: parameters, tokens, FLOPs, peak memory by part, disk, hours and money, known before the first step."""

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import psutil
import torch
from groundup.configs import RunArguments
from groundup.errors import InputError
from groundup.hardware import Device, free_disk, this_device
from groundup.memory import largest_layer
from groundup.model import quiet, whole_weights
from groundup.pretraining import BATCH
from groundup.step import Step, key_value_bytes, measure, measure_generation, step_flops
from groundup.words import show_bytes
from groundup.workload import BYTES_A_TOKEN, TYPES, Workload, describe, eval_share
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from transformers import TrainingArguments

SCHEMES = ("DDP", "FSDP2", "ZeRO-1", "ZeRO-2", "ZeRO-3")
MFU = 0.40  # share of a GPU's peak that training gets where nothing was measured
BANDWIDTH = 0.6  # share of a GPU's memory bandwidth that decoding gets
LAUNCH = 0.8e-3  # seconds a layer and token that `generate` takes to launch its kernels, however small the model
CONTEXT = 600 * 2**20  # bytes of a CUDA context and its libraries; no tensor, and not in `max_memory_allocated`
WORKSPACE = 32 * 2**20  # bytes of cuBLAS on Hopper, 8 MiB before; allocated as a tensor
COMMUNICATION = 512 * 2**20  # bytes of NCCL's channels, outside PyTorch's allocator
BUCKET = 500_000_000  # elements of DeepSpeed's buckets unless its configuration says otherwise
LIBRARIES = 40 * 2**20  # bytes of code and kernels that a CPU run loads only when it trains
TIGHT = 0.9  # of the device's memory: the predictions are good to a tenth
STARTING = 2.0  # seconds before a rung's first step and after its last, without reading data
COMPILING = 60.0  # seconds of torch.compile, forward and backward
LEARNING = 6e6  # bytes of text a second that a tokenizer is trained on
READING = 4e6  # bytes of text a second that one process reads and tokenises
PREPARING = 1.5e6  # the same with duplicates and overlaps sought
BUDGET = 4e10  # FLOPs of one pass that is timed
BUDGET_AT_START = 4e9  # the same before a run, which it holds up by a second or two

UNSUPPORTED = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


def plan(
    load: Workload,
    device: Device,
    scheme: str | None = None,
    mfu: float | None = None,
    price: float | None = None,
    calibrate: bool = True,
    budget: float = BUDGET,
) -> dict[str, Any]:
    """The cost of a workload on `load.world` devices, as plain values for `run.json` and `--json`.

    Args:
        scheme: how weights, gradients and optimizer are spread (SCHEMES); None on one device.
        mfu: share of the peak, instead of a measurement or MFU.
        price: dollars an hour and device, instead of the table's.
        calibrate: time steps of the model where `device` is this machine's CPU.
        budget: FLOPs of a pass that is timed.
    """
    found: dict[str, Any] = {"schema": 1, "rung": load.rung, "source": load.source, "output_dir": str(load.args.output_dir)}
    found |= {"devices": load.world, "device": device.name, "scheme": scheme or "one device"}
    if load.model is None:
        tokens = int(load.text_bytes / BYTES_A_TOKEN) or None
        rate = PREPARING if load.rung == "prepare" else LEARNING
        if tokens:
            load.assumed.append(f"{load.rung}: {BYTES_A_TOKEN:g} bytes a token, {rate / 1e6:g} MB of text a second on one core")
        found |= {"parameters": None, "tokens": tokens, "flops": None, "memory": None, "dollars": None}
        found |= {"seconds": load.text_bytes / rate if tokens else None}
        found["disk"] = {"tokens": 2 * tokens} if tokens and load.rung == "prepare" else {}
        return found | {"assumed": load.assumed, "unknown": load.unknown}
    step, tokens = Step(load, device.kind == "cuda"), load.steps and load.steps * load.step_tokens
    with _apart():
        found |= dict(zip(("parameters", "trained", "held"), step.parameters(), strict=True))
        found |= {"steps": load.steps, "tokens": tokens, "batch_tokens": load.step_tokens, "flops": tokens and _flops(step)}
        found |= {"memory": _memory(step, device, scheme), "disk": _disk(step)}
        seconds = found["seconds"] = _seconds(step, device, MFU if mfu is None else mfu, calibrate, budget)
    price = device.dollars if price is None else price
    found["dollars"] = seconds / 3600 * load.world * price if seconds and price is not None else None
    if price is None and device.kind == "cuda":
        load.unknown.append(f"the price of {device.name}; give `--price`")
    return found | {"assumed": load.assumed, "unknown": load.unknown}


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Models are built and stepped here as if no run were about to begin: without the other processes, which do not step along and
    would be waited for without end, and without what transformers will say of the run's own models."""
    with mock.patch("torch.distributed.is_initialized", lambda: False), whole_weights(), quiet():
        yield


# Arithmetic ----------------------------------------------------------------------------------------------------------


def _flops(step: Step) -> float:
    """FLOPs of the whole rung: training, DPO's reference, and for rollouts generation and scoring, a forward pass each."""
    load, (parameters, trained, everything) = step.load, step.parameters()
    forward = 2.0 * everything
    each = step_flops(load, parameters, load.length) + 6.0 * (trained - parameters)
    each += 2.0 * (everything - trained) if load.rung == "dpo" else 0.0
    total = load.steps * load.step_tokens * each
    return total + load.rollouts * load.world * load.rollout * load.length * (forward + 2.0 * parameters)


def _seconds(step: Step, device: Device, mfu: float, calibrate: bool, budget: float) -> float | None:
    load = step.load
    if not load.steps:
        return None
    timed = device.kind == "cpu" and calibrate
    peak = device.bf16 if step.autocast else device.fp32
    if timed:
        pass_seconds, optimizer_seconds = measure(step, budget)
        load.assumed.append("time: as steps of this model take on this machine now, without torch.compile")
    elif peak:
        work = load.step_tokens / load.accumulation / load.world * step_flops(load, step.parameters()[0], load.length)
        pass_seconds, optimizer_seconds = work * _all_trained(step) / (peak * mfu), 0.0
        load.assumed.append(f"time: {mfu:.0%} of the peak of {peak / 1e12:,.0f} TFLOP/s (`--mfu`)")
        if load.world > 1:
            load.assumed.append("time: no waiting for other devices beyond that")
    else:
        load.unknown.append("time: no steps were timed, and no peak is known")
        return None
    seconds = load.steps * (load.accumulation * pass_seconds + optimizer_seconds)
    if load.rollouts:
        seconds += load.rollouts * _rollout_seconds(step, device, pass_seconds, mfu, budget if timed else None)
    seconds += _evaluations(load) * eval_share(load) * (load.rows or 0) / load.micro / load.world * pass_seconds / 3
    return seconds + STARTING + (COMPILING if load.args.torch_compile else 0) + load.text_bytes / READING


def _all_trained(step: Step) -> float:
    """How much more than the policy is trained: PPO's critic."""
    parameters, trained, _ = step.parameters()
    return trained / parameters


def _rollout_seconds(step: Step, device: Device, pass_seconds: float, mfu: float, budget: float | None) -> float:
    """Generating one batch of completions on a device, and scoring it with every model that reads it; timed where there is a budget
    for it."""
    load = step.load
    readers = len(load.others) + (load.rung == "ppo")
    scoring = readers * load.rollout / load.micro * pass_seconds / 3 / _all_trained(step)
    if budget:
        return measure_generation(step, budget) + scoring
    parameters, size = step.parameters()[0], 2 if step.autocast else 4
    read = size * parameters + load.rollout * load.length * key_value_bytes(load.model, size)
    compute = 2.0 * parameters * load.rollout / ((device.bf16 or device.fp32) * mfu)
    launches = 0.0 if load.args.use_vllm else LAUNCH * load.model.num_hidden_layers
    load.assumed.append(f"decoding: {BANDWIDTH:.0%} of the memory's bandwidth, at least {LAUNCH * 1e3:g} ms a layer and token")
    return load.completion * max(read / (device.bandwidth * BANDWIDTH), compute, launches) + scoring


def _evaluations(load: Workload) -> int:
    """How often the held-out rows are read."""
    strategy = load.args.eval_strategy
    if strategy == "steps":
        every = load.args.eval_steps or load.args.logging_steps
        return int(load.steps // every if every >= 1 else 1 / every)
    return math.ceil(load.args.num_train_epochs if load.args.max_steps <= 0 else 1) if strategy == "epoch" else 0


# Memory --------------------------------------------------------------------------------------------------------------


def _memory(step: Step, device: Device, scheme: str | None) -> dict[str, Any] | None:
    load, cuda = step.load, device.kind == "cuda"
    try:
        parts = step.memory()
        generation = step.generation_memory() if load.rollout else {}
    except UNSUPPORTED as error:
        load.unknown.append(f"memory: {load.model.model_type} does not run on tensors without data ({type(error).__name__})")
        return None
    if step.optimizer_state() is None:
        load.unknown.append(f"memory of the optimizer `{load.args.optim.value}`")
    if load.args.torch_compile:
        load.assumed.append("memory: torch.compile keeps 0.61 of the activations in mixed precision, 0.73 in float32")
    if cuda:
        fixed = {"runtime": CONTEXT + (COMMUNICATION if load.world > 1 else 0), "buffers": WORKSPACE}
    else:
        fixed = {"runtime": _resident() + LIBRARIES, "data": _data(load)}
    one = {**parts, **fixed}
    if sum(generation.values()) > sum(parts.values()):
        one = {**generation, **fixed}
    schemes = {}
    if load.world > 1:
        schemes = {"DDP": {**one, "buffers": one.get("buffers", 0) + 4 * step.parameters()[1]}}
        if cuda:
            schemes |= _sharded(step, fixed)
    chosen = schemes.get(scheme or "", schemes.get("DDP", one))
    total = sum(chosen.values())
    return {
        "parts": chosen,
        "total": total,
        "tracked": total - (chosen["runtime"] if cuda else 0),  # what a run's `peak_memory_bytes` counts
        "device": device.memory,
        "lengths_counted": load.counted,
        "schemes": {name: sum(of.values()) for name, of in schemes.items()},
    }


def _data(load: Workload) -> int:
    """Bytes that rows take beside the model on a CPU: text, as it is read and tokenised (`benchmarks/plan_accuracy.py`). Prepared
    tokens are a memory map, which the system takes back when it needs room."""
    encoded = 60 * min(load.text_bytes, BATCH) if load.rung == "pretrain" and load.text_bytes else 0
    return 5 * load.text_bytes + encoded


def _sharded(step: Step, fixed: dict[str, int]) -> dict[str, dict[str, int]]:
    """FSDP2 and ZeRO: what is kept is divided by the devices, what is computed with is gathered in two bytes a number.

    Rajbhandari et al. 2020 (arXiv:1910.02054), section 3 and figure 1; ZeRO keeps a float32 copy of the weights beside the two-byte
    ones, FSDP2 only the former.
    """
    world, (_, trained, everything) = step.load.world, step.parameters()
    parts = Step(step.load, True, dtype=torch.bfloat16).memory(state=False)
    computed = {"activations": parts["activations"], "logits": parts["logits"]}
    layer, rest = largest_layer(step.outline[0])
    state = step.optimizer_state() or 0
    gathered = 2 * (rest + 2 * layer) + 2 * (rest + layer)  # weights with the next layer's, and gradients before they are spread
    buckets = 2 * 2 * min(BUCKET, trained)
    found = {
        "FSDP2": {
            "weights": 4 * everything // world,
            "gradients": 4 * trained // world,
            "optimizer": state // world,
            "gathered": gathered,
        }
    }
    for stage in (1, 2, 3):
        found[f"ZeRO-{stage}"] = {
            "weights": 2 * everything // (world if stage == 3 else 1),
            "gradients": 2 * trained // (world if stage >= 2 else 1),
            "optimizer": (4 * trained + state) // world,
            "gathered": gathered if stage == 3 else buckets,
        }
    return {name: {**kept, **computed, **fixed} for name, kept in found.items()}


@functools.cache
def _resident() -> int:
    """What this process held when it was first asked: the recipes import the same libraries."""
    return psutil.Process().memory_info().rss


def _disk(step: Step) -> dict[str, int]:
    """Bytes that the rung will write: tokens, checkpoints (one more than are kept, while it rotates), and the result."""
    load, args, (parameters, trained, _) = step.load, step.args, step.parameters()
    kept = 0 if args.save_strategy == "no" else args.save_total_limit or 1
    if load.steps and args.save_strategy == "steps":
        saves = max(1, int(load.steps // args.save_steps if args.save_steps >= 1 else 1 / args.save_steps))
        kept = min(saves, args.save_total_limit + 1) if args.save_total_limit else saves
    checkpoint = 4 * trained + (step.optimizer_state() or 0)
    found = {"checkpoints": kept * checkpoint, "result": 4 * parameters}
    if load.rung == "pretrain" and load.text_bytes:
        found["tokens"] = int(load.text_bytes / BYTES_A_TOKEN) * (2 if load.model.vocab_size <= 2**16 else 4)
    return found


# Before step 0 -------------------------------------------------------------------------------------------------------


def foresee(rung: str, given: tuple, args: TrainingArguments, used: int = 0) -> dict[str, Any] | None:
    """The plan of a rung that is about to start on this machine; None where its arguments are not those of the recipe.

    Args:
        given: all argument classes of the recipe, `args` among them.
        used: bytes of the stage directory, where the run goes on.

    Raises:
        InputError: as `check`, unless `check_memory` is off.
    """
    if rung not in TYPES or not {type(argument) for argument in given} >= set(TYPES[rung]) - {RunArguments}:
        return None
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = this_device(local)
    try:
        load = describe(rung, given, args.world_size)
    except InputError:  # the recipe will come to it, and knows better what it wanted
        return None
    found = plan(load, device, scheme_of_launch(args.world_size), budget=BUDGET_AT_START)
    if next((argument for argument in given if isinstance(argument, RunArguments)), RunArguments()).check_memory:
        for line in check(found, used):
            print(f"warning: {line}", flush=True)
    return found


def scheme_of_launch(world: int) -> str | None:
    """How `accelerate launch` spreads the model, by what it tells its processes."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"ZeRO-{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "FSDP2"
    return "DDP" if world > 1 else None


def check(found: dict[str, Any], used: int = 0) -> list[str]:
    """Warnings where memory or disk is tight.

    Args:
        used: bytes that an interrupted run has already on the disk.

    Raises:
        InputError: memory or disk will not do; by part, with what to change.
    """
    warnings = []
    memory, rung = found["memory"], found["rung"]
    if memory:
        detail = f"{show_bytes(memory['total'])} of {show_bytes(memory['device'])} ({show_parts(memory['parts'])})"
        fix, where = _smaller(found), f"{found['source'] or found['output_dir']} on {found['device']}"
        if memory["total"] > memory["device"] and memory["lengths_counted"]:
            raise InputError(f"{rung} will not fit: it needs about {detail}", where, f"{fix}; or `--check_memory false`")
        if memory["total"] > memory["device"]:
            warnings.append(f"{rung} will not fit if its rows are as long as they may be: about {detail}; {fix}")
        elif memory["total"] > TIGHT * memory["device"]:
            warnings.append(f"{rung}: memory will be tight, about {detail}")
    needed, free = max(0, sum(found["disk"].values()) - used), free_disk(found["output_dir"])
    parts = show_parts(found["disk"])
    detail = f"{show_bytes(needed)} of {show_bytes(free)} free" + f" ({parts})" * bool(parts)
    if needed > free:
        fix = "lower `save_total_limit`, raise `save_steps`, or give an `output_dir` on another disk; or `--check_memory false`"
        raise InputError(f"{rung} will not fit on the disk: it writes about {detail}", found["output_dir"], fix)
    if needed > TIGHT * free:
        warnings.append(f"{rung}: the disk will be tight, about {detail}")
    return warnings


def _smaller(found: dict[str, Any]) -> str:
    """What to change, the largest part first."""
    parts, rung = found["memory"]["parts"], found["rung"]
    kept = sum(parts.get(name, 0) for name in ("weights", "gradients", "optimizer", "buffers", "gathered"))
    rows = "lower `per_device_train_batch_size` and raise `gradient_accumulation_steps` as much"
    if rung in ("ppo", "grpo"):
        shorter = "lower `max_completion_length`"
    else:
        shorter = "`gradient_checkpointing: true`, or a shorter `max_length`"
    spread = "spread it over more devices with accelerate_configs/fsdp2.yaml, or take a smaller model"
    return spread if kept > sum(parts.values()) - kept else f"{rows}; {shorter}"


# Words ---------------------------------------------------------------------------------------------------------------


def show_parts(parts: dict[str, int]) -> str:
    """`activations 3.1 GiB, logits 512 MiB`, the greatest first, without what is nothing."""
    named = sorted(((size, name) for name, size in parts.items() if size >= 2**20), reverse=True)
    return ", ".join(f"{name} {show_bytes(size)}" for size, name in named)
