import json
import math
import re
from xml.etree import ElementTree

import pytest
from groundup import curves


def log(directory, *entries):
    (directory / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
    return curves.read_curves(directory)


def test_curves_are_what_was_logged_by_step(tmp_path):
    assert curves.read_curves(tmp_path) == {}
    charts = log(
        tmp_path,
        {"step": 20, "loss": 2.0},
        {"step": 10, "loss": 3.0, "value_loss": 0.5},
        {"step": 20, "eval_loss": 2.5},
        {"step": 30, "loss": "nan", "grad_norm": 1.0},
        {"loss": 9.0},
    )
    assert charts == {"Loss": {"training": [(10, 3.0), (20, 2.0)], "held-out": [(20, 2.5)]}}  # one value is no curve


def test_rewards_are_drawn_one_by_one_only_where_there_are_several(tmp_path):
    rows = [{"step": s, "reward": s, "rewards/right/mean": s, "rewards/right/std": 1.0} for s in (1, 2)]
    assert list(log(tmp_path, *rows)) == ["Reward"]
    charts = log(tmp_path, *(row | {"rewards/form/mean": 1.0} for row in rows))
    assert charts["Reward by function"] == {"right": [(1, 1), (2, 2)], "form": [(1, 1.0), (2, 1.0)]}


@pytest.mark.parametrize(
    "points",
    [
        [(1, 1.0), (2, 1.0)],
        [(1, 0.0), (2, 0.0)],
        [(5, 3.0)],
        [(0, -1e-9), (1, 1e9)],
        [(s, math.sin(s)) for s in range(5000)],
    ],
)
def test_draw_stays_inside_the_frame(points):
    svg = curves.draw("A & B", {"training": points, "held-out": [points[-1]]})
    ElementTree.fromstring(svg)  # well-formed
    for line in re.findall(r'points="([^"]*)"', svg):
        for pair in line.split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= curves.WIDTH and 0 <= y <= curves.HEIGHT
    assert len(svg) < 40_000 and "A &amp; B" in svg


def test_ticks_are_round_and_enclose():
    assert curves._ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert curves._ticks(-0.3, 1.9) == [-1, 0, 1, 2]
    assert curves._ticks(3, 3)[0] <= 3 <= curves._ticks(3, 3)[-1]


def test_smoothing_keeps_the_start_and_short_runs():
    short = [(s, s % 2) for s in range(30)]
    assert curves._smooth(short) == short
    long = [(s, 10.0 if s == 0 else s % 2) for s in range(400)]
    smooth = curves._smooth(long)
    assert smooth[0] == (0, 10.0) and abs(smooth[200][1] - 0.5) < 0.1
