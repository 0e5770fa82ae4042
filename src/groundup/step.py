"""One step of each rung, as its trainer takes it: run on fake tensors it tells memory, on real ones time."""

import contextlib
import copy
import functools
import itertools
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from groundup.generation import generate
from groundup.head import summed_loss
from groundup.memory import LiveBytes, peak_of_step
from groundup.model import flops_per_token
from groundup.optim import MuonAdamW
from groundup.workload import Workload
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as TILE
from trl.trainer.utils import add_fused_lm_head

STATE = {  # optimizers of TrainingArguments: bytes of state a parameter
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "paged_adamw_8bit": 2,
    "paged_adamw_32bit": 8,
    "lion_32bit": 4,
    "lion_8bit": 1,
    "adafactor": 0,
    "sgd": 0,
    "adagrad": 4,
    "rmsprop": 4,
}

# Share of a block's activations that torch.compile keeps, recomputing the rest: of Qwen3, in float32 and in mixed precision, as
# torch's own partitioner chooses (tests/test_step.py counts).
COMPILED = {False: 0.73, True: 0.61}


class Step:
    """A rung's step on one device.

    Args:
        load: the rung.
        cuda: as it is computed on a GPU, where TRL's head works in tiles and padding is left out of the loss.
        rows, length: of a micro-batch; the workload's if not given.
        layers: fewer than the model has, to measure what one costs.
        dtype: of the weights; float32 as the recipes load them, or what FSDP and DeepSpeed compute in.
    """

    def __init__(self, load: Workload, cuda: bool, rows=None, length=None, layers=None, dtype=torch.float32):
        self.load, self.cuda, self.layers, self.dtype = load, cuda, layers, dtype
        self.rows, self.length = rows or load.micro, length or load.longest
        self.args = load.args
        mixed = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        self.autocast = mixed if dtype == torch.float32 else None

    # -- models

    def _config(self, config):
        if self.layers is None:
            return config
        config = copy.deepcopy(config)
        config.num_hidden_layers = self.layers
        if kinds := getattr(config, "layer_types", None):  # one a layer; a model of one layer is measured with two
            config.layer_types = list(itertools.islice(itertools.cycle(kinds), self.layers))
        return config

    def policy(self) -> nn.Module:
        kind = AutoModelForSequenceClassification if self.load.rung == "reward" else AutoModelForCausalLM
        config = self._config(self.load.model)
        if self.load.rung == "reward":
            config = copy.deepcopy(config)
            config.num_labels = 1
        model = kind.from_config(config, dtype=self.dtype).train()
        fused = {
            "sft": ("entropy", "is_top1") if self.cuda else None,
            "dpo": ("entropy", "mean_logits", "is_top1"),
            "ppo": ("entropy",),
            "grpo": ("entropy",),
        }
        if outputs := fused.get(self.load.rung):
            add_fused_lm_head(model, outputs=("log_probs", *outputs))
        if self.args.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    def others(self) -> list[nn.Module]:
        """The other models of DPO, PPO and GRPO: a critic is trained, the rest is held."""
        made = []
        for role, config in self.load.others:
            kind = AutoModelForCausalLM if role == "ref" else AutoModelForSequenceClassification
            config = copy.deepcopy(self._config(config))
            if role != "ref":
                config.num_labels = 1
            made.append(kind.from_config(config, dtype=self.dtype).train().requires_grad_(role == "critic"))
        return made

    def models(self) -> list[nn.Module]:
        return [self.policy(), *self.others()]

    @functools.cached_property
    def outline(self) -> list[nn.Module]:
        """The models on the meta device, where they take no memory and can be counted."""
        with torch.device("meta"):
            return self.models()

    # -- loss

    def loss(self, policy: nn.Module, *others: nn.Module) -> Tensor:
        """What the trainer differentiates, of a batch of one token over and over."""
        rows = self.rows * self.load.sides
        ids = torch.full((rows, self.length), 5, dtype=torch.long, device=policy.device)
        if self.load.rung == "pretrain":
            return self._pretraining_loss(policy, ids)
        mask = torch.ones_like(ids)
        if self.load.rung == "reward":
            chosen, rejected = policy(input_ids=ids, attention_mask=mask).logits.squeeze(-1).chunk(2)
            return -nn.functional.logsigmoid(chosen - rejected).mean()
        if self.load.rung == "sft" and not self.cuda:
            return policy(input_ids=ids, attention_mask=mask, labels=ids).loss
        outputs = policy(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True)
        loss = -outputs.log_probs.sum()
        for other in others:
            trunk = getattr(other, other.base_model_prefix)
            if any(p.requires_grad for p in other.parameters()):
                values = other.score(trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state)
                loss = loss + values.float().square().sum()
            elif self.load.rung == "dpo":  # its reference reads what it reads
                with torch.no_grad():
                    trunk(input_ids=ids, attention_mask=mask, use_cache=False)
        return loss

    def _pretraining_loss(self, policy: nn.Module, ids: Tensor) -> Tensor:
        extra: dict[str, Any] = {"use_cache": False}
        if self.load.packing == "best_fit":
            extra["position_ids"] = torch.arange(self.length, device=ids.device).repeat(self.rows, 1)
        if not self.load.settings.chunked_loss:
            return policy(input_ids=ids, labels=ids, **extra).loss
        hidden = policy.base_model(input_ids=ids, **extra).last_hidden_state
        return summed_loss(hidden, policy.get_output_embeddings().weight, ids, self.load.settings.z_loss, self.cuda)

    @contextlib.contextmanager
    def _as_real(self) -> Iterator[None]:
        """What looks into tensors, or at the device, does as it would in the run."""
        swaps: dict[str, Any] = {}
        if self.load.rung == "pretrain" and self.load.packing == "wrapped":  # rows without seams need no mask
            swaps["transformers.masking_utils.find_packed_sequence_indices"] = lambda position_ids: None
        if self.cuda:  # a kernel folds TRL's tiles of logits in place; what stands in for it on a CPU makes copies
            swaps["trl.kernels.chunked_logprob._forward_tile"] = lambda *_, **__: None
            swaps["trl.kernels.chunked_logprob._backward_tile"] = lambda *_, **__: None
        else:  # the part of a tile that lies beyond the vocabulary is never touched, so it is no memory
            swaps["trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE"] = min(TILE, self.load.model.vocab_size)
        with contextlib.ExitStack() as stack:
            for name, stand_in in swaps.items():
                stack.enter_context(mock.patch(name, stand_in))
            yield

    # -- optimizer

    @property
    def _muon(self) -> bool:
        return self.load.rung == "pretrain" and bool(self.load.settings.muon_learning_rate)

    def optimizer(self, models: list[nn.Module]) -> torch.optim.Optimizer | int | None:
        """The optimizer, or the bytes a parameter of its state; None where neither is known."""
        name = self.args.optim.value
        if self._muon:
            return MuonAdamW(models[0], block=self.load.settings.muon_block)
        if name.startswith("adamw_torch"):
            return torch.optim.AdamW([p for model in models for p in _trained(model)], fused=name.endswith("fused"))
        return STATE.get(name)

    def optimizer_state(self) -> int | None:
        """Bytes of the optimizer's state; None where the optimizer is not known."""
        if self._muon:
            return sum((4 if g["muon"] else 8) * p.numel() for g in MuonAdamW(self.outline[0]).param_groups for p in g["params"])
        state = STATE.get(self.args.optim.value)
        return None if state is None else state * self.parameters()[1]

    def parameters(self) -> tuple[int, int, int]:
        """(of the policy, trained, of all models)."""
        count = [sum(p.numel() for p in model.parameters()) for model in self.outline]
        return count[0], sum(p.numel() for model in self.outline for p in _trained(model)), sum(count)

    # -- what it takes

    def memory(self, state: bool = True) -> dict[str, int]:
        """Peak bytes by part (groundup.memory.PARTS); without the optimizer's if not `state`."""
        with self._as_real():
            found = peak_of_step(
                self.models,
                self.loss,
                lambda models: (self.optimizer(models) or 0) if state else 0,
                self.load.model.vocab_size,
                self.autocast,
                self.load.accumulation,
                heap=not self.cuda,
            )
        if self.args.torch_compile and not self.args.gradient_checkpointing:
            found["activations"] = int(found["activations"] * COMPILED[self.autocast is not None])
        return found

    def generation_memory(self) -> dict[str, int]:
        """The same while completions are generated: at the end, with all keys and values, or after the prompts, if that is more."""
        load, state = self.load, self.optimizer_state() or 0
        with FakeTensorMode():
            models = self.models()
            models[0].gradient_checkpointing_disable()  # as TRL does to generate
            live = LiveBytes(load.model.vocab_size, heap=not self.cuda)
            for tensor in (p for model in models for p in model.parameters()):
                live.count(tensor, "weights")
            kept = torch.empty(state, dtype=torch.uint8)
            live.count(kept, "optimizer")
            ids = torch.zeros(load.rollout, load.prompt, dtype=torch.long)
            before = live.now.total()
            with live, torch.no_grad(), torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
                mask = torch.ones_like(ids)
                cache = models[0](input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1).past_key_values
                held = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values))
        found = {"weights": live.now["weights"], "optimizer": live.now["optimizer"]}
        full = held * load.length // load.prompt
        full += full // load.model.num_hidden_layers  # a layer's are copied when rows leave
        if full > live.peak.total() - before:
            return {**found, "cache": full, "logits": 3 * 4 * load.rollout * load.model.vocab_size}
        return {**found, "cache": held, "activations": live.peak.total() - before - held}


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


