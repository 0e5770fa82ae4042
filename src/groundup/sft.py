"""SFTTrainer without the price of its fused head where there is no GPU."""

import torch
import trl
from transformers import Trainer


class SFTTrainer(trl.SFTTrainer):
    """`trl.SFTTrainer`, except that on a CPU the loss is the model's own.

    TRL replaces the model's forward pass with a fused head that also computes entropy and token accuracy and, without Triton,
    takes 1.5 to 1.8 times as long as the plain loss. The loss is the same (`tests/test_sft.py`).
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.args.device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.model.training:
            tokens = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum()  # packed rows have no padding
            self._total_train_tokens += self.accelerator.gather_for_metrics(tokens).sum().item()
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return Trainer.compute_loss(self, model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
