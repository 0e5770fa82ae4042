"""Curves in trackio, read back from its database; and a run that none of its troubles touches."""

import re
import socket
from types import SimpleNamespace

import pytest
import torch
import trackio
from datasets import Dataset
from groundup import record
from groundup.callbacks import watch
from groundup.configs import RunArguments
from groundup.running import Run
from groundup.tracking import Tracking
from transformers import Trainer, TrainingArguments
from transformers.integrations import TrackioCallback

RUN = "sft-20260102030405"
STARTED = "2026-01-02T03:04:05+00:00"


@pytest.fixture
def train(tiny_model, tmp_path, request):
    """`train(**settings)`: three steps in the stage directory sft of a ladder of this test's own name; and the trainer."""
    ladder = re.sub(r"\W", "", request.node.name)[:60]

    def train(started=STARTED, **settings):
        directory = tmp_path / ladder / "sft"
        usual = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "report_to": "trackio"}
        args = TrainingArguments(str(directory), logging_nan_inf_filter=False, **{**usual, **settings})
        row = list(range(5, 15))
        torch.manual_seed(0)
        rows = Dataset.from_list([{"input_ids": row, "labels": row}] * 32)
        trainer = Trainer(model=tiny_model, args=args, train_dataset=rows)
        entry = {"rung": "sft", "started": started, "seconds": 0.0}
        record.write(directory, entry)
        run = Run(directory, entry, None)
        watch(trainer, run, RunArguments(show_samples=0))
        trainer.train(resume_from_checkpoint=settings.get("resume_from_checkpoint"))
        return trainer

    return SimpleNamespace(run=train, ladder=ladder)


def curves(project):
    """Run -> its log lines, from the database."""
    found = trackio.Api().runs(project)
    return {run.name: trackio.SQLiteStorage.get_logs(project, run.name) for run in found}


def test_values_at_their_steps_under_the_name_of_ladder_and_rung(train, capsys):
    trainer = train.run()
    assert f"sft: curves: trackio show --project {train.ladder}   (run {RUN})\n" in (said := capsys.readouterr().out)
    assert "* " not in said and "\x1b" not in said  # trackio's own seven lines
    (run, lines), *others = curves(train.ladder).items()
    assert run == RUN and others == []
    losses = {line["step"]: line["loss"] for line in trainer.state.log_history if "loss" in line}
    assert {line["step"]: line["train/loss"] for line in lines if "train/loss" in line} == losses and len(losses) == 3
    assert not any("runtime" in name for line in lines for name in line)
    assert trainer.args.run_name is None and trainer.args.project == TrainingArguments.project  # a checkpoint holds these


def test_what_resumes_goes_on_in_the_same_run(train):
    first = train.run(max_steps=2, save_strategy="steps", save_steps=2)
    train.run(max_steps=4, resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-2")
    ((run, lines),) = curves(train.ladder).items()
    assert run == RUN and [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]


def test_a_directory_begun_anew_is_another_run_and_names_of_ones_own_hold(train):
    short = {"max_steps": 1}
    train.run(**short)
    train.run("2026-02-02T03:04:05+00:00", **short)
    train.run(project=f"{train.ladder}-other", run_name="mine", **short)
    assert set(curves(train.ladder)) == {RUN, "sft-20260202030405"} and set(curves(f"{train.ladder}-other")) == {"mine"}


def test_a_run_that_is_cut_off_has_its_curve_and_is_not_said_to_have_finished(train, monkeypatch, capsys):
    at_exit = []
    monkeypatch.setattr("groundup.tracking.atexit.register", at_exit.append)

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise SystemExit(75)

    monkeypatch.setattr("groundup.samples.Samples.on_step_begin", stop, raising=False)
    with pytest.raises(SystemExit):
        train.run()
    (close,) = [function for function in at_exit if getattr(function, "__self__", None).__class__ is Tracking]
    close()
    assert [line["step"] for line in curves(train.ladder)[RUN] if "train/loss" in line] == [1, 2]
    assert "finished" not in capsys.readouterr().out.lower()
    assert trackio.context_vars.current_run.get() is None  # nothing is left to trackio's own


@pytest.mark.parametrize("what", ["init", "log", "finish"])
def test_a_tracker_in_trouble_is_no_end(train, monkeypatch, capsys, what):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trackio, what, fail)
    trainer = train.run()
    assert trainer.state.global_step == 3
    told = {"init": "begin", "log": "log", "finish": "end"}[what]
    said = capsys.readouterr().out
    assert said.count(f"sft: no more curves: trackio could not {told}: OSError: [Errno 28] No space left on device\n") == 1
    assert said.count("no more curves") == 1


def test_only_the_first_process_tracks(train, monkeypatch):
    began = []
    monkeypatch.setattr(trackio, "init", lambda **settings: began.append(settings))
    run = Run(None, {"rung": "sft", "started": STARTED, "seconds": 0.0}, None)
    run.directory = SimpleNamespace(absolute=lambda: SimpleNamespace(parent=SimpleNamespace(name="nano")), name="sft")
    callback, state = Tracking(run), SimpleNamespace(is_world_process_zero=False, global_step=1)
    args = TrainingArguments("unused", use_cpu=True)
    monkeypatch.setenv("RANK", "1")
    callback.on_train_begin(args, state, None)
    callback.on_log(args, state, None, logs={"loss": 1.0})
    callback.on_train_end(args, state, None)
    assert began == []


def test_nothing_goes_to_the_network(train, monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"a connection to {address}")

    tried = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: tried.append(address) or refuse(self, address))
    monkeypatch.setenv("HF_TOKEN", "hf_x")  # one who is logged in
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    trainer = train.run()
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, TrackioCallback)]
    callback.on_push_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)  # upstream makes a Space here
    assert tried == [] and set(curves(train.ladder)) == {RUN}


def test_without_a_tracker_nothing_is_tracked(train, capsys):
    trainer = train.run(report_to="none")
    assert not any(isinstance(callback, TrackioCallback) for callback in trainer.callback_handler.callbacks)
    assert "curves" not in capsys.readouterr().out
