"""Muon for the hidden matrices, AdamW for everything else, as one optimizer that the Trainer can save and schedule."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import distributed
from torch.distributed.tensor import DTensor, Shard
from torch.optim.adamw import adamw


def orthogonalise(gradients: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration: (N, R, C) -> the nearest semi-orthogonal matrices, roughly, singular values in 0.7 to 1.2.

    Source: Jordan 2024, kellerjordan.github.io/posts/muon. Matrices of one shape go through together, which on a CPU, where small
    matrices cost their call and not their arithmetic, takes a third of the time of torch.optim.Muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    # bfloat16 is enough for the iteration where it is fast; on a CPU float32 is.
    x = gradients.bfloat16() if gradients.is_cuda else gradients.float()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def orthogonalise_together(updates: list[torch.Tensor]) -> list[torch.Tensor]:
    """`orthogonalise` for matrices of one shape that several ranks hold, each rank iterating on its share of them, whole.

    FSDP2 splits every matrix over the ranks: one all-to-all turns rows of every matrix into every row of some matrices, and one
    turns them back. Under DDP each rank has all of them, and one all-gather suffices.
    """
    first = updates[0]
    if isinstance(first, DTensor):
        shape = (len(updates), *first.shape)
        stride = (first.numel(), first.size(1), 1)
        mesh = first.device_mesh
        by_row = [Shard(p.dim + 1) if p.is_shard() else p for p in first.placements]
        by_matrix = [Shard(0) if p.is_shard() else p for p in first.placements]
        stack = DTensor.from_local(torch.stack([u.to_local() for u in updates]), mesh, by_row, shape=shape, stride=stride)
        mine = orthogonalise(stack.redistribute(placements=by_matrix).to_local())
        done = DTensor.from_local(mine, mesh, by_matrix, shape=shape, stride=stride).redistribute(placements=by_row).to_local()
        return [DTensor.from_local(u, mesh, first.placements, shape=first.shape, stride=first.stride()) for u in done]
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return list(orthogonalise(torch.stack(updates)))
    world = distributed.get_world_size()
    share = -(-len(updates) // world)
    padded = updates + [torch.zeros_like(first)] * (share * world - len(updates))
    start = share * distributed.get_rank()
    mine = orthogonalise(torch.stack(padded[start : start + share])).contiguous()
    done = mine.new_empty(share * world, *first.shape)
    distributed.all_gather_into_tensor(done, mine)
    return list(done[: len(updates)])


class MuonAdamW(torch.optim.Optimizer):
    """Muon on the matrices inside the blocks; AdamW on embeddings, head, norms and biases.

    Args:
        model: its trainable 2-D parameters outside embeddings and head go to Muon.
        lr: learning rate of Muon; it is scale-free, 0.02 suits most sizes.
        adamw_lr: learning rate of AdamW.
        betas: of AdamW.
        momentum: of Muon, Nesterov's.
        weight_decay: decoupled, on Muon's matrices only.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        lr: float = 0.02,
        adamw_lr: float = 4e-3,
        betas: tuple[float, float] = (0.8, 0.95),
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        looked_up = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
        looked_up |= {id(module.weight) for name, module in model.named_modules() if name.endswith(("lm_head", "score"))}
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        hidden = [p for p in trainable if p.ndim == 2 and id(p) not in looked_up]
        inside = {id(p) for p in hidden}
        rest = [p for p in trainable if id(p) not in inside]
        muon = {"params": hidden, "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "muon": True}
        adamw = {"params": rest, "lr": adamw_lr, "betas": betas, "eps": 1e-10, "muon": False}
        super().__init__([group for group in (muon, adamw) if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            (self._muon if group["muon"] else self._adamw)(group)
        return loss

    def _muon(self, group: dict) -> None:
        same_shape = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                same_shape[parameter.shape].append(parameter)
        for (rows, columns), parameters in same_shape.items():
            updates = []
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                updates.append(parameter.grad.lerp(state["momentum"], group["momentum"]))
            scale = max(1, rows / columns) ** 0.5
            for parameter, update in zip(parameters, orthogonalise_together(updates), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)

    def _adamw(self, group: dict) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(
                    exp_avg=torch.zeros_like(parameter),
                    exp_avg_sq=torch.zeros_like(parameter),
                    step=torch.zeros((), dtype=torch.float32, device=parameter.device),
                )
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=parameters[0].device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )


class MuonFactory:
    """For the Trainer's `optimizer_cls_and_kwargs`, which calls `MuonFactory()(model, **kwargs)` for whole-model optimizers."""

    def __call__(self, model: torch.nn.Module, **kwargs) -> MuonAdamW:
        return MuonAdamW(model, **kwargs)
