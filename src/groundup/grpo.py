"""Rung 4: TRL's GRPOTrainer, with an order of prompts that survives a resumption, or a curriculum that does."""

import contextlib
import copy
import functools
import json
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import trl
from groundup import generation
from groundup.curriculum import Curriculum
from groundup.errors import InputError
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.utils import RepeatSampler

CURRICULUM_FILE = "curriculum.json"
PIECE, PIECE_CUDA = 512, 16384  # tokens that fill a processor
PASS = 0.5  # a reward above it is a pass: verifiers give 0 or 1


class EpochRepeatSampler(RepeatSampler):
    """`RepeatSampler` whose order is a function of (seed, epoch).

    TRL's advances one generator from epoch to epoch, so a run that resumes in epoch k >= 1 sees the order of epoch 0 again.
    """

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class GRPOTrainer(trl.GRPOTrainer):
    """`trl.GRPOTrainer` that resumes in the order it would have gone on in, and refuses a data set it would not train on.

    Args:
        curriculum: choose the prompts of each rollout by what has been solved so far, in place of the order of epochs.
        extra_rollouts: most rollouts made besides, to put groups that differ in place of those that do not (dynamic sampling: Yu
            et al. 2025, arXiv:2503.14476, section 3.2).

    Raises:
        InputError: fewer prompts than one generation batch, on which TRL succeeds with no step taken.
    """

    def __init__(self, *args, curriculum: bool = False, curriculum_rest: int = 20, extra_rollouts: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.curriculum, self.extra_rollouts, self._dry = None, extra_rollouts, False
        if curriculum or extra_rollouts:
            self._check_groups()
            answers = (
                self.train_dataset["answer"] if "answer" in self.train_dataset.column_names else [""] * len(self.train_dataset)
            )
            self.curriculum = Curriculum([answer is not None for answer in answers], self.args.seed, curriculum_rest)
        for judge in self.reward_funcs:
            if isinstance(judge, torch.nn.Module) and not self.is_sharded:
                judge.forward = functools.partial(by_length, judge.forward, self.args.per_device_train_batch_size)
        self._read: list[torch.Tensor] = []  # what `_score` last read off a pass besides
        prompts = self.args.generation_batch_size // self.num_generations
        if self.train_dataset is not None and len(self.train_dataset) < prompts:
            raise InputError(
                f"{len(self.train_dataset)} prompts do not fill one generation batch of {prompts}",
                fix="give more prompts, or lower `per_device_train_batch_size` or `steps_per_generation`",
            )

    @property
    def is_sharded(self) -> bool:
        """Whether every process must pass through the layers as often as the others, whatever its rows are."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        self._sampler = EpochRepeatSampler(
            data_source=sampler.data_source,
            mini_repeat_count=sampler.mini_repeat_count,
            batch_size=sampler.batch_size,
            repeat_count=sampler.repeat_count,
            shuffle=sampler.shuffle,
            seed=sampler.seed,
        )
        return self._sampler

    def _run_epoch(self, **kwargs):
        # accelerate does not pass set_epoch on to a sampler of its own kind
        if isinstance(self._sampler, EpochRepeatSampler) and self._sampler.shuffle:
            self._sampler.set_epoch(kwargs["epoch"])
        return super()._run_epoch(**kwargs)

    # -- choosing what is tried

    def _check_groups(self) -> None:
        size = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if size % self.num_generations:
            fix = "let `per_device_train_batch_size` x `steps_per_generation` be a multiple of `num_generations`"
            raise InputError(f"a device's {size} completions are no whole groups of {self.num_generations}", "curriculum", fix)

    def _generate_and_score_completions(self, inputs):
        if self.curriculum is None or self._dry or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        batch, differ = self._chosen_rollout(len(inputs))
        extra = 0
        while extra < self.extra_rollouts and not self.accelerator.gather(differ).all():  # on every process as often
            extra += 1
            more, good = self._chosen_rollout(len(inputs))
            batch, differ = replace_groups(batch, differ, more, good, self._tokenizer.pad_token_id)
        if extra:
            batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        for name, share in self.curriculum.shares().items():
            self._metrics["train"][f"curriculum/{name}"].append(share)
        self._metrics["train"]["curriculum/extra_rollouts"].append(float(extra))
        return batch

    def _chosen_rollout(self, rows: int) -> tuple[dict, torch.Tensor]:
        """A rollout of what the curriculum draws; and of each of this process's groups, whether it is worth training on: its
        rewards differ, or it is rehearsed."""
        k, process = self.num_generations, self.accelerator.process_index
        chosen = self.curriculum.draw(rows * self.accelerator.num_processes // k)
        mine = chosen[process * rows // k : (process + 1) * rows // k]
        batch = super()._generate_and_score_completions([self.train_dataset[row] for row in mine for _ in range(k)])
        passed = (self._rewards[:, 0] > PASS).float().view(-1, k).mean(1)
        self.curriculum.record(chosen, passed.tolist())
        totals = self._totals().view(-1, k)
        rehearsed = torch.tensor([not self.curriculum.tryable[row] for row in chosen], device=totals.device)
        differ = (totals.amax(1) - totals.amin(1) > 1e-6) | rehearsed
        return batch, differ[process * rows // k : (process + 1) * rows // k]

    def _checkpoint_folder(self, trial) -> Path:
        """The directory of this step's checkpoint, made if it is not there yet."""
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _save_checkpoint(self, model, trial):
        if self.curriculum and self.args.should_save:  # before super(), which writes what marks a checkpoint whole
            (self._checkpoint_folder(trial) / CURRICULUM_FILE).write_text(json.dumps(self.curriculum.state_dict()))
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.curriculum and checkpoint is not None:
            path = Path(checkpoint) / CURRICULUM_FILE
            try:
                self.curriculum.load_state_dict(json.loads(path.read_text()))
            except (OSError, ValueError, KeyError) as error:
                fix = "resume from another checkpoint, or start anew"
                raise InputError(f"the checkpoint's curriculum cannot be read: {error}", str(path), fix) from None

    # -- saying it, and scoring what was said

    def _generate_single_turn(self, *args, **kwargs):
        if self.is_sharded:
            return super()._generate_single_turn(*args, **kwargs)
        with generation.staged(self.accelerator.unwrap_model(self.model_wrapped)):
            return super()._generate_single_turn(*args, **kwargs)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **others
    ):
        """As the engine's, (B, T) each; see `_in_pieces`."""
        if others.pop("compute_aux_loss", False) or any(value is not None for value in others.values()):  # experts, images
            arguments = (model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy)
            return super()._get_per_token_logps_and_entropies(*arguments, **others)
        logps, entropies, *read = self._in_pieces(
            lambda ids, mask, length: self._score(model, ids, mask, length, compute_entropy),
            input_ids,
            attention_mask,
            logits_to_keep,
        )
        self._read = read or self._read
        return logps, entropies, None

    def _in_pieces(self, function, ids: torch.Tensor, mask: torch.Tensor, length: int) -> list[torch.Tensor | None]:
        """What `function(ids, mask, length)` says of the last `length` tokens, without computing what is padding alone.

        Rows of like length go through it together: without gradients in micro-batches of a training step's size, and with them,
        where the rows are one micro-batch, in pieces of at least PIECE tokens. Each is cut to its longest prompt and completion.
        `function` returns tensors (B, length) or None; what was cut off is 0.
        """
        rows, first = len(ids), ids.size(1) - length
        said = mask.bool()
        lengths = torch.stack([said[:, :first].sum(1), said[:, first:].sum(1)], 1).tolist()
        order = sorted(range(rows), key=lambda row: sum(lengths[row]))
        pieces = self._pieces([lengths[row] for row in order])
        found: list[tuple[torch.Tensor | None, ...]] = []
        for piece in pieces:
            some = order[piece]
            before, after = (max(1, *(lengths[row][part] for row in some)) for part in (0, 1))
            window = slice(first - before, first + after)
            which = torch.tensor(some, device=ids.device)
            parts = function(ids[which][:, window], mask[which][:, window], after)
            found.append(tuple(x if x is None else torch.nn.functional.pad(x, (0, length - after)) for x in parts))
        back = torch.argsort(torch.tensor(order, device=ids.device))
        return [None if parts[0] is None else torch.cat(parts)[back] for parts in zip(*found, strict=True)]

    def _pieces(self, lengths: list[tuple[int, int]]) -> list[slice]:
        """How to cut rows that are sorted by length."""
        rows = len(lengths)
        if not torch.is_grad_enabled():
            size = self.args.per_device_train_batch_size
            return [slice(start, start + size) for start in range(0, rows, size)]
        if self.is_sharded:
            return [slice(0, rows)]
        pieces, start = [], 0
        least = PIECE_CUDA if self.accelerator.device.type == "cuda" else PIECE
        for end in range(1, rows + 1):
            if (end - start) * sum(lengths[end - 1]) >= least or end == rows:
                pieces.append(slice(start, end))
                start = end
        return pieces

    def _score(self, model, ids, mask, length: int, compute_entropy: bool) -> tuple[torch.Tensor | None, ...]:
        """Log-probabilities and entropies of the last `length` tokens, (B, length); a subclass may read more off the same pass."""
        with unittest.mock.patch.object(trl.trainer.utils, "_use_triton", lambda device: True):
            return super()._get_per_token_logps_and_entropies(model, ids, mask, length, compute_entropy=compute_entropy)[:2]

    # -- looking before leaping

    def _calculate_rewards(self, inputs, *said):
        if self._dry:
            self._by_chance = self._graded_by_others(inputs, *said)
        rewards = super()._calculate_rewards(inputs, *said)  # gathered: (world x B, functions)
        faulty = rewards.new_zeros(len(rewards) // self.accelerator.num_processes, dtype=torch.bool)
        for function, weight in zip(self.reward_funcs, self.reward_weights.tolist(), strict=True):
            if weight:
                faulty[getattr(function, "at_fault", [])] = True  # groundup.guarding
        self._faulty = self.accelerator.gather(faulty)
        # With no reward at all TRL leaves a completion out of its group's mean and of the loss; with one missing it takes 0 for it.
        self._rewards = rewards.masked_fill(self._faulty.unsqueeze(1), torch.nan)
        return self._rewards

    def _graded_by_others(self, inputs: list[dict], *said) -> torch.Tensor:
        """The first reward of each completion by the answer to the next prompt, (world x B,); NaN where that is the same."""
        k, answers = self.num_generations, [row.get("answer") for row in inputs]
        others = answers[k:] + answers[:k]
        apart = [None not in pair and pair[0] != pair[1] for pair in zip(answers, others, strict=True)]
        swapped = [row | {"answer": other} for row, other in zip(inputs, others, strict=True)]
        tested = self.accelerator.gather(torch.tensor(apart, device=self.accelerator.device))
        if isinstance(self.reward_funcs[0], torch.nn.Module) or not tested.any():
            return torch.full(tested.shape, torch.nan)
        first = {name: getattr(self, name)[:1] for name in ("reward_funcs", "reward_processing_classes", "reward_func_names")}
        with unittest.mock.patch.multiple(self, **first):  # the others may be reward models, and are not asked
            return super()._calculate_rewards(swapped, *said)[:, 0].masked_fill(~tested, torch.nan)

    @torch.no_grad()
    def dry_rollout(self, inputs: list[dict]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Completions of this process's `inputs`, as a step would draw them, and nothing learned.

        Returns:
            Of all processes together, on the CPU: rewards (N, functions); whether each ended its turn (N,); and the first reward of
            each by another prompt's `answer` (N,), NaN where there is no other.
        """
        self._dry = True
        try:
            batch = self._generate_and_score_completions(inputs)
        finally:
            self._dry = False
        return self._rewards.cpu(), self.accelerator.gather(self._ended(batch)).cpu(), self._by_chance.cpu()

    def _totals(self) -> torch.Tensor:
        """The weighted rewards of the last rollout's completions, of all processes, (N,); one that does not apply is 0."""
        return (self._rewards * self.reward_weights.to(self._rewards.device)).nansum(1)

    def _ended(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Which completions end their turn, (B,)."""
        ids = batch["completion_ids"]
        return (torch.isin(ids, torch.tensor(self.eos_token_ids, device=ids.device)) & batch["completion_mask"].bool()).any(1)

    @contextlib.contextmanager
    def unnoticed(self) -> Iterator[None]:
        """Rollouts in here leave random numbers, counts and logs as they were."""
        seen, training = self.state.num_input_tokens_seen, self.model.training
        kept = copy.deepcopy((self._metrics, self._logs))
        devices = [self.accelerator.device.index or 0] if self.accelerator.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                self.model.train()  # the engine asks it which kind of rollout is meant
                yield
        finally:
            self.state.num_input_tokens_seen = seen
            self._metrics, self._logs = kept
            self.model.train(training)


def by_length(forward: Callable, size: int, **inputs: torch.Tensor) -> SequenceClassifierOutput:
    """A classifier's `forward` on inputs (B, L), rows of like length together, `size` at a time, without what is padding to all."""
    order, logits = inputs["attention_mask"].sum(1).argsort(), []
    for some in order.split(size):
        said = inputs["attention_mask"][some].any(0)
        logits.append(forward(**{name: tensor[some][:, said] for name, tensor in inputs.items()}).logits)
    return SequenceClassifierOutput(logits=torch.cat(logits)[order.argsort()])


def replace_groups(batch: dict, differ: torch.Tensor, more: dict, good: torch.Tensor, pad: int) -> tuple[dict, torch.Tensor]:
    """`batch` with its flat groups replaced, in order, by the good groups of `more`, as many as there are; and which differ now.

    Args:
        batch, more: rollouts, tensors of B rows; prompts (B, P) are padded on the left, what has the completions' length (B, T) on
            the right.
        differ, good: (groups,), which groups of either are worth training on.
    """
    slots, found = torch.nonzero(~differ).flatten(), torch.nonzero(good).flatten()
    slots = slots[: len(found)]
    if not len(slots):
        return batch, differ
    k = len(batch["completion_ids"]) // len(differ)
    taken = torch.arange(len(batch["completion_ids"]), device=differ.device)
    rows = (slots.unsqueeze(1) * k + torch.arange(k, device=differ.device)).flatten()
    theirs = (found[: len(slots)].unsqueeze(1) * k + torch.arange(k, device=differ.device)).flatten()
    taken[rows] = theirs + len(taken)  # rows of one rollout after the other
    merged = {}
    for name, tensor in batch.items():
        if not isinstance(tensor, torch.Tensor) or tensor.ndim == 0:
            merged[name] = tensor
            continue
        pair = [tensor, more[name]]
        if tensor.ndim == 2:
            longest, filler = max(x.size(1) for x in pair), pad if name.endswith("_ids") else 0
            missing = [longest - x.size(1) for x in pair]
            sides = [(n, 0) if name.startswith("prompt_") else (0, n) for n in missing]
            pair = [torch.nn.functional.pad(x, side, value=filler) for x, side in zip(pair, sides, strict=True)]
        merged[name] = torch.cat(pair)[taken]
    now = differ.clone()
    now[slots] = True
    return merged, now
