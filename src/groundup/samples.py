"""Now and then, what the model says: a person sees in one line what a loss does not tell."""

import torch
from accelerate.utils import DistributedType
from groundup.head import IGNORE
from groundup.pretraining import PretrainTrainer
from groundup.running import Run
from groundup.words import visible
from transformers import GenerationConfig, Trainer, TrainerCallback
from trl import GRPOTrainer

BEGINNING = 12  # tokens of a text that is gone on with
TOKENS = 24  # said
LONGEST = 160  # characters shown
WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)  # each process has all weights


class Samples(TrainerCallback):
    """Prints `times` in a run what the model says, and leaves the run as it would be without.

    What is asked is one prompt of the rows, or the beginning of a text in pre-training; the reply is the likeliest, made by the
    first process alone, and draws no random numbers. Where weights are sharded (FSDP, DeepSpeed) it is left out, since every
    process would have to take part. GRPO and PPO show the newest of the completions that they learn from.
    """

    def __init__(self, trainer: Trainer, run: Run, times: int):
        self.trainer, self.run, self.times = trainer, run, times
        self.prompt: list[int] | None = None
        self.rolls_out = isinstance(trainer, GRPOTrainer)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not self.times or not state.is_world_process_zero or self.rolls_out or not model.can_generate():
            return
        if self.trainer.accelerator.distributed_type in WHOLE:
            self.prompt = prompt_of((self.trainer.eval_dataset or self.trainer.train_dataset)[0])
            if self.prompt and len(self.prompt) + TOKENS > self.trainer.processing_class.model_max_length:
                self.prompt = None
        if self.prompt:
            self.run.say(f"samples go on from: {self.shown(self.spelt(self.prompt))}")

    def on_step_end(self, args, state, control, **kwargs):
        if not self.times or state.global_step % max(1, state.max_steps // self.times) or not state.is_world_process_zero:
            return
        if self.rolls_out:
            prompt, said = (text_of(self.trainer._logs[column][-1]) for column in ("prompt", "completion"))
            self.say(state, f"{self.shown(prompt)} => {self.shown(said)}")
        elif self.prompt:
            pausing = isinstance(self.trainer, PretrainTrainer)  # tokens a second are of training
            self.say(state, self.shown(self.spelt(self.trainer.pausing(self.go_on) if pausing else self.go_on())))

    def say(self, state, text: str) -> None:
        print(f"step {state.global_step}/{state.max_steps}  says: {text}", flush=True)

    def go_on(self) -> list[int]:
        """The likeliest tokens after the prompt."""
        model, tokenizer = self.trainer.model, self.trainer.processing_class
        stop = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        settings = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, use_cache=True, **stop)
        ids = torch.tensor([self.prompt], device=self.trainer.args.device)
        training = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad(), self.trainer.accelerator.autocast():
                said = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        finally:
            for module, was in training.items():
                module.training = was
        return said[0, ids.size(1) :].tolist()

    def spelt(self, ids: list[int]) -> str:
        return self.trainer.processing_class.decode(ids)  # with special tokens: whether it stops is worth seeing

    @staticmethod
    def shown(text: str) -> str:
        """One line, of what stands last where it is long."""
        text = visible(text)
        return text if len(text) <= LONGEST else "..." + text[-LONGEST:]


def prompt_of(row: dict) -> list[int] | None:
    """What comes before the reply in a row, or the beginning of a text; None where it holds no tokens."""
    if "prompt_ids" in row:
        return list(row["prompt_ids"])
    if "input_ids" not in row:
        return None
    given = next((place for place, label in enumerate(row.get("labels", ())) if label != IGNORE), 0)
    return [
        int(token) for token in row["input_ids"][: given if given > 1 else BEGINNING]
    ]  # a text's first token has no label either


def text_of(turns: str | list[dict]) -> str:
    """A text, or what was said last in a conversation."""
    return turns if isinstance(turns, str) else turns[-1]["content"]