# Timing --------------------------------------------------------------------------------------------------------------

TIMED = 8  # tokens of a generation that is timed
REPEATS = 3  # the fastest counts: what slows one down is the machine's other work


def measure(step: Step, budget: float) -> tuple[float, float]:
    """Seconds on this CPU of a micro-batch forward and backward, and of the optimizer's step, of `step`'s model in the mean length.

    A pass of more than `budget` FLOPs is timed on one layer and on two, and on fewer rows: t(layers) is a line, and t(rows) is
    taken to be one through zero.
    """
    load = step.load
    parameters = step.parameters()[1]
    work = load.micro * load.sides * load.length * step_flops(load, parameters, load.length)
    with torch.random.fork_rng():  # the run itself will draw from this generator
        if work <= budget:
            return _time(Step(load, cuda=False, length=load.length))
        small = Step(load, cuda=False, length=load.length, layers=2).parameters()[1]
        rows = max(1, int(load.micro * min(1.0, budget / work * parameters / small)))
        one, two = (_time(Step(load, cuda=False, rows=rows, length=load.length, layers=layers)) for layers in (1, 2))
    forward, update = _of_all_layers(load, one, two)
    return forward * load.micro / rows, update


def _of_all_layers(load: Workload, one: tuple[float, float], two: tuple[float, float]) -> list[float]:
    """What takes so long with one layer, and so long with two."""
    more = load.model.num_hidden_layers - 1
    return [first + more * max(0.0, second - first) for first, second in zip(one, two, strict=True)]


