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
