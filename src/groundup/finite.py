"""Steps whose loss or gradient is no number are left out, with the rows that did it on record."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from groundup.pretraining import PretrainTrainer
from groundup.running import Run
from groundup.saving import diverged
from transformers import Trainer, TrainerCallback

FILE = "skipped.jsonl"
SHOWN = 200  # characters of a row


class SkipNonFinite(TrainerCallback):
    """Leaves out a step whose loss or gradient is not finite, and ends a run of which `most` and one more in a row are not.

    Left alone the Trainer applies it, and every weight is NaN; with its `logging_nan_inf_filter`, which `stage.start` turns off,
    the loss of such a step is logged as 0.0. Here what is logged is the mean of the steps that were applied. All processes leave
    a step out or none does. Looking at it makes the processor wait for the device once a step.
    """

    def __init__(self, trainer: Trainer, run: Run, most: int):
        self.trainer, self.run, self.most = trainer, run, most
        self.in_a_row = self.skipped = 0
        self.began = self.logged = 0  # steps
        self.left_out: list[int] = []  # steps of this process's life
        self.norm: torch.Tensor | float = 0.0
        self.batches: list[Any] = []
        self.loss: torch.Tensor | None = None
        self.apart: list[torch.nn.Parameter] | None = None
        self.step, trainer.training_step = trainer.training_step, self.training_step
        self.measure, trainer._get_grad_norm = trainer._get_grad_norm, self.grad_norm
        self.tell, trainer.log = trainer.log, self.log

    def training_step(self, model, inputs, *args, **kwargs):
        self.batches.append(inputs)
        return self.step(model, inputs, *args, **kwargs)

    def grad_norm(self, model, grad_norm=None):
        self.norm = self.measure(model, grad_norm=grad_norm)
        return self.norm

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = self.logged = state.global_step
        if self.run.main:
            self.skipped = forget_after(state.global_step, self.run.directory / FILE)

    def on_step_begin(self, args, state, control, **kwargs):
        self.batches, self.loss = [], self.trainer._tr_loss.clone()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        norms = [float(self.norm), *self.norms_apart()]
        numbers = [*norms, float(self.trainer._tr_loss)]
        if self.trainer.accelerator.scaler is not None or self.all_finite(numbers):  # float16's scaler leaves out by itself
            self.in_a_row = 0
            return
        self.in_a_row, self.skipped, step = self.in_a_row + 1, self.skipped + 1, state.global_step + 1
        rows = self.rows(step)
        loss = numbers[-1] - float(self.loss)
        names = ", ".join(str(row["row"]) for row in rows[:8])
        what = f"its gradient is {next((norm for norm in norms if not math.isfinite(norm)), norms[0])}, its loss {loss}"
        self.run.say(f"step {step} is left out: {what}; rows {names}{' ...' if len(rows) > 8 else ''} ({FILE})")
        if self.run.main:
            told = {"step": step, "loss": str(loss), "grad_norm": [str(norm) for norm in norms], "rows": rows}
            with open(self.run.directory / FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(told, ensure_ascii=False) + "\n")
        if self.in_a_row > self.most or self.trainer.is_deepspeed_enabled:  # which holds the gradients itself
            what = f"loss or gradient is no number in {self.in_a_row} steps in a row, up to step {step}"
            raise diverged(what, self.run.directory)
        for group in self.trainer.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # optimizers pass over it: neither weights nor moments change
        self.left_out.append(step)
        self.trainer._tr_loss.copy_(self.loss)

    def all_finite(self, numbers: list[float]) -> bool:
        """Of all processes: a gradient is the same in each, a loss is its own."""
        finite = all(map(math.isfinite, numbers))
        if self.trainer.args.world_size == 1:
            return finite
        return not self.trainer.accelerator.reduce(
            torch.tensor(float(not finite), device=self.trainer.args.device), reduction="sum"
        )

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        step, of_steps = self.trainer.state.global_step, "loss" in logs
        for name, since in (("loss", self.logged), ("train_loss", self.began)):
            if name in logs and (left_out := sum(since < one <= step for one in self.left_out)):
                if left_out == step - since:
                    del logs[name]  # there is none
                else:
                    logs[name] *= (step - since) / (step - since - left_out)
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(float(logs[name])):
                raise diverged(f"`{name}` is {logs[name]} at step {step}", self.run.directory)
        self.logged = step if of_steps else self.logged
        if self.skipped:
            logs["skipped_steps"] = self.skipped
        self.tell(logs, *args, **kwargs)

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
        """What a step was made of, in all processes: the numbers of its rows in the data set, None for one that is not found there,
        and how they begin. In pre-training the numbers alone."""
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
        return gather_object(found)

    def numbers(self) -> dict[tuple[int, ...], int]:
        """Row numbers by the tokens in any of a row's columns; where it has a prompt's, before those of its replies."""
        rows = self.trainer.train_dataset
        columns = {name: rows[name] for name in rows.column_names if name.endswith("ids")}
        prompts = columns.pop("prompt_ids", None) or [[]] * len(rows)
        return {(*prompts[n], *tokens): n for column in columns.values() for n, tokens in enumerate(column)}


def forget_after(step: int, path: Path) -> int:
    """Drop what was written of steps that a resumed run takes again; how many remain."""
    if not path.is_file():
        return 0
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(True) if json.loads(line)["step"] <= step]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)
