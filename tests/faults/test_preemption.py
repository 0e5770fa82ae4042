"""A run that is asked to stop saves, says so with its exit status, and goes on to the weights it would have had."""

import hashlib
import json
import signal

import pytest

from faults.conftest import processes_of, wait_until

STEP = "transformers:Trainer.training_step"


def weights_of(directory) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def evaluations(directory) -> list[dict]:
    """What was measured on held-out rows, and when; without how long it took."""
    history = json.loads((directory / "trainer_state.json").read_text())["log_history"]
    took = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    return [{key: value for key, value in line.items() if key not in took} for line in history if "eval_loss" in line]


def assert_saved(recipe, step, why="SIGTERM") -> None:
    """It ended well, in the middle: saved and said so, with nothing that looks finished."""
    assert recipe.wait() == 75, recipe.stderr
    assert recipe.record["saved_step"] == step
    assert recipe.stderr.strip().endswith(f"{why}: saved step {step}; run the same command to go on")
    assert (recipe.record["status"], recipe.record["exit_status"], recipe.record["reason"]) == ("interrupted", 75, why)
    assert not (recipe.directory / "model.safetensors").exists()
    assert (recipe.directory / f"checkpoint-{step}" / "MANIFEST.json").exists()


def assert_goes_on(recipe, step) -> None:
    assert recipe.wait() == 0, recipe.stderr
    assert f"going on from {recipe.directory}/checkpoint-{step}" in recipe.stdout
    assert recipe.record["status"] == "finished" and "exit_status" not in recipe.record


@pytest.mark.parametrize(("name", "number"), [("pretrain", "SIGTERM"), ("grpo", "SIGUSR1")])
def test_signal_between_steps(name, number, rungs, start_recipe, tmp_path):
    whole, settings = rungs[name], rungs.settings(name)
    recipe = start_recipe(name, tmp_path / name, settings)
    recipe.wait(until=lambda: "step 1/" in recipe.stdout)
    recipe.send(getattr(signal, number))
    assert recipe.wait() == 75, recipe.stderr
    step = recipe.record["saved_step"]
    assert_saved(recipe, step, number)
    assert_goes_on(start_recipe(name, tmp_path / name, settings), step)
    assert weights_of(tmp_path / name) == weights_of(whole.directory)


@pytest.mark.parametrize(
    ("name", "place", "call", "step"),
    [
        ("sft", STEP, 3, 3),
        ("reward", "transformers:Trainer._save_optimizer_and_scheduler", 1, 2),
        ("dpo", STEP, 1, 1),
        ("ppo", "groundup.generation:generate", 1, 2),  # whose rollout is of two steps
        ("grpo", "groundup.generation:generate", 3, 1),  # two are the gate's
        ("pretrain", "transformers:Trainer.prediction_step", 1, 2),
        ("pretrain", "transformers:Trainer.evaluate", 2, 4),  # after the last step
        ("reward", "transformers:Trainer.prediction_step", 1, 2),
    ],
)
def test_signal_in_the_middle_of_things(name, place, call, step, rungs, start_recipe, tmp_path):
    whole, settings = rungs[name], rungs.settings(name)
    if "prediction" in place:
        settings |= {"eval_strategy": "steps", "eval_steps": 2}
    recipe = start_recipe(name, tmp_path / name, settings, f"from harm import signal_before; signal_before({place!r}, {call})")
    assert_saved(recipe, step)
    again = start_recipe(name, tmp_path / name, settings)
    assert_goes_on(again, step)
    assert weights_of(tmp_path / name) == weights_of(whole.directory)
    if name == "pretrain":
        assert evaluations(tmp_path / name) == evaluations(whole.directory)
        assert len(evaluations(whole.directory)) == 2


