"""The plain Trainer, logging what pre-training is judged by: tokens a second, MFU, bits per byte."""

import math
import time

from groundup.configs import ModelArguments
from groundup.model import count_parameters, dial, flops_per_token
from transformers import Trainer, TrainingArguments
from trl.trainer.utils import get_peak_flops_per_device


def apply_dial(args: TrainingArguments, model_args: ModelArguments, vocab_size: int) -> None:
    """With `depth`, set steps, batch and learning rate that the YAML leaves at their defaults (groundup.model.Dial)."""
    if model_args.depth is None:
        return
    chosen = dial(model_args.depth, vocab_size, model_args.tokens_per_parameter)
    default = TrainingArguments("unused", use_cpu=True)
    if args.learning_rate == default.learning_rate:
        args.learning_rate = chosen.learning_rate
    device_tokens = args.per_device_train_batch_size * model_args.max_length * args.world_size
    if args.gradient_accumulation_steps == default.gradient_accumulation_steps:
        args.gradient_accumulation_steps = max(1, round(chosen.batch_tokens / device_tokens))
    if args.max_steps == default.max_steps and args.num_train_epochs == default.num_train_epochs:
        args.max_steps = max(1, round(chosen.tokens / (device_tokens * args.gradient_accumulation_steps)))


class PretrainTrainer(Trainer):
    """`transformers.Trainer` with three more numbers a log line.

    - `tokens_per_second`: over the interval since the last line, evaluation and saving left out (the Trainer's own figure is an
      average since the start that includes both);
    - `mfu`: share of the accelerator's peak, where the peak is known;
    - `eval_bits_per_byte`: held-out loss over the length of the text, which does not depend on the tokenizer.

    Args:
        bytes_per_token: of the held-out text.
        block_length: tokens a row.
    """

    def __init__(self, *args, bytes_per_token: float | None = None, block_length: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.bytes_per_token = bytes_per_token
        self.block_length = block_length
        self._flops = flops_per_token(self.model.config, count_parameters(self.model), block_length)
        self._step_tokens = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size * block_length
        self._since, self._since_step, self._paused = time.perf_counter(), 0, 0.0
        cuda = self.args.device.type == "cuda"
        self._peak = get_peak_flops_per_device() * self.args.world_size if cuda else None

    def train(self, *args, **kwargs):
        self._since, self._since_step = time.perf_counter(), None
        return super().train(*args, **kwargs)

    def _pausing(self, function, *args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self._paused += time.perf_counter() - start
        return result

    def evaluate(self, *args, **kwargs):
        return self._pausing(super().evaluate, *args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        return self._pausing(super()._save_checkpoint, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.perf_counter()
            steps = self.state.global_step - (self._since_step or 0)
            seconds = now - self._since - self._paused
            if self._since_step is not None and steps > 0 and seconds > 0:  # the first interval holds warm-up and compilation
                logs["tokens_per_second"] = steps * self._step_tokens / seconds
                if self._peak:
                    logs["mfu"] = logs["tokens_per_second"] * self._flops / self._peak
            self._since, self._since_step, self._paused = now, self.state.global_step, 0.0
            logs["tokens"] = self.tokens
        if "eval_loss" in logs and self.bytes_per_token:
            logs["eval_bits_per_byte"] = logs["eval_loss"] / math.log(2) / self.bytes_per_token
        super().log(logs, start_time)

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.state.global_step * self._step_tokens

    @property
    def flops(self) -> float:
        """Training FLOPs so far, by the formula of `groundup.model.flops_per_token`."""
        return self.tokens * self._flops
