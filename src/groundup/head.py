"""The head of a language model and its loss, without ever holding the whole (tokens, vocabulary) matrix of logits.

At 16 x 2048 tokens and a vocabulary of 32768, logits, their float32 copy and their gradient are some 10 GB; a chunk is megabytes.
"""

from types import MethodType

import torch
from groundup.errors import InputError
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

CHUNK = 2**22  # logits held at a time: 16 MB of float32, which stay in a CPU's cache and are nothing to a GPU's memory
CHUNK_CUDA = 2**27  # and enough of them to fill a GPU: 4096 tokens at a vocabulary of 32768
IGNORE = -100  # label of a token that is not predicted


class ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T`, its gradients taken chunk by chunk while the chunk's logits are there.

    Nothing is computed twice: the three products are those of the plain loss (Hsu et al. 2024, arXiv:2410.10989, section 3.2).
    With `z_loss`, z x logsumexp(logits)^2 a token is added, which keeps logits from drifting (Chowdhery et al. 2022,
    arXiv:2204.02311, section 5).

    hidden (N, D), weight (V, D), labels (N,) with -100 where nothing is predicted, chunk in tokens -> ().
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels, z_loss, chunk):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        inputs, matrix = hidden.to(dtype), weight.to(dtype)
        grad_hidden = grad_weight = None
        if any(ctx.needs_input_grad):
            grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            part, targets = inputs[start : start + chunk], labels[start : start + chunk]
            counts = (targets != IGNORE).float()
            targets = targets.clamp(min=0).unsqueeze(-1)
            logits = (part @ matrix.mT).float()
            normaliser = logits.logsumexp(-1)
            losses = normaliser - logits.gather(-1, targets).squeeze(-1)
            if z_loss:
                losses = losses + z_loss * normaliser.square()
            loss += (losses * counts).sum()
            if grad_weight is not None:
                scale = counts * (1 + 2 * z_loss * normaliser) if z_loss else counts
                grad = (logits - normaliser.unsqueeze(-1)).exp() * scale.unsqueeze(-1)
                grad = grad.scatter_add(-1, targets, -counts.unsqueeze(-1)).to(dtype)
                grad_hidden[start : start + chunk] = grad @ matrix
                grad_weight += grad.mT @ part
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None, None


def summed_loss(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, z_loss: float, cuda: bool) -> torch.Tensor:
    """What hidden states (B, T, D) lose on the next tokens of `ids` (B, T), -100 where none is predicted, summed; `weight` (V, D).

    Args:
        cuda: chunks of a GPU's size; where the tensors are does not tell when a step is only thought through.
    """
    chunk = max(1, (CHUNK_CUDA if cuda else CHUNK) // len(weight))
    return ChunkedCrossEntropy.apply(hidden[:, :-1].flatten(0, 1), weight, ids[:, 1:].flatten(), z_loss, chunk)


def chunked_loss(model: PreTrainedModel, z_loss: float = 0.0) -> PreTrainedModel:
    """Let `model(input_ids, labels=...)` return its loss through ChunkedCrossEntropy, without logits; without labels, nothing
    changes. `z_loss` counts in training only. Returns the model.

    Raises:
        InputError: the architecture does more between its last layer and its loss than a matrix (a soft cap, a bias, experts to
            balance), so that this loss would be another.
    """
    plain = model.forward
    decoder, head = model.base_model, model.get_output_embeddings()
    config = model.config.get_text_config()

    # the loss is the head module's own forward, so that what shards weights (FSDP, ZeRO-3) has this one whole when it is needed
    def forward_head(self, hidden, labels=None, z_loss=0.0):
        if labels is None:
            return torch.nn.functional.linear(hidden, self.weight)
        return summed_loss(hidden, self.weight, labels, z_loss, hidden.is_cuda)

    def forward(self, input_ids=None, labels=None, num_items_in_batch=None, **kwargs):
        if labels is None:
            return plain(input_ids=input_ids, **kwargs)
        hidden = decoder(input_ids=input_ids, **kwargs).last_hidden_state
        loss = head(hidden, labels, z_loss if self.training else 0.0)
        count = (labels[:, 1:] != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutputWithPast(loss=loss / count)

    if not isinstance(head, torch.nn.Linear) or head.bias is not None or getattr(config, "num_local_experts", None):
        raise InputError(f"the head of {config.model_type} is more than a matrix", "chunked_loss", "write `chunked_loss: false`")
    head.forward = MethodType(forward_head, head)
    _check_equal(model, MethodType(forward, model))
    model.forward = MethodType(forward, model)
    return model


@torch.no_grad()
def _check_equal(model: PreTrainedModel, forward) -> None:
    """Compare with the model's own loss on a few tokens: what a configuration does to its logits has too many names to list."""
    if model.device.type == "meta":
        return
    training = model.training
    model.eval()
    tokens = torch.arange(16, device=model.device).view(2, 8) % model.config.get_text_config().vocab_size
    # Weights as at birth give logits near zero, where a soft cap does nothing: compare with the head blown up.
    head = model.get_output_embeddings().weight
    before = head.clone()
    head.mul_(100 / head.float().norm(dim=-1).mean().clamp(min=1e-6))
    try:
        own, ours = model(input_ids=tokens, labels=tokens).loss, forward(input_ids=tokens, labels=tokens).loss
    finally:
        head.copy_(before)
        model.train(training)
    if not torch.allclose(own, ours, rtol=1e-3):
        raise InputError(
            f"{model.config.model_type} does more to its logits than a matrix: its loss is {own:.4f}, not {ours:.4f}",
            "chunked_loss",
            "write `chunked_loss: false`",
        )
