"""Rung 4: TRL's GRPOTrainer, with an order of prompts that survives a resumption."""

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
