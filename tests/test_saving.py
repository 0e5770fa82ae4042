"""When a run is saved and how, on a Trainer of transformers' own; the recipes' signals and disks are in faults/."""

import errno
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from groundup import record
from groundup.checkpoint import MANIFEST, checkpoints, damage
from groundup.errors import InputError, Preempted, RunError
from groundup.saving import Saving, check_finite, check_split, room_for, size_of_checkpoint, split_of
from groundup.stage import start
from groundup.stopping import STOP
from test_callbacks import trainer_of
from transformers import TrainerCallback


@pytest.fixture(autouse=True)
def nobody_asked(monkeypatch):
    monkeypatch.setattr(STOP, "asked", None)
    monkeypatch.setattr(STOP, "deferred", False)


@pytest.fixture
def saved(tiny_model, tmp_path):
    """`saved(*others, **settings)`: a trainer that saves as ours do, with callbacks before ours."""

    def build(*others, **settings):
        trainer = trainer_of(tiny_model, tmp_path / "run", **{"save_strategy": "steps", "save_steps": 1, **settings})
        for callback in others:
            trainer.add_callback(callback)
        trainer.add_callback(Saving(trainer, start("pretrain", trainer.args)))
        return trainer

    return build


class Asks(TrainerCallback):
    """A signal's arrival, at the end of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            STOP.asked = "SIGTERM"


def names(directory):
    return [path.name for _, path in checkpoints(directory)]


def test_all_that_is_saved_is_sealed_with_its_split_and_the_oldest_go(saved, tmp_path):
    trainer = saved(save_total_limit=2)
    trainer.train()
    directory = tmp_path / "run"
    assert names(directory) == ["checkpoint-2", "checkpoint-3"]
    assert [damage(path) for _, path in checkpoints(directory)] == [None, None]
    split = json.loads((directory / "checkpoint-3" / MANIFEST).read_text())["split"]
    assert split == {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "processes": 1}
    assert record.read(directory)["saved_step"] == 3


def test_who_is_asked_to_stop_saves_first(saved, tmp_path):
    trainer = saved(Asks(2), save_steps=100)
    with pytest.raises(Preempted):
        trainer.train()
    assert names(tmp_path / "run") == ["checkpoint-2"] and damage(tmp_path / "run" / "checkpoint-2") is None
    assert record.read(tmp_path / "run")["saved_step"] == 2


def test_signal_is_noted_only_while_it_trains(saved):
    trainer = saved(save_strategy="no")
    assert not STOP.deferred
    trainer.train()
    assert STOP.deferred


@pytest.mark.parametrize(
    ("accumulation", "a_rollout", "passes", "ends"),
    [(1, 1, 1, [1, 2, 3, 4, 5]), (1, 2, 1, [2, 4, 5]), (2, 2, 1, [1, 2, 3, 4, 5]), (1, 1, 3, [3, 5]), (2, 4, 2, [4, 5])],
)
def test_steps_that_end_a_rollout(saved, accumulation, a_rollout, passes, ends):
    trainer = saved()
    saving = trainer.callback_handler.callbacks[-1]
    settings = {"gradient_accumulation_steps": accumulation, "steps_per_generation": a_rollout, "num_iterations": passes}
    saving.trainer = SimpleNamespace(args=SimpleNamespace(**settings), state=SimpleNamespace(max_steps=5))
    saving.generates = True
    assert [step for step in range(1, 6) if saving.can_go_on_from(step)] == ends
    saving.generates = False
    assert all(saving.can_go_on_from(step) for step in range(1, 6))


def test_save_that_falls_into_a_rollout_waits_for_its_end(saved, tmp_path, monkeypatch):
    trainer = saved(save_steps=1)
    saving = trainer.callback_handler.callbacks[-1]
    monkeypatch.setattr(saving, "can_go_on_from", lambda step: step == 2)
    trainer.train()
    assert names(tmp_path / "run") == ["checkpoint-2"]


def test_weights_that_are_no_numbers_are_refused(saved, tmp_path):
    trainer = saved()
    check_finite(trainer.model, 1, tmp_path)
    trainer.train()
    trainer.model.model.norm.weight.data[0] = torch.inf
    with pytest.raises(RunError, match=r"`model.norm.weight` holds numbers that are none at step 7") as refused:
        check_finite(trainer.model, 7, tmp_path / "run")
    assert "the last good checkpoint is checkpoint-3" in refused.value.fix


def test_size_is_that_of_weights_and_moments(saved, tmp_path):
    trainer = saved()
    trainer.train()
    files = [tmp_path / "run" / "checkpoint-3" / name for name in ("model.safetensors", "optimizer.pt")]
    assert size_of_checkpoint(trainer) == pytest.approx(sum(path.stat().st_size for path in files), rel=0.2)


def disk(monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**40, used=0, free=free))


def test_no_room_is_seen_before_it_is_written(saved, tmp_path, monkeypatch):
    trainer = saved()
    disk(monkeypatch, 1000)
    with pytest.raises(RunError, match="no room for checkpoint-1: it needs .* and the disk has") as ended:
        trainer.train()
    assert "nothing was saved yet" in ended.value.fix and names(tmp_path / "run") == []
    with room_for(tmp_path / "run" / "checkpoint-1", 1000, main=True):
        pass


def test_disk_that_fills_up_leaves_no_part_of_a_checkpoint(saved, tmp_path, monkeypatch):
    trainer = saved()
    scheduler = trainer._save_optimizer_and_scheduler

    def full(folder):
        if "checkpoint-2" in str(folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        scheduler(folder)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(RunError, match="no room for checkpoint-2") as ended:
        trainer.train()
    assert "checkpoint-1 is whole" in ended.value.fix and names(tmp_path / "run") == ["checkpoint-1"]


def test_another_error_is_not_called_a_full_disk(saved, monkeypatch):
    trainer = saved()

    def fail(folder):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", fail)
    with pytest.raises(OSError, match="Permission denied"):
        trainer.train()


@pytest.mark.parametrize(
    ("rows", "batch", "by_position", "refused"),
    [(8, 4, False, False), (9, 4, False, True), (9, 8, False, False), (9, 4, True, False)],
)
def test_split_may_change_where_an_epoch_is_whole_steps(saved, tmp_path, rows, batch, by_position, refused):
    trainer = saved()
    trainer.train()  # in batches of 8
    trainer.train_dataset = list(range(rows))
    trainer.args.ignore_data_skip = by_position
    trainer.args.per_device_train_batch_size = batch
    trainer.args.gradient_accumulation_steps = 8 // batch
    run = SimpleNamespace(checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert split_of(trainer.args)["per_device_train_batch_size"] == batch
    if refused:
        with pytest.raises(InputError, match="9 rows are no whole number of steps of 8"):
            check_split(trainer, run)
    else:
        check_split(trainer, run)
        check_split(trainer, SimpleNamespace(checkpoint=None))
