"""Checkpoints that are sealed when whole, of steps that a run can go on from, and one more when it is asked to stop."""

import contextlib
import errno
import json
import math
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed
import trl
from groundup.checkpoint import MANIFEST, checkpoints, discard, rotate, seal, step_of
from groundup.errors import InputError, Preempted, RunError
from groundup.preflight import SPLIT
from groundup.reading import asks_to_run
from groundup.running import Run
from groundup.stopping import STOP
from groundup.words import show_bytes
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

READ = {  # how a Trainer goes on from a checkpoint, and from which of its files
    "_load_from_checkpoint": "its weights",
    "_load_optimizer_and_scheduler": "optimizer.pt or scheduler.pt",
    "_load_rng_state": "rng_state.pth",
    "_load_scaler": "scaler.pt",
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What writes weights and pickles has no errno; the last two are PyTorch's words for any write that failed.
NATIVE = ("No space left", "File too large", "quota exceeded", "iostream error", "unexpected pos")


class Saving(TrainerCallback):
    """Seals what the Trainer saves (`groundup.checkpoint`), and ends a run that was asked to stop when it is saved.

    Rotation is done here, since the Trainer deletes old checkpoints before the new one is known to be whole. GRPO and PPO are saved
    where a rollout has been used up: they resume with a new one.
    """

    def __init__(self, trainer: Trainer, run: Run):
        self.trainer, self.run = trainer, run
        self.keep, trainer.args.save_total_limit = trainer.args.save_total_limit, None
        self.save, trainer._save_checkpoint = trainer._save_checkpoint, self.save_and_seal
        self.epoch, trainer._run_epoch = trainer._run_epoch, self.run_epoch
        if trainer.accelerator.scaler is None:  # there is none to load, and a scaler.pt that lies there is no reason to crash
            trainer._load_scaler = lambda checkpoint: None
        for name, files in READ.items():
            if hasattr(trainer, name):
                setattr(trainer, name, numbers_only(getattr(trainer, name), files, run.checkpoint))
        self.saved = step_of(run.checkpoint) if run.checkpoint else None
        self.postponed = False
        self.generates = isinstance(trainer, trl.GRPOTrainer)
        check_split(trainer, run)
        several = trainer.args.world_size > 1 and torch.distributed.is_initialized()
        self.group = torch.distributed.new_group(backend="gloo") if several else None  # the devices need not wait for a signal

    # -- when

    def on_train_begin(self, args, state, control, **kwargs):
        STOP.defer()
        if args.should_save:  # a kill may have come between the last save and this
            rotate(self.run.directory, self.keep, state.best_model_checkpoint)
        if self.missing_evaluation(args, state):
            self.trainer.evaluate()

    def run_epoch(self, *args, **kwargs) -> None:
        """The Trainer asks only after a step whether it was the last: resumed from its last checkpoint it would make one more."""
        if self.trainer.state.global_step < self.trainer.state.max_steps:
            return self.epoch(*args, **kwargs)
        self.trainer.control.should_training_stop = True

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= self.postponed or self.stop_asked()
        self.postponed = control.should_save and not self.can_go_on_from(state.global_step)
        control.should_save &= not self.postponed
        return control

    def on_prediction_step(self, args, state, control, **kwargs):
        """An evaluation need not be finished: the resumed run begins with it."""
        if not self.generates and self.stop_asked():
            if state.global_step and state.global_step != self.saved:
                self.trainer._save_checkpoint(self.trainer.model_wrapped, None)
            raise Preempted

    def can_go_on_from(self, step: int) -> bool:
        """Whether a rollout ends with this step; TRL's trainers keep none over a resumption."""
        args = self.trainer.args
        if not self.generates or step == self.trainer.state.max_steps:
            return True
        return step * args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations) == 0

    def missing_evaluation(self, args, state) -> bool:
        """Whether the run was asked to stop in the evaluation that its last step ended with."""
        step = state.global_step
        ends = args.eval_strategy == "steps" and step % state.eval_steps == 0
        ends |= args.eval_strategy == "epoch" and float(state.epoch or 0).is_integer()
        told = any("eval_loss" in line for line in state.log_history if line["step"] == step)
        return ends and step > 0 and not told and not self.generates

    def stop_asked(self) -> bool:
        """Whether any process was asked to stop; the same in all of them."""
        if self.group is None:
            return STOP.asked is not None
        asked = torch.tensor(signal.Signals[STOP.asked] if STOP.asked else 0)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self.group)
        if asked:
            STOP.asked = signal.Signals(int(asked)).name  # the first process says so, whoever was asked
        return bool(asked)

    # -- how

    def save_and_seal(self, model, trial=None) -> None:
        trainer, step = self.trainer, self.trainer.state.global_step
        folder = self.run.directory / f"checkpoint-{step}"
        check_finite(trainer.model, step, self.run.directory)
        with room_for(folder, size_of_checkpoint(trainer), trainer.args.should_save):
            self.save(model, trial)
            trainer.accelerator.wait_for_everyone()  # each process has a file of its own in it
            if trainer.args.should_save:
                seal(folder, split=split_of(trainer.args))
        self.saved = self.run.record["saved_step"] = step
        stop, hub = self.stop_asked(), self.run.hub
        if trainer.args.should_save:
            self.run.note(saved_step=step)
            if hub:
                hub.checkpoint(folder, last=stop)
            rotate(self.run.directory, self.keep, trainer.state.best_model_checkpoint, *(hub.sending if hub else ()))
        if stop:
            trainer.accelerator.wait_for_everyone()
            raise Preempted


