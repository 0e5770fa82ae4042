"""Watching a run: stop on NaN, and one line a person can read."""

import math
import time

from transformers import ProgressCallback, TrainerCallback


class NonFiniteLoss(RuntimeError):
    """The loss or the gradient stopped being a number."""


class StopOnNonFinite(TrainerCallback):
    """Stop when a logged loss or gradient norm is not finite.

    The Trainer logs a NaN step as loss 0.0 (`logging_nan_inf_filter`, which `stage.start` turns off) and trains on: every
    checkpoint kept is then NaN.
    """

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name in ("loss", "grad_norm", "eval_loss"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(float(value)):
                raise NonFiniteLoss(f"`{name}` is {value} at step {state.global_step}: lower `learning_rate`")


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


def watch(trainer) -> None:
    """Give `trainer` our callbacks in place of the progress bar, which prints logs as one long dictionary."""
    trainer.remove_callback(ProgressCallback)
    for name in ("PrinterCallback", "RichProgressCallback"):
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ == name:
                trainer.remove_callback(callback)
    trainer.add_callback(StopOnNonFinite())
    trainer.add_callback(ProgressLine())
