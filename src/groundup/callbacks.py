"""Watching a run: what keeps it from harm, and one line a person can read."""

import time

from groundup.configs import RunArguments
from groundup.finite import SkipNonFinite
from groundup.neighbours import watch_neighbours
from groundup.running import Run
from groundup.samples import Samples
from groundup.saving import Saving
from groundup.tracking import track
from groundup.words import show_clock
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

    def __init__(self):
        self.first: tuple[int, float] | None = None  # step and moment at which this process began to train
        self.counted: tuple[float, float] | None = None  # tokens, and when

    def on_step_begin(self, args, state, control, **kwargs):
        if self.first is None:  # not where training begins: a gate, and rows that are passed over, come once
            self.first = state.global_step, time.perf_counter()
            self.counted = (0.0, self.first[1]) if state.global_step == 0 else None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        now = time.perf_counter()
        if "num_tokens" in logs:  # TRL counts them; groundup.pretraining tells how fast they go by itself
            if self.counted:
                logs = {**logs, "tokens_per_second": (logs["num_tokens"] - self.counted[0]) / (now - self.counted[1])}
            self.counted = logs["num_tokens"], now
        parts = [f"{label} {form.format(float(logs[key]))}" for key, (label, form) in SHOWN.items() if key in logs]
        if not parts:
            return
        done = state.global_step - self.first[0] if self.first else 0
        if done:  # of this process's own time, evaluation, saving and samples included
            parts.append(show_clock((now - self.first[1]) / done * (state.max_steps - state.global_step)) + " left")
        print(f"step {state.global_step}/{state.max_steps}  {'  '.join(parts)}", flush=True)


def watch(trainer: Trainer, run: Run, args: RunArguments) -> None:
    """Give `trainer` our callbacks in place of the progress bar, which prints logs as one long dictionary."""
    trainer.remove_callback(ProgressCallback)
    for name in ("PrinterCallback", "RichProgressCallback"):
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ == name:
                trainer.remove_callback(callback)
    trainer.add_callback(SkipNonFinite(trainer, run, args.max_skipped_steps))
    track(trainer, run)
    trainer.add_callback(ProgressLine())
    trainer.add_callback(Samples(trainer, run, args.show_samples))
    trainer.add_callback(Saving(trainer, run))  # last: what it ends is done
    watch_neighbours(args.silence_timeout)
