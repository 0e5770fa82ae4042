"""A run that was interrupted ends where it would have ended anyway."""

import json
import shutil

import pytest
import torch
from groundup.errors import InputError

from recipes.miniature import interrupt, run_recipe

STEP = {"pretrain": 2, "sft": 2, "reward": 2, "dpo": 2, "ppo": 2, "grpo": 3}  # grpo: in its second epoch of two steps


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", STEP)
def test_resumed_equals_uninterrupted(rungs, tmp_path, name, capsys):
    whole = rungs[name]
    directory = interrupt(whole, tmp_path / name, STEP[name])
    resumed = run_recipe(name, directory, **rungs.settings(name))
    assert f"{name}: going on from {directory}/checkpoint-{STEP[name]}" in capsys.readouterr().out
    assert resumed.record["status"] == "finished" and resumed.record["steps"] == whole.record["steps"]
    assert same(resumed.weights(), whole.weights())
    assert resumed.record["started"] == whole.record["started"]
    assert resumed.record["seconds"] >= whole.record["seconds"]  # of both parts
    if name == "ppo":
        assert same(resumed.trainer.critic.state_dict(), whole.trainer.critic.state_dict())
    if name in ("ppo", "grpo"):  # the part after the interruption says the same things
        told = [
            [
                (line["step"], line["reward"], line["completions/mean_length"])
                for line in t.trainer.state.log_history
                if "reward" in line
            ]
            for t in (resumed, whole)
        ]
        assert told[0] == told[1] and len(told[0]) >= 2


def test_interruption_before_the_first_checkpoint_starts_anew(rungs, tmp_path, capsys):
    directory = interrupt(rungs["sft"], tmp_path / "sft", 2)
    shutil.rmtree(directory / "checkpoint-2")
    again = run_recipe("sft", directory, **rungs.settings("sft"))
    assert "sft: going on from the beginning" in capsys.readouterr().out
    assert same(again.weights(), rungs["sft"].weights())


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("pretrain", {"learning_rate": 0.02}, "learning_rate: 0.01 -> 0.02"),
        ("sft", {"max_rows": 39}, "max_rows: 40 -> 39"),
        ("grpo", {"temperature": 0.9}, "temperature: 1.0 -> 0.9"),
    ],
)
def test_changed_settings_are_refused_with_the_difference(rungs, tmp_path, name, change, line):
    directory = interrupt(rungs[name], tmp_path / name, STEP[name])
    before = (directory / "run.json").read_text()
    with pytest.raises(InputError) as refused:
        run_recipe(name, directory, **{**rungs.settings(name), **change})
    assert line in str(refused.value) and refused.value.what.count(" -> ") == 1
    assert (directory / "run.json").read_text() == before
    assert not (directory / "model.safetensors").exists()


def test_how_a_step_is_split_may_change(rungs, tmp_path):
    whole = rungs["pretrain"]
    directory = interrupt(whole, tmp_path / "pretrain", 2)
    changed = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    resumed = run_recipe("pretrain", directory, **{**rungs.settings("pretrain"), **changed})
    assert resumed.record["tokens"] == whole.record["tokens"]
    told = [[line["loss"] for line in run.trainer.state.log_history if "loss" in line] for run in (resumed, whole)]
    assert told[0] == pytest.approx(told[1], rel=1e-4)


def test_another_number_of_rows_a_step_is_refused(rungs, tmp_path):
    directory = interrupt(rungs["pretrain"], tmp_path / "pretrain", 2)
    for batch, accumulation in ((2, 1), (4, 2)):
        changed = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        with pytest.raises(InputError) as refused:
            run_recipe("pretrain", directory, **{**rungs.settings("pretrain"), **changed})
        rows = batch * accumulation
        assert (
            f"4 rows a step (4 x 1 x 1), and this one has {rows} rows a step ({batch} x {accumulation} x 1)" in refused.value.what
        )
        assert "their product is 4" in refused.value.fix


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "grpo"])
def test_how_a_step_is_split_may_change_elsewhere(name, rungs, tmp_path):
    """The same rows a step; a rollout's tokens are drawn in other batches, and differ."""
    directory = interrupt(rungs[name], tmp_path / name, STEP[name])
    changed = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    if name == "grpo":
        changed = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    resumed = run_recipe(name, directory, **{**rungs.settings(name), **changed})
    told = [[line["loss"] for line in run.trainer.state.log_history if "loss" in line] for run in (resumed, rungs[name])]
    assert len(told[0]) == len(told[1])
    if name != "grpo":
        assert told[0] == pytest.approx(told[1], rel=1e-3)


def test_changed_rewards_are_refused(rungs, tmp_path):
    directory = interrupt(rungs["grpo"], tmp_path / "grpo", 3)
    with pytest.raises(InputError, match="rewards: "):
        run_recipe("grpo", directory, **{**rungs.settings("grpo"), "rewards": [{"name": "length", "max_words": 2}]})


def test_limits_on_faulty_rewards_may_change(rungs, tmp_path):
    """What stopped the run said to write others."""
    directory = interrupt(rungs["grpo"], tmp_path / "grpo", 3)
    resumed = run_recipe("grpo", directory, **{**rungs.settings("grpo"), "max_faulty_share": 0.5, "reward_timeout": 5.0})
    assert same(resumed.weights(), rungs["grpo"].weights())


def test_where_a_run_is_watched_may_change(rungs, tmp_path):
    directory = interrupt(rungs["sft"], tmp_path / "sft", 2)
    resumed = run_recipe("sft", directory, **{**rungs.settings("sft"), "run_name": "another"})
    assert same(resumed.weights(), rungs["sft"].weights())
    assert json.loads((directory / "run.json").read_text())["config"]["run_name"] == "another"
