"""Peak memory of a training step, found by running the step on fake tensors.

A fake tensor has a shape, a type and a device, and no data. The real model, loss and optimizer run on them, autograd keeps what it
would keep, and every storage is counted from birth to release: no formula for an architecture, so none to go wrong. A step of 24
layers takes a second or two whatever its size.
"""

import weakref
from collections import Counter
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PARTS = ("weights", "gradients", "optimizer", "activations", "logits")
MAPPED = 32 * 2**20  # bytes: glibc gives larger blocks back to the system at once (M_MMAP_THRESHOLD's greatest value)
# Smaller blocks come from a heap that falls to pieces: resident over live bytes, fitted to four shapes of pre-training; too low
# with activation checkpointing (benchmarks/RESULTS.md).
HEAP = 1.4
CUDA_BLOCK = 512  # bytes: the caching allocator rounds up to it


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of living tensors by part, and remembers the moment of most.

    Args:
        vocab_size: a tensor that ends in this dimension holds logits.
        heap: count as glibc holds them, not as PyTorch asks for them.
    """

    def __init__(self, vocab_size: int, heap: bool):
        super().__init__()
        self.vocab_size, self.heap = vocab_size, heap
        self.now: Counter = Counter()
        self.peak: Counter = Counter()
        self._calls = self._peak_call = 0
        self._known: dict[int, list] = {}  # of a storage: what watches it, its part, its bytes, the call that made it

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self._calls += 1
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                logits = tensor.ndim > 1 and tensor.shape[-1] == self.vocab_size
                self.count(tensor, "logits" if logits else "activations", again=False)
        if self.now.total() > self.peak.total():
            self.peak, self._peak_call = self.now.copy(), self._calls
        return made

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak, self._peak_call = self.now.copy(), self._calls

    def count(self, tensor: torch.Tensor, part: str, again: bool = True) -> None:
        """Enter a tensor under `part`; a known one changes its part if `again`, and what it was at the peak."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            if again:
                _, old, size, born = self._known[key]
                for counter in [self.now, self.peak] if born <= self._peak_call else [self.now]:
                    counter[old] -= size
                    counter[part] += size
                self._known[key][1] = part
            return
        size = storage.nbytes()
        if not self.heap:
            size = -(-size // CUDA_BLOCK) * CUDA_BLOCK
        elif size < MAPPED:
            size = int(size * HEAP)

        def release(_, key=key):
            _, part, size, _ = self._known.pop(key)
            self.now[part] -= size

        self._known[key] = [weakref.ref(storage, release), part, size, self._calls]
        self.now[part] += size


def peak_of_step(
    build: Callable[[], list[torch.nn.Module]],
    loss: Callable[..., torch.Tensor],
    optimizer: Callable[[list[torch.nn.Module]], torch.optim.Optimizer | int],
    vocab_size: int,
    autocast: torch.dtype | None = None,
    accumulation: int = 1,
    heap: bool = False,
) -> dict[str, int]:
    """Peak bytes of one optimizer step, by part (PARTS).

    Args:
        build: makes the models; parameters that do not require a gradient are held and not trained.
        loss: called with the models, gives the scalar to differentiate.
        optimizer: called with the models: an optimizer, or how many bytes its state has a parameter.
        vocab_size: see LiveBytes.
        autocast: the type of mixed precision, if any.
        accumulation: with more than one micro-batch a step, gradients are held during the next one's forward pass.
        heap: see LiveBytes.
    """
    with FakeTensorMode():
        models = build()
        parameters = [p for model in models for p in model.parameters()]
        trained = [p for p in parameters if p.requires_grad]
        live = LiveBytes(vocab_size, heap)
        for tensor in [*parameters, *(b for model in models for b in model.buffers())]:
            live.count(tensor, "weights")
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(lambda p: live.count(p.grad, "gradients"))
        stepper = optimizer(models)
        with live:
            if isinstance(stepper, int):
                state = [torch.empty(stepper * p.numel(), dtype=torch.uint8) for p in trained]
            else:  # the state is there from the second step on
                for parameter in trained:
                    parameter.grad = torch.empty_like(parameter)
                stepper.step()
                stepper.zero_grad()
                state = [t for t in tree_leaves(list(stepper.state.values())) if isinstance(t, torch.Tensor)]
            for tensor in state:
                live.count(tensor, "optimizer")
            live.restart()
            for _ in range(min(accumulation, 2)):
                with torch.autocast("cpu", autocast, enabled=autocast is not None):
                    value = loss(*models)
                value.backward()
                del value
            if not isinstance(stepper, int):
                stepper.step()
        return {part: live.peak[part] for part in PARTS}


def largest_layer(model: torch.nn.Module) -> tuple[int, int]:
    """Parameters of the largest decoder layer, and of all that is in no layer: what FSDP and ZeRO-3 gather at once."""
    layers = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in (layers[0] if layers else [])]
    return max(sizes, default=0), sum(p.numel() for p in model.parameters()) - sum(sizes)