def _time(step: Step) -> tuple[float, float]:
    """The fastest of REPEATS after a first one that allocates."""
    times: tuple[list[float], list[float]] = ([], [])
    models = step.models()
    optimizer = step.optimizer(models)
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", step.autocast, enabled=step.autocast is not None):
            loss = step.loss(*models)
        loss.backward()
        between = time.perf_counter()
        if isinstance(optimizer, torch.optim.Optimizer):
            optimizer.step()
        for model in models:
            model.zero_grad(set_to_none=True)
        times[0].append(between - start)
        times[1].append(time.perf_counter() - between)
    return min(times[0][1:]), min(times[1][1:])


def measure_generation(step: Step, budget: float) -> float:
    """Seconds in which this CPU generates one batch of completions; fewer rows, tokens and layers are timed, as in `measure`."""
    load = step.load
    with torch.random.fork_rng():
        work = 2.0 * step.parameters()[0] * load.rollout * (load.prompt + TIMED)
        rows = max(1, int(load.rollout * min(1.0, budget / work)))
        if load.model.num_hidden_layers <= 8:
            prefill, token = _time_generation(Step(load, cuda=False), rows)
        else:
            one, two = (_time_generation(Step(load, cuda=False, layers=layers), rows) for layers in (1, 2))
            prefill, token = _of_all_layers(load, one, two)
    return (prefill + load.completion * token) * load.rollout / rows


def _time_generation(step: Step, rows: int) -> tuple[float, float]:
    """Seconds for the prompts, and for a token of each row after them, from generations of two lengths."""
    load = step.load
    times: dict[int, list[float]] = {2: [], 2 + TIMED: []}
    policy = step.policy()
    policy.gradient_checkpointing_disable()
    policy.generation_config = GenerationConfig()  # no row ends before the others
    prompts = torch.arange(rows) // load.args.num_generations % load.model.vocab_size  # each read once
    ids = prompts.unsqueeze(1).expand(rows, load.prompt).contiguous()
    with torch.no_grad(), torch.autocast("cpu", step.autocast, enabled=step.autocast is not None):
        for _ in range(REPEATS):
            for tokens, seconds in times.items():
                start = time.perf_counter()
                config = GenerationConfig(max_new_tokens=tokens, do_sample=True, pad_token_id=0)
                generate(policy, ids, torch.ones_like(ids), config)
                seconds.append(time.perf_counter() - start)
    short, long = (min(seconds) for seconds in times.values())
    token = max(0.0, long - short) / TIMED
    return max(0.0, short - 2 * token), token


# Arithmetic ----------------------------------------------------------------------------------------------------------


def step_flops(load: Workload, parameters: int, length: int) -> float:
    """FLOPs a token of a training step, the pass that activation checkpointing repeats included."""
    again = 4 / 3 if load.args.gradient_checkpointing else 1.0
    return again * flops_per_token(load.model, parameters, length)


def key_value_bytes(config: Any, size: int) -> int:
    """Bytes of keys and values a token, in numbers of `size` bytes."""
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * size
