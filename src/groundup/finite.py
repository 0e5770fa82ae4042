"""Steps whose gradient is no number are left out, with the rows that did it on record."""

import json
import math
from typing import Any

import torch
from groundup.pretraining import PretrainTrainer
from groundup.running import Run
from groundup.saving import diverged
from transformers import Trainer, TrainerCallback

FILE = "skipped.jsonl"
SHOWN = 200  # characters of a row


class SkipNonFinite(TrainerCallback):
    """Leaves out a step whose gradient is not finite, and ends a run of which `most` and one more in a row are not.

    Left alone the Trainer applies it, and every weight is NaN; with its `logging_nan_inf_filter`, which `stage.start` turns off,
    the loss of such a step is logged as 0.0. The gradient's norm is that of all processes, so all leave it
    out or none does. Looking at it makes the processor wait for the device once a step.
    """

    def __init__(self, trainer: Trainer, run: Run, most: int):
        self.trainer, self.run, self.most = trainer, run, most
        self.in_a_row = self.skipped = 0
        self.norm: torch.Tensor | float = 0.0
        self.batches: list[Any] = []
        self.loss: torch.Tensor | None = None
        self.apart: list[torch.nn.Parameter] | None = None
        self.step, trainer.training_step = trainer.training_step, self.training_step
        self.measure, trainer._get_grad_norm = trainer._get_grad_norm, self.grad_norm

    def training_step(self, model, inputs, *args, **kwargs):
        self.batches.append(inputs)
        return self.step(model, inputs, *args, **kwargs)

    def grad_norm(self, model, grad_norm=None):
        self.norm = self.measure(model, grad_norm=grad_norm)
        return self.norm

    def on_step_begin(self, args, state, control, **kwargs):
        self.batches, self.loss = [], self.trainer._tr_loss.clone()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        norms = [float(self.norm), *self.norms_apart()]
        if self.trainer.accelerator.scaler is not None or all(map(math.isfinite, norms)):  # float16's scaler leaves out by itself
            self.in_a_row = 0
            return
        self.in_a_row, self.skipped, step = self.in_a_row + 1, self.skipped + 1, state.global_step + 1
        rows = self.rows(step)
        names = ", ".join(str(row["row"]) for row in rows[:8])
        self.run.say(f"step {step} is left out: its gradient is {norms[0]}; rows {names}{' ...' if len(rows) > 8 else ''} ({FILE})")
        if self.run.main:
            with open(self.run.directory / FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "grad_norm": str(norms[0]), "rows": rows}, ensure_ascii=False) + "\n")
        if self.in_a_row > self.most or self.trainer.is_deepspeed_enabled:  # which holds the gradients itself
            raise diverged(f"the gradient is no number in {self.in_a_row} steps in a row, up to step {step}", self.run.directory)
        for group in self.trainer.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # optimizers pass over it: neither weights nor moments change
        since = max(1, state.global_step - self.trainer._globalstep_last_logged)
        self.trainer._tr_loss.copy_(self.loss * (1 + 1 / since) if self.loss is not None else 0)  # as if it were like the others

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is None:
            return
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(float(logs[name])):
                raise diverged(f"`{name}` is {logs[name]} at step {state.global_step}", self.run.directory)
        if self.skipped:
            logs["skipped_steps"] = self.skipped

    def norms_apart(self) -> list[float]:
        """Of the gradients that the Trainer's norm is not of: PPO's critic."""
        if self.apart is None:
            own = {id(parameter) for parameter in self.trainer.model.parameters()}
            groups = self.trainer.optimizer.param_groups
            self.apart = [p for group in groups for p in group["params"] if id(p) not in own]
            if len(self.apart) == sum(len(group["params"]) for group in groups):  # sharded ones are other objects
                self.apart = []
        gradients = [parameter.grad for parameter in self.apart if parameter.grad is not None]
        return [float(torch.nn.utils.get_total_norm(gradients))] if gradients else []

    def rows(self, step: int) -> list[dict[str, Any]]:
        """What a step was made of: in pre-training the numbers of all rows, else of this process's rows the number in the data set,
        where they are found there, and how they begin."""
        if isinstance(self.trainer, PretrainTrainer):
            return [{"row": row} for row in self.trainer.rows_of(step)]
        found: list[dict[str, Any]] = []
        for inputs in self.batches:
            if isinstance(inputs, list):  # a rollout's prompts, as they stand in the data set
                prompts = self.trainer.train_dataset["prompt"]
                found += [{"row": prompts.index(row["prompt"]), "text": str(row["prompt"])[:SHOWN]} for row in inputs]
                continue
            numbers = self.numbers()
            ids, mask = (next((v for k, v in inputs.items() if k.endswith(end)), None) for end in ("input_ids", "attention_mask"))
            for n, row in enumerate([] if ids is None else ids):
                tokens = (row if mask is None else row[mask[n].bool()]).tolist()
                text = self.trainer.processing_class.decode(tokens, skip_special_tokens=True)
                found.append({"row": numbers.get(tuple(tokens)), "text": text[:SHOWN]})
        return found

    def numbers(self) -> dict[tuple[int, ...], int]:
        """Row numbers by the tokens in any of a row's columns."""
        rows = self.trainer.train_dataset
        columns = [name for name in rows.column_names if name.endswith("ids")]
        return {tuple(tokens): n for name in columns for n, tokens in enumerate(rows[name])}
