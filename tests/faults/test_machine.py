"""A run that moves to another machine, and splits its steps otherwise there, reads the same rows in each step."""

import json
from collections import Counter

import pytest
from safetensors.torch import load_file

from faults.test_preemption import STEP, assert_saved

STEPS = 6  # two epochs
# A step takes four, or in GRPO two prompts, of six with those that it rehearses.
ROWS = {"sft": 12, "reward": 12, "dpo": 12, "grpo": 4}


def settings_of(name, rungs) -> dict:
    settings = rungs.settings(name) | {"max_steps": STEPS, "save_steps": 2}
    if name == "pretrain":
        return settings | {"max_length": 256, "max_rows": 40, "eval_strategy": "no"}
    return settings | {"max_rows": ROWS[name]}


def ledger(*paths) -> list[list[str]]:
    """The rows of each step, of all processes and micro-batches together, sorted."""
    steps: dict[int, list[str]] = {}
    for path in paths:
        for line in map(json.loads, path.read_text().splitlines()):
            steps.setdefault(line["step"], []).extend(map(json.dumps, line["rows"]))
    return [sorted(steps[step]) for step in sorted(steps)]


@pytest.mark.parametrize("name", ["pretrain", "sft", "reward", "dpo", "grpo"])
def test_each_step_reads_the_rows_that_it_would_have_read(name, rungs, start_recipe, start_pair, tmp_path):
    settings = settings_of(name, rungs)
    batch = settings["per_device_train_batch_size"]
    kept = "from harm import keep_ledger, signal_before; keep_ledger({!r})"
    whole = start_recipe(name, tmp_path / "whole", settings, kept.format(str(tmp_path / "whole.ledger")))

    directory, moved = tmp_path / name, kept.format(str(tmp_path / "moved.ledger"))
    stop = f"; signal_before({STEP!r}, 2)"
    assert_saved(start_recipe(name, directory, settings, moved + stop), 2)
    both = start_pair(name, directory, settings | {"per_device_train_batch_size": batch // 2}, moved + stop, moved)
    assert_saved(both[0], 4)
    assert both[1].wait() == 75, both[1].stderr
    split = {"per_device_train_batch_size": batch // 4, "gradient_accumulation_steps": 4}
    if name == "grpo":  # a device's completions are whole groups
        split = {"per_device_train_batch_size": batch // 2, "gradient_accumulation_steps": 2}
    last = start_recipe(name, directory, settings | split, moved)
    assert last.wait() == 0, last.stderr
    assert whole.wait() == 0, whole.stderr

    expected = ledger(tmp_path / "whole.ledger.0")
    found = ledger(*sorted(tmp_path.glob("moved.ledger.*")))
    assert len(expected) == STEPS
    if name == "grpo":  # a prompt comes once for each completion, and again for each micro-batch of its rollout
        expected, found = ([sorted(set(step)) for step in steps] for steps in (expected, found))
    assert found == expected
    rows = [row for step in expected for row in step]
    epoch, a_step = len(set(rows)), len(rows) // STEPS
    if name != "pretrain":  # whose order runs on from one epoch into the next
        assert epoch * 2 == len(rows)
    whole_steps = epoch // a_step * a_step
    assert len(set(rows[:whole_steps])) == whole_steps and set(Counter(rows).values()) <= {1, 2}
    assert expected[: STEPS // 2] != expected[STEPS // 2 :]  # in another order
    if name != "grpo":  # which draws its completions on each process
        here, there = (load_file(path / "model.safetensors") for path in (tmp_path / "whole", directory))
        assert max(float((here[key] - there[key]).abs().max()) for key in here) < 1e-4


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_epoch_that_is_no_whole_number_of_steps_is_not_moved(name, rungs, start_recipe, start_pair, tmp_path):
    settings = rungs.settings(name) | {"max_rows": 10}
    assert_saved(start_recipe(name, tmp_path / name, settings, f"from harm import signal_before; signal_before({STEP!r}, 2)"), 2)
    both = start_pair(name, tmp_path / name, settings | {"per_device_train_batch_size": 2})
    assert [recipe.wait() for recipe in both] == [2, 2]
    assert both[0].stderr.startswith("error: 10 rows are no whole number of steps of 4, ")
    assert "processes: 4 x 1 x 1 -> 2 x 1 x 2" in both[0].stderr and both[1].stderr == ""
    again = start_recipe(name, tmp_path / name, settings)
    assert again.wait() == 0, again.stderr


def test_another_number_of_rows_a_step_is_refused(rungs, start_recipe, start_pair, tmp_path):
    settings = rungs.settings("sft") | {"max_rows": 12}
    assert_saved(start_recipe("sft", tmp_path / "sft", settings, f"from harm import signal_before; signal_before({STEP!r}, 2)"), 2)
    both = start_pair("sft", tmp_path / "sft", settings)
    assert [recipe.wait() for recipe in both] == [2, 2]
    assert "rows a step (4 x 1 x 1), and this one has 8 rows a step (4 x 1 x 2)" in both[0].stderr
