"""Watching a run: what keeps it from harm, and one line a person can read."""

import time

from groundup.configs import RunArguments
from groundup.finite import SkipNonFinite
from groundup.neighbours import watch_neighbours
from groundup.running import Run
from groundup.saving import Saving
from transformers import ProgressCallback, Trainer, TrainerCallback

SHOWN = {  # log key -> (label, format)
    "loss": ("loss", "{:.3f}"),
    "eval_bits_per_byte": ("held-out bits/byte", "{:.4f}"),
    "eval_loss": ("held-out loss", "{:.3f}"),
    "eval_accuracy": ("held-out accuracy", "{:.3f}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "reward": ("reward", "{:.3f}"),
    "objective/kl": ("kl", "{:.3f}"),
    "kl": ("kl", "{:.4f}"),
    "value_loss": ("value loss", "{:.3f}"),
    "explained_variance": ("explained variance", "{:.2f}"),
    "completions/mean_length": ("tokens a completion", "{:.1f}"),
    "frac_reward_zero_std": ("flat groups", "{:.2f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "mfu": ("MFU", "{:.1%}"),
    "skipped_steps": ("steps left out", "{:.0f}"),
}


class ProgressLine(TrainerCallback):
    """One line a log: step, what matters at this rung, and how long it will take."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.start, self.first = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        parts = [f"{label} {form.format(float(logs[key]))}" for key, (label, form) in SHOWN.items() if key in logs]
        if not parts:
            return
        done = state.global_step - self.first
        left = (time.perf_counter() - self.start) / done * (state.max_steps - state.global_step) if done else 0
        clock = f"{int(left // 60)}:{int(left % 60):02d} left"
        print(f"step {state.global_step}/{state.max_steps}  {'  '.join(parts)}  {clock}", flush=True)


def watch(trainer: Trainer, run: Run, args: RunArguments) -> None:
    """Give `trainer` our callbacks in place of the progress bar, which prints logs as one long dictionary."""
    trainer.remove_callback(ProgressCallback)
    for name in ("PrinterCallback", "RichProgressCallback"):
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ == name:
                trainer.remove_callback(callback)
    trainer.add_callback(SkipNonFinite(trainer, run, args.max_skipped_steps))
    trainer.add_callback(ProgressLine())
    trainer.add_callback(Saving(trainer, run))  # last: what it ends is done
    watch_neighbours(args.silence_timeout)
