"""Rows and rewards that are no good, through the recipes: named before the first step, left out and counted, or refused."""

import json

import pytest
from groundup.errors import InputError

from recipes.miniature import run_recipe

LONG = "Where is it? " * 200  # 1,200 tokens, where the models see 512
ROWS = {
    "grpo": {"question": LONG, "answer": "3"},
    "ppo": {"prompt": LONG},
    "reward": {"prompt": LONG, "chosen": "yes", "rejected": "no"},
    "dpo": {"prompt": LONG, "chosen": "yes", "rejected": "no"},
}
PLAIN = {
    "grpo": {"question": "What is 1 + 2?", "answer": "3"},
    "ppo": {"prompt": "Where is it?"},
    "reward": {"prompt": "Where is it?", "chosen": "There.", "rejected": "no"},
    "dpo": {"prompt": "Where is it?", "chosen": "There.", "rejected": "no"},
}
REASON = {
    "grpo": "prompt over the 504 tokens that `max_completion_length` leaves",
    "ppo": "prompt over the 504 tokens that `max_completion_length` leaves",
    "reward": "over the 256 tokens of `max_length`",
    "dpo": "prompt fills the 256 tokens of `max_length`",
}


def settings_with(rungs, name, rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {key: value for key, value in rungs.settings(name).items() if key != "max_rows"}
    return {**settings, "dataset": str(path), "max_steps": 1, "save_strategy": "no"}


@pytest.mark.parametrize("name", ROWS)
def test_rows_beyond_the_context_are_dropped_said_and_counted(rungs, tmp_path, name, capsys):
    settings = settings_with(rungs, name, [ROWS[name]] * 4 + [PLAIN[name]] * 16, tmp_path)
    trained = run_recipe(name, tmp_path / "out", **settings)
    entry = trained.record["data"][0]
    assert (entry["dropped"], entry["kept"]) == ({REASON[name]: 4}, 16)
    assert f"{name}: 4 of 20 rows dropped ({REASON[name]}): {settings['dataset']}" in capsys.readouterr().out
    assert len(trained.trainer.train_dataset) == (16 + 8 if name == "grpo" else 16)  # and what is rehearsed


@pytest.mark.parametrize("name", ROWS)
def test_too_many_rows_beyond_the_context_stop_the_run(rungs, tmp_path, name):
    settings = settings_with(rungs, name, [ROWS[name]] * 12 + [PLAIN[name]] * 8, tmp_path)
    with pytest.raises(InputError, match=f"20 rows read -> 8 .{REASON[name]}: 12"):
        run_recipe(name, tmp_path / "out", **settings)


@pytest.mark.parametrize("name", ("reward", "dpo"))
@pytest.mark.parametrize("max_length", ("4096", "null"))
def test_a_length_beyond_the_context_does_not_let_them_through(rungs, tmp_path, name, max_length):
    settings = settings_with(rungs, name, [ROWS[name]] * 20, tmp_path)
    with pytest.raises(InputError, match="20 rows read -> 0 .over the 512 tokens of the model's context: 20"):
        run_recipe(name, tmp_path / "out", **settings, max_length=max_length)


@pytest.mark.parametrize("name", ("reward", "dpo"))
def test_pairs_of_equals_are_dropped_and_stop_the_run_past_the_limit(rungs, tmp_path, name, capsys):
    equal = {**PLAIN[name], "rejected": PLAIN[name]["chosen"]}
    settings = settings_with(rungs, name, [equal] * 12 + [PLAIN[name]] * 8, tmp_path)
    with pytest.raises(InputError, match="too few preferences are left: 20 rows read -> 8 .chosen equals rejected: 12"):
        run_recipe(name, tmp_path / "out", **settings)
    trained = run_recipe(name, tmp_path / "out", **settings, max_dropped_share=0.6)
    assert trained.record["data"][0]["dropped"] == {"chosen equals rejected": 12}
    assert len(trained.trainer.train_dataset) == 8
    assert f"{name}: 12 of 20 rows dropped (chosen equals rejected)" in capsys.readouterr().out
