import pytest
from groundup import scoreboard


@pytest.mark.parametrize(
    ("name", "result", "text"),
    [
        ("cloze", {"value": 0.97, "low": 0.94, "high": 0.99}, "97 % (94-99)"),
        ("cloze", {"value": 0.997, "low": 0.991, "high": 1.0}, "99.7 % (99.1-100)"),
        ("cloze", {"value": 0.9999, "low": 0.001, "high": 0.00001}, "99.9 % (0.1-0.1)"),
        ("bits_per_byte", {"value": 1.934, "low": 1.9, "high": 1.96}, "1.93 (1.90-1.96)"),
        ("zeal", {"value": -1.0, "low": -2, "high": 0}, "-1.00 (-2.00 to 0.00)"),
        ("problems", {"value": 0.5}, "50 %"),
        ("problems", {"value": float("nan")}, ""),
        ("problems", {"value": "nan"}, ""),
        ("problems", None, ""),
    ],
)
def test_show_metric(name, result, text):
    assert scoreboard.show_metric(name, result) == text


def test_metrics_have_an_order_and_a_meaning():
    assert scoreboard.order_metrics(
        ["zeal", "problems_harder", "problems_sampled", "problems", "problems_pass_at_k", "alpha", "bits_per_byte", "cloze"]
    ) == [
        "bits_per_byte",
        "cloze",
        "problems",
        "problems_sampled",
        "problems_pass_at_k",
        "problems_harder",
        "alpha",
        "zeal",
    ]
    assert scoreboard.metric("bits_per_token").better == "lower" and scoreboard.metric("eval_loss").better == "lower"
    assert scoreboard.metric("gsm8k_accuracy").share and scoreboard.metric("zeal").better is None
    assert scoreboard.metric("problems_sampled").label == "Problems, sampled"


def test_every_metric_says_what_it_is():
    for name, metric in scoreboard.METRICS.items():
        assert metric.label and metric.explanation.endswith("."), name
    assert len({metric.label for metric in scoreboard.METRICS.values()}) == len(scoreboard.METRICS)


@pytest.mark.parametrize(
    ("name", "found", "says"),
    [
        ("asked", (0.03, -0.012, 0.0726), "+3.0 pts (-1.2 to +7.3)"),
        ("asked", (-0.25, -0.4, -0.1), "-25 pts (-40 to -10)"),
        ("asked", (0.0, -0.02, 0.02), "0.0 pts (-2.0 to +2.0)"),
        ("bits_per_byte", (-0.0123, -0.0204, -0.0031), "-0.012 (-0.020 to -0.003)"),
        ("kl_from_reference", (12.4, -30.0, 60.0), "+12 (-30 to +60)"),
        ("asked", (0.1, 0.002, 0.4), "+10.0 pts (+0.2 to +40.0)"),  # the end is not 0
        ("asked", (0.1, None, None), "+10 pts"),
        ("asked", (None, None, None), ""),
    ],
)
def test_differences_have_signs_and_as_many_digits_as_they_are_worth(name, found, says):
    assert scoreboard.show_difference(name, dict(zip(("value", "low", "high"), found, strict=True))) == says
