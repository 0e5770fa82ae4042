from types import SimpleNamespace

import pytest
from datasets import Dataset
from groundup.callbacks import ProgressLine, watch
from groundup.configs import RunArguments
from groundup.finite import SkipNonFinite
from groundup.samples import Samples
from groundup.saving import Saving
from groundup.stage import start
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback


def state(step=3, steps=10, first=True):
    return SimpleNamespace(global_step=step, max_steps=steps, is_world_process_zero=first)


class Clock:
    """A line that is told what time it is: training begins at 100 s."""

    def __init__(self, monkeypatch, begins=1):
        from groundup import callbacks

        self.now, self.line = 100.0, ProgressLine()
        monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: self.now))
        for step in range(begins, begins + 3):  # only the first counts
            self.line.on_step_begin(None, state(step=step), None)

    def log(self, now, logs, **of):
        self.now = now
        self.line.on_log(None, state(**of), None, logs=logs)


def lines(capsys, monkeypatch, logs, **of):
    Clock(monkeypatch).log(106.0, logs, **of)
    return capsys.readouterr().out


def test_line_says_where_the_run_stands(capsys, monkeypatch):
    logs = {"loss": 1.23456, "tokens_per_second": 12345.6, "mfu": 0.415, "epoch": 1.0, "learning_rate": 1e-3}
    said = lines(capsys, monkeypatch, logs, step=4, steps=64)
    # three steps in six seconds leave sixty more in two minutes
    assert said == "step 4/64  loss 1.235  tokens/s 12,346  MFU 41.5%  0:02:00 left\n"
    # steps of the process before are not this one's: with evaluation or saving, whatever takes its time, 300 s for ten steps
    Clock(monkeypatch, begins=500).log(400.0, {"eval_loss": 1.0}, step=510, steps=1010)
    assert capsys.readouterr().out == "step 510/1010  held-out loss 1.000  4:10:00 left\n"


def test_tokens_a_second_where_only_tokens_are_counted(capsys, monkeypatch):
    def rates():
        return [line.split("  ")[2] for line in capsys.readouterr().out.splitlines()]

    begun = Clock(monkeypatch, begins=0)
    begun.log(110.0, {"loss": 1.0, "num_tokens": 5000.0})
    begun.log(114.0, {"loss": 1.0, "num_tokens": 9000.0})
    assert rates() == ["tokens/s 500", "tokens/s 1,000"]
    resumed = Clock(monkeypatch, begins=1)  # what was counted before is not of this process
    resumed.log(110.0, {"loss": 1.0, "num_tokens": 1e6})
    resumed.log(112.0, {"loss": 1.0, "num_tokens": 1e6 + 500})
    assert rates() == ["0:00:35 left", "tokens/s 250"]


def test_before_the_first_step_of_a_process_no_time_is_known(capsys, monkeypatch):
    assert lines(capsys, monkeypatch, {"eval_loss": 1.0}, step=1) == "step 1/10  held-out loss 1.000\n"
    ProgressLine().on_log(None, state(), None, logs={"eval_loss": 1.0})  # an evaluation that the run before was stopped in
    assert capsys.readouterr().out == "step 3/10  held-out loss 1.000\n"


@pytest.mark.parametrize(("logs", "of"), [({"epoch": 1.0}, {}), ({}, {}), (None, {}), ({"loss": 1.0}, {"first": False})])
def test_nothing_to_say(capsys, monkeypatch, logs, of):
    assert lines(capsys, monkeypatch, logs, **of) == ""


def trainer_of(model, directory, **settings):
    usual = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True}
    usual["logging_nan_inf_filter"] = False  # as stage.start sets it
    args = TrainingArguments(output_dir=str(directory), **{**usual, **settings})
    row = list(range(5, 15))
    return Trainer(model=model, args=args, train_dataset=Dataset.from_list([{"input_ids": row, "labels": row}] * 8))


@pytest.mark.parametrize("disable_tqdm", [False, True])
def test_watch_puts_ours_in_place_of_the_usual(tiny_model, tmp_path, disable_tqdm):
    trainer = trainer_of(tiny_model, tmp_path, disable_tqdm=disable_tqdm)
    usual = (ProgressCallback, PrinterCallback)
    assert any(type(callback) in usual for callback in trainer.callback_handler.callbacks)
    watch(trainer, start("pretrain", trainer.args), RunArguments())
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert not set(kinds) & set(usual)
    assert [kind for kind in kinds if kind.__module__.startswith("groundup.")] == [SkipNonFinite, ProgressLine, Samples, Saving]
