"""Rung 4: TRL's GRPOTrainer, with an order of prompts that survives a resumption."""

import contextlib
import copy
from collections.abc import Iterator

import torch
import trl
from groundup.errors import InputError
from trl.trainer.utils import RepeatSampler


class EpochRepeatSampler(RepeatSampler):
    """`RepeatSampler` whose order is a function of (seed, epoch).

    TRL's advances one generator from epoch to epoch, so a run that resumes in epoch k >= 1 sees the order of epoch 0 again.
    """

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class GRPOTrainer(trl.GRPOTrainer):
    """`trl.GRPOTrainer` that resumes in the order it would have gone on in, and refuses a data set it would not train on.

    Raises:
        InputError: fewer prompts than one generation batch, on which TRL succeeds with no step taken.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._read: list[torch.Tensor] = []  # what `_score` last read off a pass besides
        prompts = self.args.generation_batch_size // self.num_generations
        if self.train_dataset is not None and len(self.train_dataset) < prompts:
            raise InputError(
                f"{len(self.train_dataset)} prompts do not fill one generation batch of {prompts}",
                fix="give more prompts, or lower `per_device_train_batch_size` or `steps_per_generation`",
            )

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

    # -- scoring what was said

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

        Without gradients, rows of like length go through it together, in micro-batches of a training step's size; each is cut to
        its longest prompt and completion. `function` returns tensors (B, length) or None; what was cut off is 0.
        """
        rows, first = len(ids), ids.size(1) - length
        said = mask.bool()
        lengths = torch.stack([said[:, :first].sum(1), said[:, first:].sum(1)], 1).tolist()
        size = rows if torch.is_grad_enabled() else min(rows, self.args.per_device_train_batch_size)
        order = sorted(range(rows), key=lambda row: sum(lengths[row])) if size < rows else list(range(rows))
        found: list[tuple[torch.Tensor | None, ...]] = []
        for start in range(0, rows, size):
            some = order[start : start + size]
            before, after = (max(1, *(lengths[row][part] for row in some)) for part in (0, 1))
            window = slice(first - before, first + after)
            which = slice(None) if size == rows else torch.tensor(some, device=ids.device)
            parts = function(ids[which][:, window], mask[which][:, window], after)
            found.append(tuple(x if x is None else torch.nn.functional.pad(x, (0, length - after)) for x in parts))
        back = torch.argsort(torch.tensor(order, device=ids.device))
        return [None if parts[0] is None else torch.cat(parts)[back] for parts in zip(*found, strict=True)]

    def _score(self, model, ids, mask, length: int, compute_entropy: bool) -> tuple[torch.Tensor | None, ...]:
        """Log-probabilities and entropies of the last `length` tokens, (B, length); a subclass may read more off the same pass."""
        return super()._get_per_token_logps_and_entropies(model, ids, mask, length, compute_entropy=compute_entropy)[:2]

    # -- looking before leaping

    def _calculate_rewards(self, *args, **kwargs):
        self._rewards = super()._calculate_rewards(*args, **kwargs)  # gathered: (world x B, functions)
        return self._rewards

    @torch.no_grad()
    def dry_rollout(self, inputs: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """Completions of this process's `inputs`, as a step would draw them, and nothing learned.

        Returns:
            Of all processes together: rewards (N, functions), and whether each ended its turn (N,), both on the CPU.
        """
        batch = self._generate_and_score_completions(inputs)
        stops = torch.tensor(self.eos_token_ids, device=batch["completion_ids"].device)
        ended = (torch.isin(batch["completion_ids"], stops) & batch["completion_mask"].bool()).any(1)
        return self._rewards.cpu(), self.accelerator.gather(ended).cpu()

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
