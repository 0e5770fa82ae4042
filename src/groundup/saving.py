"""Checkpoints that are sealed when whole, of steps that a run can go on from, and one more when it is asked to stop."""

import errno
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed
import trl
from groundup.checkpoint import checkpoints, discard, rotate, seal
from groundup.errors import InputError, Preempted, RunError
from groundup.reading import asks_to_run
from groundup.running import Run
from groundup.stopping import STOP
from groundup.words import show_bytes
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback

READ = {  # how a Trainer goes on from a checkpoint, and from which of its files
    "_load_from_checkpoint": "its weights",
    "_load_optimizer_and_scheduler": "optimizer.pt or scheduler.pt",
    "_load_rng_state": "rng_state.pth",
    "_load_scaler": "scaler.pt",
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Saving(TrainerCallback):
    """Seals what the Trainer saves (`groundup.checkpoint`), and ends a run that was asked to stop when it is saved.

    Rotation is done here, since the Trainer deletes old checkpoints before the new one is known to be whole. GRPO and PPO are saved
    where a rollout has been used up: they resume with a new one.
    """

    def __init__(self, trainer: Trainer, run: Run):
        self.trainer, self.run = trainer, run
        self.keep, trainer.args.save_total_limit = trainer.args.save_total_limit, None
        self.save, trainer._save_checkpoint = trainer._save_checkpoint, self.save_and_seal
        if trainer.accelerator.scaler is None:  # there is none to load, and a scaler.pt that lies there is no reason to crash
            trainer._load_scaler = lambda checkpoint: None
        for name, files in READ.items():
            if hasattr(trainer, name):
                setattr(trainer, name, numbers_only(getattr(trainer, name), files, run.checkpoint))
        self.saved = int(Path(run.checkpoint).name.rpartition("-")[2]) if run.checkpoint else None
        self.postponed = False
        self.generates = isinstance(trainer, trl.GRPOTrainer)
        several = trainer.args.world_size > 1 and torch.distributed.is_initialized()
        self.group = torch.distributed.new_group(backend="gloo") if several else None  # the devices need not wait for a signal

    # -- when

    def on_train_begin(self, args, state, control, **kwargs):
        STOP.defer()
        if self.missing_evaluation(args, state):
            self.trainer.evaluate()

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
        due = args.eval_strategy == "steps" and step and step % state.eval_steps == 0
        return (
            bool(due) and not self.generates and not any("eval_loss" in line for line in state.log_history if line["step"] == step)
        )

    def stop_asked(self) -> bool:
        """Whether any process was asked to stop; the same in all of them."""
        if self.group is None:
            return STOP.asked is not None
        asked = torch.tensor(float(STOP.asked is not None))
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self.group)
        return bool(asked)

    # -- how

    def save_and_seal(self, model, trial=None) -> None:
        trainer, step = self.trainer, self.trainer.state.global_step
        folder = self.run.directory / f"checkpoint-{step}"
        check_finite(trainer.model, step, self.run.directory)
        need = size_of_checkpoint(trainer)
        if trainer.args.should_save:
            check_room(folder, need)
        try:
            self.save(model, trial)
            trainer.accelerator.wait_for_everyone()  # each process has a file of its own in it
            if trainer.args.should_save:
                seal(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            full = isinstance(error, OSError) and error.errno in NO_ROOM or shutil.disk_usage(self.run.directory).free < need
            if not full and "File too large" not in str(error):
                raise
            if folder.is_dir():
                discard(folder)
            raise no_room(folder, need, str(error)) from error
        self.saved = self.run.record["saved_step"] = step
        if trainer.args.should_save:
            self.run.note(saved_step=step)
            rotate(self.run.directory, self.keep, trainer.state.best_model_checkpoint)
        if self.stop_asked():
            trainer.accelerator.wait_for_everyone()
            raise Preempted


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


def size_of_checkpoint(trainer: Trainer) -> int:
    """Bytes that this process's weights and optimizer take, the better part of a checkpoint."""
    tensors = [*trainer.model.state_dict().values()]
    for state in trainer.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_room(folder: Path, need: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        RunError: says need and have.
    """
    if shutil.disk_usage(folder.parent).free < need:
        raise no_room(folder, need)


def no_room(folder: Path, need: int, why: str = "") -> RunError:
    have = shutil.disk_usage(folder.parent).free
    kept = [path.name for _, path in checkpoints(folder.parent) if path != folder]
    left = f"{kept[-1]} is whole" if kept else "nothing was saved yet"
    what = f"no room for {folder.name}: it needs {show_bytes(math.ceil(need))} and the disk has {show_bytes(have)}"
    return RunError(what + f" ({why})" * bool(why), str(folder.parent), f"make room and run the same command again; {left}")
