"""A run that is asked to stop saves, says so with its exit status, and goes on to the weights it would have had."""

import hashlib
import signal

import pytest


def weights_of(directory) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["pretrain", "sft", "reward", "dpo", "ppo", "grpo"])
def test_signal_between_steps(name, rungs, start_recipe, tmp_path):
    whole, settings = rungs[name], rungs.settings(name)
    directory = tmp_path / name
    recipe = start_recipe(name, directory, settings)
    recipe.wait(until=lambda: "step 1/" in recipe.stdout)
    recipe.send(signal.SIGTERM)
    assert recipe.wait() == 75, recipe.stderr
    step = recipe.record["saved_step"]
    assert recipe.stderr.strip().endswith(f"SIGTERM: saved step {step}; run the same command to go on")
    assert (recipe.record["status"], recipe.record["exit_status"]) == ("interrupted", 75)
    assert not (directory / "model.safetensors").exists()
    again = start_recipe(name, directory, settings)
    assert again.wait() == 0, again.stderr
    assert f"going on from {directory}/checkpoint-{step}" in again.stdout
    assert weights_of(directory) == weights_of(whole.directory)
