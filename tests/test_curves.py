import json
import math
import re
from xml.etree import ElementTree

import pytest
from groundup import curves


def log(directory, *entries):
    (directory / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
    return curves.curves(curves.read_history(directory), curves.CURVES | curves.ROLLOUTS)


def test_curves_are_what_was_logged_by_step(tmp_path):
    assert curves.read_history(tmp_path) == []
    charts = log(
        tmp_path,
        {"step": 20, "eval_loss": 2.5},
        {"step": 20, "loss": 2.0},
        {"step": 10, "loss": 3.0, "value_loss": 0.5},
        {"step": 30, "loss": "nan", "epoch": 1.0},
        {"loss": 9.0},
    )
    assert charts == {"Loss": {"training": [(10, 3.0), (20, 2.0)], "held-out": [(20, 2.5)]}}  # one value is no curve
    assert list(charts["Loss"]) == ["training", "held-out"]  # whichever was logged first


def test_what_is_no_number_is_named(tmp_path):
    log(tmp_path, {"step": 1, "loss": 1.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": "inf", "grad_norm": -math.inf})
    found = curves.not_finite(curves.read_history(tmp_path))
    assert found == ["loss at step 2 and 1 later", "grad_norm at step 3"]


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
    lines = [curves.thin("training", points, 240), curves.thin("held-out", [points[-1]], 240)]
    svg = curves.draw("A & B", lines)
    ElementTree.fromstring(svg)  # well-formed
    for line in re.findall(r'points="([^"]*)"', svg):
        for pair in line.split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= curves.WIDTH and 0 <= y <= curves.HEIGHT
    assert len(svg) < 10_000 and "A &amp; B" in svg


def test_a_thinned_line_keeps_its_ends_and_its_spike():
    points = [(s, 100.0 if s == 1234 else 1.0 + s % 2) for s in range(1, 5001)]
    line = curves.thin("loss", points, 50)
    assert 45 <= len(line.points) <= 50 and line.smooth
    assert line.points[0][:2] == points[0] and line.points[-1][:2] == points[-1]
    assert [point[1] for point in line.points].count(100.0) == 1
    few = curves.thin("loss", points[:10], 50)
    assert [point[:2] for point in few.points] == points[:10] and not few.smooth


def test_the_table_holds_what_is_drawn():
    lines = [curves.thin("training", [(s, s / 3) for s in range(1, 101)], 240), curves.thin("held-out", [(50, 12345.6)], 240)]
    chart = curves.Chart("Loss", "sft", lines)
    assert chart.columns() == [("training", False), ("training", True), ("held-out", False)]
    rows = chart.rows()
    assert len(rows) == 100 and rows[0] == ["1", "0.3333", "0.3333", ""] and rows[49] == ["50", "16.67", "16.67", "12346"]


def test_more_series_are_drawn_with_fewer_points():
    long = [(s, float(s)) for s in range(1, 1001)]
    few = curves.chart({"sft": {"Loss": {"training": long}}})
    many = curves.chart({f"rung{n}": {"Loss": {"training": long}} for n in range(100)})
    assert len(few[0].lines[0].points) > 150 and len(many) == 100
    assert sum(len(chart.lines[0].points) for chart in many) <= curves.POINTS


def test_ticks_are_round_and_enclose():
    assert curves._ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert curves._ticks(-0.3, 1.9) == [-1, 0, 1, 2]
    assert curves._ticks(3, 3)[0] <= 3 <= curves._ticks(3, 3)[-1]


def test_smoothing_keeps_the_start_and_short_runs():
    short = curves.thin("loss", [(s, s % 2) for s in range(30)], 240)
    assert all(value == mean for _, value, mean in short.points) and not short.smooth
    long = curves.thin("loss", [(s, 10.0 if s == 0 else s % 2) for s in range(400)], 400)
    assert long.points[0] == (0, 10.0, 10.0) and abs(long.points[200][2] - 0.5) < 0.1 and long.smooth