@pytest.mark.parametrize(("name", "split"), [("ppo", "steps_per_generation"), ("grpo", "num_iterations")])
def test_a_rollout_is_used_up_before_its_run_is_saved(name, split, rungs, start_recipe, tmp_path):
    settings = {**rungs.settings(name), "max_steps": 6, "save_steps": 3, split: 2}
    whole = start_recipe(name, tmp_path / "whole", settings)
    prelude = f"from harm import signal_before; signal_before({STEP!r}, 1)"
    recipe = start_recipe(name, tmp_path / name, settings, prelude)
    assert_saved(recipe, 2)
    assert_goes_on(start_recipe(name, tmp_path / name, settings), 2)
    assert whole.wait() == 0, whole.stderr
    assert sorted(path.name for path in whole.directory.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert weights_of(tmp_path / name) == weights_of(whole.directory)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("pretrain", "groundup.pretraining:write_tokens"),
        ("sft", "trl:SFTTrainer._prepare_dataset"),
        ("reward", "transformers:AutoModelForSequenceClassification.from_pretrained"),
    ],
)
def test_signal_before_training_leaves_nothing_to_save(name, place, rungs, start_recipe, tmp_path):
    whole, settings = rungs[name], rungs.settings(name)
    recipe = start_recipe(name, tmp_path / name, settings, f"from harm import signal_before; signal_before({place!r})")
    assert recipe.wait() == 75, recipe.stderr
    assert recipe.stderr.strip().endswith("SIGTERM: nothing was saved yet; run the same command to go on")
    assert (recipe.record["status"], recipe.record["exit_status"]) == ("interrupted", 75)
    again = start_recipe(name, tmp_path / name, settings)
    assert again.wait() == 0, again.stderr
    assert weights_of(tmp_path / name) == weights_of(whole.directory)


def test_signal_before_training_goes_on_says_what_was_saved_before(rungs, start_recipe, tmp_path):
    settings = rungs.settings("sft")
    for place, call in ((STEP, 3), ("trl:SFTTrainer._prepare_dataset", 1)):
        prelude = f"from harm import signal_before; signal_before({place!r}, {call})"
        assert_saved(start_recipe("sft", tmp_path / "sft", settings, prelude), 3)


def test_only_what_is_finished_is_pushed(rungs, start_recipe, tmp_path):
    settings = {**rungs.settings("sft"), "push_to_hub": True, "hub_strategy": "end"}
    pushed = tmp_path / "pushed"
    prelude = f"""
from harm import around, signal_before
around("groundup.hub:Repository.open", lambda inner, repository: repository)
around("groundup.hub:Repository.send", lambda inner, *args, **kwargs: 1 / 0)  # on the way
around("groundup.hub:Repository.push", lambda inner, *args, **kwargs: [str(open({str(pushed)!r}, "a").write("pushed"))])
"""
    stopped = start_recipe("sft", tmp_path / "sft", settings, prelude + f"signal_before({STEP!r}, 3)")
    assert_saved(stopped, 3)
    assert not pushed.exists()
    assert_goes_on(start_recipe("sft", tmp_path / "sft", settings, prelude), 3)
    assert pushed.read_text() == "pushed"


# -- through the launcher


def test_signal_to_the_launcher_of_one_process(launch, rungs, start_recipe, tmp_path):
    """Which dies of it, and would leave its recipe training."""
    whole, settings = rungs["sft"], rungs.settings("sft")
    directory, said = tmp_path / "sft", tmp_path / "said"
    launcher = launch("cpu", "sft", directory, {**settings, "max_steps": 4})
    wait_until(lambda: "step 1/" in said.read_text() or launcher.poll() is not None, "the first step")
    assert launcher.poll() is None and len(processes_of(directory)) == 2, said.read_text()
    launcher.send_signal(signal.SIGTERM)
    wait_until(lambda: not processes_of(directory), "the recipe's end")
    record = json.loads((directory / "run.json").read_text())
    assert (record["status"], record["exit_status"]) == ("interrupted", 75), said.read_text()
    assert launcher.wait() != 0
    assert_goes_on(start_recipe("sft", directory, settings), record["saved_step"])
    assert weights_of(directory) == weights_of(whole.directory)
