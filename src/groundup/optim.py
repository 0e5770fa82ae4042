"""Muon for the hidden matrices, AdamW for everything else, as one optimizer that the Trainer can save and schedule."""

import os
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from groundup.configs import ModelArguments
from groundup.errors import InputError
from torch import distributed
from torch.distributed.tensor import DTensor, Shard
from torch.optim.adamw import adamw
from transformers import TrainingArguments


def orthogonalise(gradients: torch.Tensor, block: int | None = None, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration: (N, R, C) -> the nearest semi-orthogonal matrices, roughly, singular values in 0.7 to 1.2.

    Source: Jordan 2024, kellerjordan.github.io/posts/muon. Matrices of one shape go through together, which on a CPU, where small
    matrices cost their call and not their arithmetic, takes a third of the time of torch.optim.Muon.

    With `block`, so many rows at a time are made orthogonal by themselves, and the result is scaled to the norm that it would have
    had whole (Khaled et al. 2025, arXiv:2510.16981, do so on each device). For 8 blocks of a square, an eleventh of the arithmetic.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    shape = gradients.shape
    scale = 1.0
    if block and block < shape[-2] and shape[-2] % block == 0:
        gradients = gradients.reshape(-1, block, shape[-1])
        scale = (min(shape[-2:]) / (min(block, shape[-1]) * shape[-2] / block)) ** 0.5
    # bfloat16 is enough for the iteration where it is fast; on a CPU float32 is.
    x = gradients.bfloat16() if gradients.is_cuda else gradients.float()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    if x.dtype == torch.float32 and x.size(-1) > x.size(-2):
        x = _polynomial(x @ x.mT, a, b, c, steps) @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.mT if tall else x
    return (x * scale if scale != 1 else x).reshape(shape)


def _polynomial(gram: torch.Tensor, a: float, b: float, c: float, steps: int) -> torch.Tensor:
    """What `steps` iterations multiply x by, from x @ x.mT alone: on a wide x a third to a sixth of the time.

    Every step is a polynomial of the Gram matrix times x, and the next Gram matrix follows from the last. A small eigenvalue's
    rounding grows 12-fold a step, which float32 bears (2 % after 5) and bfloat16 does not.
    """
    identity = torch.eye(gram.size(-1), device=gram.device).expand_as(gram)
    product = identity
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c).add_(identity, alpha=a)
        product = factor @ product if step else factor
        if step < steps - 1:
            gram = factor @ gram @ factor
    return product


