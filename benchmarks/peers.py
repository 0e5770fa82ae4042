"""Peers, run beside us where their source is at hand: imported from a checkout, never copied."""

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Nanochat:
    """karpathy/nanochat's own model, optimizer and schedules at a shape of ours.

    Args:
        source: a checkout of github.com/karpathy/nanochat.
        precision: `float32` or `bfloat16`, what nanochat calls its compute dtype; a process may ask for both in turn.
        lr_scale: times all its learning rates. Its `base_train.py` scales them by the root of the batch over 2^19 tokens, which at
            a batch of a few thousand tokens is far too low; 1 is what `setup_optimizer` sets by itself.
    """

    source: str | Path
    width: int
    layers: int
    vocab_size: int
    length: int
    precision: str = "float32"
    device: str = "cpu"
    compile: bool = True
    lr_scale: float = 1.0
    head_dim: int = 64

    def __post_init__(self):
        os.environ["NANOCHAT_DTYPE"] = self.precision  # read once, at import
        for name in [name for name in sys.modules if name.split(".")[0] == "nanochat"]:
            del sys.modules[name]
        sys.path.insert(0, str(self.source))
        try:
            gpt = importlib.import_module("nanochat.gpt")
        finally:
            sys.path.pop(0)
        heads = self.width // self.head_dim
        config = gpt.GPTConfig(
            sequence_len=self.length,
            vocab_size=self.vocab_size,
            n_layer=self.layers,
            n_head=heads,
            n_kv_head=heads,
            n_embd=self.width,
            window_pattern="L",  # its own advice where FlashAttention 3 is not at hand
        )
        with torch.device("meta"):
            self.model = gpt.GPT(config)
        self.model.to_empty(device=self.device)
        self.model.init_weights()
        self.call = torch.compile(self.model, dynamic=False) if self.compile else self.model
        # what setup_optimizer sets by itself, times lr_scale
        scale = self.lr_scale
        self.optimizer = self.model.setup_optimizer(0.004 * scale, 0.2 * scale, 0.02 * scale, 0.0, 0.5 * scale)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.flops_per_token = self.model.estimate_flops()

    def loss(self, tokens: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        """tokens (B, T) -> the loss of predicting all but the first."""
        # Compiled for one length: all T positions go in, and the last one's target is left out.
        targets = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], 1)
        return self.call(tokens, targets, loss_reduction=reduction)

    def schedule(self, step: int, steps: int, warm_up: int = 40) -> None:
        """Learning rate and momentum as in its `base_train.py`: warm-up, 65 % warm-down to 5 %; 0.85 to 0.97 to 0.90."""
        warm_down = round(0.65 * steps)
        left = (steps - step) / warm_down
        rate = (step + 1) / warm_up if step < warm_up else 1.0 if step <= steps - warm_down else left + (1 - left) * 0.05
        momentum = 0.85 + 0.12 * step / 400 if step < 400 else 0.97 if left > 1 else 0.97 * left + 0.90 * (1 - left)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
            if group["kind"] == "muon":
                group["momentum"] = momentum

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """One training step on (B, T); returns the loss, on the device."""
        loss = self.loss(tokens)
        loss.backward()
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        return loss.detach()
