"""recipes/compare.py, and GRPO on a reward model, which needs prompts and no answers."""

import json

import pytest
from groundup.errors import InputError

from recipes.miniature import load_recipe, run_recipe


def test_table_has_a_row_a_road(tmp_path, capsys):
    figures = {"ppo": (0.9, 12.0), "dpo": (0.8, 20.5)}
    for name, (wins, kl) in figures.items():
        (tmp_path / name).mkdir()
        run = {"schema": 1, "rung": name, "status": "finished", "steps": 50, "seconds": 61.0}
        (tmp_path / name / "run.json").write_text(json.dumps(run))
        metrics = {"true_win_rate": {"value": wins, "low": wins - 0.1, "high": wins + 0.05, "n": 160}}
        metrics["kl_from_reference"] = {"value": kl, "low": kl - 1, "high": kl + 1, "n": 160}
        (tmp_path / name / "eval.json").write_text(json.dumps({"schema": 1, "rung": name, "metrics": metrics}))
    load_recipe("compare").main(str(tmp_path), list(figures))
    head, _, ppo, dpo = capsys.readouterr().out.strip().splitlines()
    assert head.startswith("|  | steps | time | True win rate | KL from SFT |")
    assert "90 % (80-95)" in ppo and "12.00 (11.00-13.00)" in ppo and "80 % (70-85)" in dpo
    with pytest.raises(InputError, match="`sft` is not trained"):
        load_recipe("compare").main(str(tmp_path), ["sft"])


def test_grpo_on_a_reward_model_takes_prompts(rungs, tmp_path):
    settings = {
        **rungs.settings("grpo"),
        "rehearsal_dataset": "",
        "dataset": rungs.settings("ppo")["dataset"],
        "rewards": [{"model": str(rungs["reward"].directory)}],
        "gate_prompts": 0,
    }
    trained = run_recipe("grpo", tmp_path / "grpo", **settings)
    assert trained.record["status"] == "finished"
    assert any(name.startswith("rewards/") for name in trained.record["metrics"])