def orthogonalise_together(
    updates: list[torch.Tensor], method: Callable[[torch.Tensor], torch.Tensor] = orthogonalise
) -> list[torch.Tensor]:
    """`method` on matrices of one shape that several ranks hold, each rank iterating on its share of them, whole.

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
        mine = method(stack.redistribute(placements=by_matrix).to_local())
        done = DTensor.from_local(mine, mesh, by_matrix, shape=shape, stride=stride).redistribute(placements=by_row).to_local()
        return [DTensor.from_local(u, mesh, first.placements, shape=first.shape, stride=first.stride()) for u in done]
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return list(method(torch.stack(updates)))
    world = distributed.get_world_size()
    share = -(-len(updates) // world)
    padded = list(updates) + [torch.zeros_like(first)] * (share * world - len(updates))
    start = share * distributed.get_rank()
    mine = method(torch.stack(padded[start : start + share])).contiguous()
    done = mine.new_empty(share * world, *first.shape)
    distributed.all_gather_into_tensor(done, mine)
    return list(done[: len(updates)])


class MuonAdamW(torch.optim.Optimizer):
    """Muon on the matrices inside the blocks; AdamW on embeddings, head, norms and biases.

    Args:
        model: its trainable 2-D parameters outside embeddings and head go to Muon.
        lr: learning rate of Muon; it is scale-free, 0.02 suits most sizes.
        adamw_lr: learning rate of AdamW.
        embedding_lr: of the embeddings, `adamw_lr` if not given. A row has a gradient only where its token occurs, and takes more.
        head_lr: of a head that is not tied to them, `adamw_lr` if not given.
        betas: of AdamW.
        momentum: of Muon, Nesterov's.
        block: rows that Muon makes orthogonal at a time, or columns of what writes into the residual stream: heads, or as many
            neurons. None: whole matrices.
        weight_decay: decoupled, on Muon's matrices only.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        lr: float = 0.02,
        adamw_lr: float = 4e-3,
        embedding_lr: float | None = None,
        head_lr: float | None = None,
        betas: tuple[float, float] = (0.8, 0.95),
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        block: int | None = None,
    ):
        self.block = block
        self.written = {
            id(weight) for name, weight in model.named_parameters() if name.endswith(("o_proj.weight", "down_proj.weight"))
        }
        looked_up = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
        heads = {id(module.weight) for name, module in model.named_modules() if name.endswith(("lm_head", "score"))} - looked_up
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        hidden = [p for p in trainable if p.ndim == 2 and id(p) not in looked_up | heads]
        inside = {id(p) for p in hidden}
        rates = {adamw_lr: [], embedding_lr or adamw_lr: [], head_lr or adamw_lr: []}  # one group a rate
        for p in trainable:
            if id(p) not in inside:
                rate = embedding_lr if id(p) in looked_up else head_lr if id(p) in heads else None
                rates[rate or adamw_lr].append(p)
        groups = [{"params": hidden, "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "muon": True}]
        groups += [{"params": ps, "lr": rate, "betas": betas, "eps": 1e-10, "muon": False} for rate, ps in rates.items()]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            (self._muon if group["muon"] else self._adamw)(group)
        return loss

    def _muon(self, group: dict) -> None:
        alike = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.shape, bool(self.block) and id(parameter) in self.written].append(parameter)
        for ((rows, columns), written), parameters in alike.items():
            gradients, momenta = [p.grad for p in parameters], []
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                momenta.append(self.state[parameter]["momentum"])
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
            updates = orthogonalise_together(updates, partial(self._orthogonal, by_column=written))
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            scale = max(1, rows / columns) ** 0.5
            torch._foreach_add_(parameters, [u.to(parameters[0].dtype) for u in updates], alpha=-group["lr"] * scale)

    def _orthogonal(self, stack: torch.Tensor, by_column: bool) -> torch.Tensor:
        return orthogonalise(stack.mT, self.block).mT if by_column else orthogonalise(stack, self.block)

    def _adamw(self, group: dict) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        for parameter in parameters:
            if not (state := self.state[parameter]):
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
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


def muon(model_args: ModelArguments, args: TrainingArguments) -> tuple[Callable, dict] | None:
    """The Trainer's `optimizer_cls_and_kwargs`: Muon with AdamW beside it, or None without `muon_learning_rate`.

    Raises:
        InputError: DeepSpeed, which flattens matrices into vectors before any optimizer of ours sees them.
    """
    if not model_args.muon_learning_rate:
        return None
    if args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        fix = "launch with accelerate_configs/fsdp2.yaml, or leave `muon_learning_rate` out"
        raise InputError("Muon needs matrices, and DeepSpeed flattens them", "muon_learning_rate", fix)
    factor = model_args.learning_rate_factor
    others = {"embedding_lr": model_args.embedding_learning_rate, "head_lr": model_args.head_learning_rate}
    rates = {"lr": model_args.muon_learning_rate, **{name: rate for name, rate in others.items() if rate}}
    rates = {name: rate * factor for name, rate in rates.items()}
    # For anything but an Optimizer class the Trainer calls it, and the result with the whole model and these arguments.
    return lambda: MuonAdamW, {
        **rates,
        "adamw_lr": args.learning_rate,
        "weight_decay": model_args.muon_weight_decay,
        "block": model_args.muon_block,
    }
