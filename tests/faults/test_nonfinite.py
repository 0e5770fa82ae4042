"""A step whose loss or gradient is no number changes nothing, and is told with its rows; too many of them end the run."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from groundup.order import Order
from recipes.miniature import interrupt
from safetensors.torch import load_file
from transformers import AutoTokenizer

from faults.test_preemption import weights_of

SKIPPED = 2
EACH_STEP = {"save_steps": 1, "eval_strategy": "no"}  # a checkpoint before and after
ONE_STEP = {"ppo": {"steps_per_generation": 1}}  # a rollout, or there would be none between its steps
RUNGS = ["pretrain", "sft", "reward", "dpo", "ppo", "grpo"]


def skipped(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "skipped.jsonl").read_text().splitlines()]


def history(directory) -> list[dict]:
    return json.loads((directory / "trainer_state.json").read_text())["log_history"]


def learned(checkpoint) -> dict[str, torch.Tensor]:
    """Weights and moments, and of PPO the critic's weights, as they were saved."""
    found = {}
    for name in ("model.safetensors", "critic.safetensors"):
        if (checkpoint / name).exists():
            found |= {f"{name}/{key}": tensor for key, tensor in load_file(checkpoint / name).items()}
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    for parameter, state in moments.items():
        found |= {f"{parameter}/{key}": value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return found


def assert_nothing_changed(directory, step) -> None:
    before, after, later = (learned(directory / f"checkpoint-{step + n}") for n in (-1, 0, 1))
    assert before.keys() == after.keys() == later.keys()
    assert not [name for name in before if not torch.equal(before[name], after[name])]
    assert [name for name in before if not torch.equal(after[name], later[name])]
    assert all(bool(tensor.isfinite().all()) for tensor in later.values())


@pytest.mark.parametrize("name", RUNGS)
def test_loss_that_is_no_number_is_left_out(name, rungs, start_recipe, tmp_path):
    settings = rungs.settings(name) | EACH_STEP | ONE_STEP.get(name, {})
    recipe = start_recipe(name, tmp_path / name, settings, f"from harm import spoil_loss; spoil_loss({SKIPPED})")
    assert recipe.wait() == 0, recipe.stderr
    assert_nothing_changed(recipe.directory, SKIPPED)
    (line,) = skipped(recipe.directory)
    assert line["step"] == SKIPPED and not all(math.isfinite(float(norm)) for norm in line["grad_norm"])
    assert len(line["rows"]) >= settings["per_device_train_batch_size"] / (4 if name == "grpo" else 1)
    assert all(row["row"] is not None for row in line["rows"]), line
    assert f"{name}: step {SKIPPED} is left out" in recipe.stdout and "steps left out 1" in recipe.stdout
    told = {line["step"]: line for line in history(recipe.directory) if "learning_rate" in line}
    assert "loss" not in told[SKIPPED]
    assert all(math.isfinite(line["loss"]) and line["loss"] for step, line in told.items() if step != SKIPPED)


def row_numbers(recipe, step=SKIPPED) -> list[int]:
    return [row["row"] for row in skipped(recipe.directory)[0]["rows"] if skipped(recipe.directory)[0]["step"] == step]


def test_rows_of_pretraining_are_those_of_its_order(rungs, start_recipe, tmp_path):
    whole, settings = rungs["pretrain"], rungs.settings("pretrain")
    prelude = "from harm import spoil_gradient; spoil_gradient(3)"
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    recipe = start_recipe("pretrain", tmp_path / "pretrain", settings | split | EACH_STEP, prelude)
    assert recipe.wait() == 0, recipe.stderr
    assert_nothing_changed(recipe.directory, 3)
    order = Order(len(whole.trainer.train_dataset), seed=0)
    assert row_numbers(recipe, 3) == [order[position] for position in range(8, 12)]


def test_rows_of_finetuning_are_those_that_were_read(rungs, start_recipe, tmp_path):
    settings = rungs.settings("sft")
    prelude = f"from harm import keep_ledger, spoil_gradient; keep_ledger({str(tmp_path / 'ledger')!r}); spoil_gradient({SKIPPED})"
    recipe = start_recipe("sft", tmp_path / "sft", settings | EACH_STEP, prelude)
    assert recipe.wait() == 0, recipe.stderr
    assert_nothing_changed(recipe.directory, SKIPPED)
    ledger = [json.loads(line) for line in (tmp_path / "ledger.0").read_text().splitlines()]
    (read,) = (line["rows"] for line in ledger if line["step"] == SKIPPED)
    tokenizer = AutoTokenizer.from_pretrained(recipe.directory)
    with open(settings["dataset"], encoding="utf-8") as file:
        conversations = [json.loads(line)["messages"] for line in file][: settings["max_rows"]]
    numbers = row_numbers(recipe)
    assert [tokenizer.apply_chat_template(conversations[n])["input_ids"] for n in numbers] == read


@pytest.mark.parametrize("of", ["critic", "model"])
def test_either_of_two_models_is_looked_at(of, rungs, start_recipe, tmp_path):
    settings = rungs.settings("ppo") | EACH_STEP | ONE_STEP["ppo"]
    prelude = f"from harm import spoil_gradient; spoil_gradient({SKIPPED}, of={of!r})"
    recipe = start_recipe("ppo", tmp_path / "ppo", settings, prelude)
    assert recipe.wait() == 0, recipe.stderr
    assert_nothing_changed(recipe.directory, SKIPPED)
    policy, critic = map(float, skipped(recipe.directory)[0]["grad_norm"])
    assert math.isfinite(policy) == (of == "critic") and math.isfinite(critic) == (of == "model")


def test_loss_without_a_gradient_to_match_is_left_out(rungs, start_recipe, tmp_path):
    recipe = start_recipe(
        "sft", tmp_path / "sft", rungs.settings("sft") | EACH_STEP, f"from harm import add_to_loss; add_to_loss({SKIPPED})"
    )
    assert recipe.wait() == 0, recipe.stderr
    assert_nothing_changed(recipe.directory, SKIPPED)
    (line,) = skipped(recipe.directory)
    assert line["loss"] == "inf" and math.isfinite(float(line["grad_norm"][0]))


def test_mean_that_is_logged_is_of_the_steps_that_were_applied(rungs, start_recipe, tmp_path):
    prelude, told = "from harm import spoil_loss; spoil_loss(1, 4)", []
    for every in (1, 3):
        settings = rungs.settings("pretrain") | {"logging_steps": every, "max_steps": 6, "eval_strategy": "no"}
        recipe = start_recipe("pretrain", tmp_path / str(every), settings, prelude)
        assert recipe.wait() == 0, recipe.stderr
        told.append(history(recipe.directory))
    single = {line["step"]: line["loss"] for line in told[0] if "loss" in line}
    assert single.keys() == {2, 3, 5, 6}
    means = {line["step"]: line["loss"] for line in told[1] if "loss" in line}
    assert means == pytest.approx({3: (single[2] + single[3]) / 2, 6: (single[5] + single[6]) / 2})
    assert [history[-1]["train_loss"] for history in told] == pytest.approx([sum(single.values()) / 4] * 2)


@pytest.mark.parametrize("name", ["pretrain", "ppo"])
def test_resumed_after_a_step_left_out_equals_uninterrupted(name, rungs, start_recipe, tmp_path):
    settings = rungs.settings(name) | EACH_STEP | ONE_STEP.get(name, {})
    prelude = f"from harm import spoil_loss; spoil_loss({SKIPPED})"
    whole = start_recipe(name, tmp_path / "whole", settings, prelude)
    assert whole.wait() == 0, whole.stderr
    assert weights_of(whole.directory) != weights_of(rungs[name].directory)
    for step in (1, 2):
        directory = interrupt(SimpleNamespace(directory=whole.directory), tmp_path / f"after-{step}", step)
        (directory / "skipped.jsonl").write_text((whole.directory / "skipped.jsonl").read_text())  # a kill would leave it
        resumed = start_recipe(name, directory, settings, prelude)
        assert resumed.wait() == 0, resumed.stderr
        assert weights_of(directory) == weights_of(whole.directory)
        assert skipped(directory) == skipped(whole.directory)
        assert history(directory)[-1]["skipped_steps"] == 1


def assert_diverged(recipe, what, kept) -> None:
    assert recipe.wait() == 1
    assert "Traceback" not in recipe.stderr
    told = recipe.stderr[recipe.stderr.index("error: ") :].splitlines()
    assert len(told) == 3 and what in told[0] and str(recipe.directory) in told[1] and kept in told[2], told
    assert (recipe.record["status"], recipe.record["exit_status"]) == ("failed", 1)
    assert recipe.record["reason"] == "\n".join(told).removeprefix("error: ")
    assert not (recipe.directory / "model.safetensors").exists()
    for checkpoint in recipe.directory.glob("checkpoint-*"):
        assert all(bool(tensor.isfinite().all()) for tensor in learned(checkpoint).values())


def test_too_many_in_a_row_end_the_run_and_it_goes_on_from_the_last_good_checkpoint(rungs, start_recipe, tmp_path):
    settings = rungs.settings("sft") | EACH_STEP | {"max_skipped_steps": 1}
    recipe = start_recipe("sft", tmp_path / "sft", settings, "from harm import spoil_loss; spoil_loss(2, 3)")
    what = "loss or gradient is no number in 2 steps in a row, up to step 3"
    assert_diverged(recipe, what, "the last good checkpoint is checkpoint-2")
    assert [line["step"] for line in skipped(recipe.directory)] == [2, 3]
    again = start_recipe("sft", tmp_path / "sft", settings)
    assert again.wait() == 0, again.stderr
    assert [line["step"] for line in skipped(recipe.directory)] == [2]  # the third was taken again, and was good


def test_nothing_saved_yet_is_said(rungs, start_recipe, tmp_path):
    settings = rungs.settings("sft") | {"max_skipped_steps": 0}
    recipe = start_recipe("sft", tmp_path / "sft", settings, "from harm import spoil_loss; spoil_loss(1)")
    assert_diverged(recipe, "in 1 steps in a row, up to step 1", "nothing was saved yet")


def test_as_many_not_in_a_row_do_not_end_it(rungs, start_recipe, tmp_path):
    settings = rungs.settings("sft") | {"max_skipped_steps": 1}
    recipe = start_recipe("sft", tmp_path / "sft", settings, "from harm import spoil_loss; spoil_loss(1, 3)")
    assert recipe.wait() == 0, recipe.stderr
    assert [line["step"] for line in skipped(recipe.directory)] == [1, 3]


@pytest.mark.parametrize("name", ["pretrain", "grpo"])
def test_weights_that_are_no_numbers_are_never_saved(name, rungs, start_recipe, tmp_path):
    settings = rungs.settings(name) | EACH_STEP | ONE_STEP.get(name, {})
    recipe = start_recipe(name, tmp_path / name, settings, "from harm import spoil_weights; spoil_weights(2)")
    assert_diverged(recipe, "holds numbers that are none at step 2", "the last good checkpoint is checkpoint-1")
    assert not (recipe.directory / "checkpoint-2").exists()


def test_all_processes_leave_out_what_one_cannot_use(rungs, start_pair, tmp_path):
    settings = rungs.settings("sft") | EACH_STEP | {"per_device_train_batch_size": 2}
    harm = f"from harm import keep_ledger, spoil_loss, add_to_loss; keep_ledger({str(tmp_path / 'ledger')!r})"
    second = f"{harm}; spoil_loss({SKIPPED}); add_to_loss(4)"
    pair = start_pair("sft", tmp_path / "sft", settings, harm, second)
    assert [recipe.wait() for recipe in pair] == [0, 0], pair[1].stderr
    assert_nothing_changed(tmp_path / "sft", SKIPPED)
    third, fourth = (learned(tmp_path / "sft" / f"checkpoint-{step}") for step in (3, 4))
    assert all(torch.equal(third[name], fourth[name]) for name in third)  # the loss alone, in the second process
    assert [line["step"] for line in skipped(tmp_path / "sft")] == [SKIPPED, 4]
    assert all(len({row["row"] for row in line["rows"]}) == 4 for line in skipped(tmp_path / "sft"))  # of both
