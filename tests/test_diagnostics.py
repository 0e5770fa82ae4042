import json

import pytest
from groundup import diagnostics, report, results
from invented import add_rung, result, write_run

JUDGED = [{"model": "out/nano/reward", "weight": 1.0}, {"name": "my.taste", "weight": 0.0}]
CHECKED = [{"name": "correct_answer", "weight": 1.0}]


def ppo_log(steps=20, **more):
    """What PPO logs of a rollout, rising in reward and in distance."""
    return [
        {
            "step": s,
            "reward": s / 10,
            "rewards/reward/mean": s / 10,
            "rewards/taste/mean": 1.0 if s == 10 else 0.5 if s == steps else 0.0,
            "objective/kl": s / 5,
            "completions/mean_length": 30.0 - s,
            "completions/clipped_ratio": 0.25 if s < 5 else 0.0,
            "entropy": 1 / s,
            "frac_reward_zero_std": 1.0,
            "clip_ratio/region_mean": 0.01,
            "value_loss": 1 / s,
            "explained_variance": s / steps,
            "verifier/timeouts": 0.0,
            **more,
        }
        for s in range(1, steps + 1)
    ]


def diagnoses(run):
    found = report.collect(run)
    table = results.compare(found)
    histories = ((rung, diagnostics.telling(rung, report.read_history(run / rung["name"]))) for rung in found["rungs"])
    return {rung["name"]: diagnostics.diagnose(rung, history, table) for rung, history in histories}


@pytest.fixture
def run(tmp_path):
    run = write_run(tmp_path / "nano")
    config = {"rewards": JUDGED, "num_generations": 1}
    add_rung(run, "ppo", {"true_win_rate": result(0.9)}, ppo_log(), parent={"path": "out/nano/sft"}, config=config)
    add_rung(run, "sft", {"true_win_rate": result(0.5), "problems": result(0.3)}, parent={"path": "out/nano/pretrain"})
    return run


def test_only_rungs_that_learn_from_their_own_replies_are_diagnosed(run):
    assert [name for name, found in diagnoses(run).items() if found] == ["ppo", "grpo"]


def test_ppo_shows_what_was_watched_and_not_what_means_nothing(run):
    found = diagnoses(run)["ppo"]
    figures = {label: numbers for label, *numbers, _ in found["figures"]}
    assert figures["KL, nats a reply"] == ["0.2", "4", "0.2", "4"]
    assert figures["Cut off at the limit"] == ["25 %", "0 %", "0 %", "25 %"]
    assert figures["Explained variance"] == ["0.05", "1", "0.05", "1"]
    # One completion a prompt: its group is flat whatever it earns. And no answer took too long to check.
    assert "Flat groups" not in figures and "Verifier's timeouts" not in figures
    page = report.write_report(run).read_text()
    assert "<b>Flat groups, cut off, clipped</b>, ppo" in page and "flat groups</th>" not in page


def test_flat_groups_are_told_where_there_are_groups(run):
    add_rung(run, "grpo", {}, ppo_log(), config={"num_generations": 8}, parent={"path": "out/nano/ppo"})
    assert ["Flat groups", "100 %", "100 %", "100 %", "100 %"] in [figure[:5] for figure in diagnoses(run)["grpo"]["figures"]]


def test_reward_stands_beside_the_truth(run):
    found = diagnoses(run)["ppo"]
    assert found["rewards"] == [
        ["Reward, as paid", "0.10", "2.00", "highest 2.00"],
        ["taste, not paid for", "0.00", "0.50", "highest 1.00"],
    ]
    assert found["truths"] == [["True win rate, held-out", "50 %", "90 %", "▲ 40 pts"]]
    assert found["verdict"] == (
        "The reward rose; taste, which nobody paid for, went from 0.00 to 0.50, after 1.00 at its highest. "
        "On held-out items it got better: True win rate 50 % → 90 %."
    )


@pytest.mark.parametrize(
    ("config", "after", "said"),
    [
        (
            {"rewards": JUDGED},
            {"true_win_rate": result(0.2)},
            "it got worse: True win rate 50 % → 20 %. What is paid for is not what is",
        ),
        (
            {"rewards": JUDGED},
            {"true_win_rate": result(0.52)},
            "no clear change: True win rate 50 % → 52 %, and the intervals overlap",
        ),
        ({"rewards": CHECKED}, {"true_win_rate": result(0.2), "problems": result(0.8)}, "it got better: Problems 30 % → 80 %"),
        ({"rewards": CHECKED}, {"zeal": result(0.2)}, "No held-out figure of this rung and of the one before it"),
        ({}, None, "No held-out figure of this rung and of the one before it"),
    ],
)
def test_the_verdict_is_on_what_the_reward_stands_for(run, config, after, said):
    (run / "ppo" / "eval.json").unlink()
    add_rung(run, "ppo", after, parent={"path": "out/nano/sft"}, config=config)
    assert said in diagnoses(run)["ppo"]["verdict"]


def test_rewards_of_several_functions_stand_one_by_one(run):
    config = {"rewards": [{"name": "reward", "weight": 1.0}, {"name": "my.taste", "weight": 0.1}]}
    add_rung(run, "ppo", {}, parent={"path": "out/nano/sft"}, config=config)
    assert [line[0] for line in diagnoses(run)["ppo"]["rewards"]] == ["Reward, as paid", "reward, weight 1", "taste, weight 0.1"]


def test_a_trend_is_more_than_scatter():
    assert diagnostics.trend([1.0, 2.0, 3.0, 4.0]) == 1 and diagnostics.trend([4.0, 3.0, 2.0, 1.0]) == -1
    assert diagnostics.trend([1.0] * 9) == diagnostics.trend([5.0]) == 0
    assert diagnostics.trend([0.0, 10.0, 0.0, 10.0, 0.0, 11.0, 0.0, 11.0]) == 0


def share(value):
    return {"value": value, "low": value, "high": value, "n": 64}


GATE = {
    "prompts": 64,
    "k": 8,
    "all": {"pass_at_1": share(0.18), "pass_at_k": share(0.78), "mixed": share(0.75), "cut_off": share(0.0)},
    "by_difficulty": {},
    "signal": True,
    "advice": [],
}


def test_the_gate_is_told_in_words(run):
    found = diagnostics.say_gate(GATE)
    assert (
        "right in 18 % of its tries at 64 prompts, and at least once in 8 at 78 % of them. At 75 % some tries were better" in found
    )
    assert found.endswith("there was something to learn.")
    guessing = diagnostics.say_gate(GATE | {"advice": ["what passes may be guessed"]})
    assert guessing.endswith("there was something to learn. What passes may be guessed")
    refused = diagnostics.say_gate(GATE | {"signal": False, "advice": ["nearly all is solved: more SFT"]})
    assert refused.endswith("there was too little to learn from. Nearly all is solved: more SFT")


def test_a_rung_that_the_gate_stopped_is_told_of(tmp_path):
    add_rung(tmp_path, "grpo", status="failed", config={})
    (tmp_path / "grpo" / "gate.json").write_text(json.dumps(GATE | {"signal": False}))
    page = report.write_report(tmp_path).read_text()
    assert "too little to learn from" in page and "grpo is failed" in page
    assert "too little to learn from" in (tmp_path / "report.md").read_text()
