from types import SimpleNamespace

import pytest
from datasets import Dataset
from groundup.callbacks import ProgressLine, watch
from groundup.configs import RunArguments
from groundup.finite import SkipNonFinite
from groundup.saving import Saving
from groundup.stage import start
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback


def state(step=3, steps=10, first=True):
    return SimpleNamespace(global_step=step, max_steps=steps, is_world_process_zero=first)


def lines(capsys, monkeypatch, logs, **of):
    from groundup import callbacks

    clock = iter([100.0, 106.0])
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    line = ProgressLine()
    line.on_train_begin(None, state(step=1), None)
    line.on_log(None, state(**of), None, logs=logs)
    return capsys.readouterr().out


def test_line_says_where_the_run_stands(capsys, monkeypatch):
    logs = {"loss": 1.23456, "tokens_per_second": 12345.6, "mfu": 0.415, "epoch": 1.0, "learning_rate": 1e-3}
    said = lines(capsys, monkeypatch, logs, step=4, steps=64)
    # three steps in six seconds leave sixty more in two minutes
    assert said == "step 4/64  loss 1.235  tokens/s 12,346  MFU 41.5%  2:00 left\n"


def test_first_line_after_a_resumption_divides_by_nothing(capsys, monkeypatch):
    assert lines(capsys, monkeypatch, {"eval_loss": 1.0}, step=1) == "step 1/10  held-out loss 1.000  0:00 left\n"


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
    assert [kind for kind in kinds if kind.__module__.startswith("groundup.")] == [SkipNonFinite, ProgressLine, Saving]