def check_split(trainer: Trainer, run: Run) -> None:
    """Refuse to go on with a step split otherwise, where the last step of an epoch would hold other rows than before.

    There accelerate repeats rows so that each process has as many (`even_batches`), and the Trainer takes as many micro-batches as
    are left. Trainers that read whole steps only are not concerned: GRPO's and PPO's drop such rows, and pre-training goes on into
    the next epoch.

    Raises:
        InputError: names the rows.
    """
    args = trainer.args
    if not run.checkpoint or isinstance(trainer, trl.GRPOTrainer) or args.ignore_data_skip:
        return
    before = json.loads((Path(run.checkpoint) / MANIFEST).read_text(encoding="utf-8")).get("split")
    now, rows = split_of(args), len(trainer.train_dataset)
    if before and before != now and rows % math.prod(before.values()):
        told = [" x ".join(map(str, split.values())) for split in (before, now)]
        steps = f"{rows} rows are no whole number of steps of {math.prod(before.values())}"
        raise InputError(
            f"{steps}, and what is read in an epoch's last depends on how they are split",
            f"{' x '.join(now)}: {' -> '.join(told)}",
            f"go on with {told[0]}; where a run is to move, let `max_rows` be a multiple of the rows a step",
        )


def split_of(args: TrainingArguments) -> dict[str, int]:
    """How the rows of a step are split."""
    return {**{name: getattr(args, name) for name in SPLIT}, "processes": args.world_size}


def numbers_only(load: Callable, files: str, checkpoint: str | None) -> Callable:
    """`load`, of which PyTorch's refusal to run what is in a pickle is an InputError. A seal does not say who sealed."""

    def loaded(*args, **kwargs):
        try:
            return load(*args, **kwargs)
        except pickle.UnpicklingError as error:
            fix = "if it is not your own, do not use it; begin anew in another `output_dir`"
            raise InputError(f"{files} of the checkpoint {asks_to_run(error)}", str(checkpoint), fix) from None

    return loaded


def check_finite(model: torch.nn.Module, step: int, directory: Path) -> None:
    """Refuse to save weights that are no numbers.

    Raises:
        RunError: names the last checkpoint, which is good.
    """
    wrong = [name for name, weights in model.named_parameters() if not bool(torch.isfinite(weights.detach()).all())]
    if wrong:
        raise diverged(f"`{wrong[0]}` holds numbers that are none at step {step}", directory)


def diverged(what: str, directory: Path) -> RunError:
    """The end of a run whose loss is no number, with where it can be taken up."""
    good = [path for _, path in checkpoints(directory)]
    kept = f"the last good checkpoint is {good[-1].name}" if good else "nothing was saved yet"
    fix = f"{kept}; lower `learning_rate` and go on with `--allow_change learning_rate`, or mend the rows that are named"
    return RunError(what, str(directory), fix)


def weights_file(model: torch.nn.Module) -> str:
    """Name of the file that `save_model` writes most to."""
    return ADAPTER_WEIGHTS if isinstance(model, PeftModel) else SAFE_WEIGHTS_NAME


def size_of_weights(model: torch.nn.Module) -> int:
    """Bytes of what `save_model` writes of a model: all its weights, or the adapter's."""
    state = get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict()
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def size_of_checkpoint(trainer: Trainer) -> int:
    """Bytes that this process's weights and optimizer take, the better part of a checkpoint."""
    tensors = []
    for state in () if trainer.is_deepspeed_enabled else trainer.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return size_of_weights(trainer.model) + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextlib.contextmanager
def room_for(place: Path, need: int, main: bool) -> Iterator[None]:
    """Refuse to begin what the disk cannot hold; where it fills up all the same, no half of `place` stays.

    Args:
        place: the directory or file that is written.
        main: whether this process writes most of it.

    Raises:
        RunError: says need and have.
    """
    if main and shutil.disk_usage(place.parent).free < need:
        raise no_room(place, need)
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in NO_ROOM or shutil.disk_usage(place.parent).free < need
        if not full and not any(words in str(error) for words in NATIVE):
            raise
        if place.is_dir():
            discard(place)
        place.unlink(missing_ok=True)
        raise no_room(place, need, str(error).partition("\n")[0]) from error


def no_room(place: Path, need: int, why: str = "") -> RunError:
    have = shutil.disk_usage(place.parent).free
    kept = [path.name for _, path in checkpoints(place.parent) if path != place]
    left = f"{kept[-1]} is whole" if kept else "nothing was saved yet"
    what = f"no room for {place.name}: it needs {show_bytes(math.ceil(need))} and the disk has {show_bytes(have)}"
    return RunError(
        what + f" ({why})" * bool(why),
        str(place.parent),
        f"make room, quotas and `ulimit -f` count too, and run the same command again; {left}",
    )
