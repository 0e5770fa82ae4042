"""A rung's training curves: which values to draw together, the drawing, as SVG, and its numbers, as a table.

`report.js` reads the table and draws the same again when a series is switched off, or for logarithms or several rungs at once.
"""

import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup import record
from groundup.words import is_number, show_count
from markupsafe import Markup, escape

Points = list[tuple[float, float]]
POINTS = 12_000  # drawn in a page, of all its series together: a megabyte, tables and all

# Chart title -> {key or pattern in log_history: label}; a label with \1 takes the pattern's group.
CURVES = {
    "Loss": {"loss": "training", "eval_loss": "held-out"},
    "Bits per byte, held-out": {"eval_bits_per_byte": "held-out"},
    "Pair accuracy": {
        "accuracy": "training",
        "eval_accuracy": "held-out",
        "rewards/accuracies": "training",
        "eval_rewards/accuracies": "held-out",
    },
    "Margin": {"margin": "training", "eval_margin": "held-out", "rewards/margins": "training", "eval_rewards/margins": "held-out"},
    "Gradient norm": {"grad_norm": "training"},
}
ROLLOUTS = {  # of PPO and GRPO
    "Reward": {"reward": "training", "eval_reward": "held-out"},
    "Reward by function": {r"rewards/(.+)/mean": r"\1"},
    "KL to the reference": {"objective/kl": "nats a reply", "kl": "nats a token"},
    "Completion length, tokens": {"completions/mean_length": "mean", "completions/max_length": "longest"},
    "Entropy, nats a token": {"entropy": "policy"},
    "Flat groups, cut off, clipped": {
        "frac_reward_zero_std": "flat groups",
        "completions/clipped_ratio": "cut off",
        "clip_ratio/region_mean": "clipped",
    },
    "Value loss": {"value_loss": "critic"},
    "Explained variance": {"explained_variance": "critic"},
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 190, 46, 20, 10, 34


def read_history(directory: Path) -> list[dict[str, Any]]:
    """What the rung's trainer logged, entry by entry; empty where there is no log."""
    return (record.read_json(directory / "trainer_state.json") or {}).get("log_history") or []


def not_finite(history: list[dict[str, Any]]) -> list[str]:
    """`loss at step 30 and 2 later ones` for each figure that was logged and is no number."""
    steps: dict[str, list] = {}
    for entry in history:
        for key, value in entry.items():
            # The trainer writes NaN, a record (groundup.record.plain) "nan".
            if isinstance(value, float) and not math.isfinite(value) or value in ("nan", "inf", "-inf"):
                steps.setdefault(key, []).append(entry.get("step"))
    return [f"{key} at step {at[0]}" + (f" and {len(at) - 1} later" if len(at) > 1 else "") for key, at in steps.items()]


def curves(history: list[dict[str, Any]], wanted: dict[str, dict[str, str]]) -> dict[str, dict[str, Points]]:
    """Chart title -> series label -> (step, value) points, of `wanted` (CURVES, ROLLOUTS) as far as the trainer logged them."""
    charts: dict[str, dict[str, Points]] = {}
    keys = list(dict.fromkeys(key for entry in history for key in entry))
    stepped = [entry for entry in history if is_number(entry.get("step"))]
    for title, patterns in wanted.items():
        series: dict[str, Points] = {}
        for pattern, label in patterns.items():
            for match in filter(None, (re.fullmatch(pattern, key) for key in keys)):
                points = [(entry["step"], entry[match[0]]) for entry in stepped if is_number(entry.get(match[0]))]
                if points:
                    series.setdefault(match.expand(label), []).extend(points)
        if any(len(points) > 1 for points in series.values()):
            charts[title] = {label: sorted(points) for label, points in series.items()}
    if len(charts.get("Reward by function", {})) == 1 and "Reward" in charts:
        del charts["Reward by function"]  # the one function is the reward
    return charts


@dataclass(frozen=True)
class Line:
    """A series as it is drawn: some of its points, each (step, value, running mean)."""

    label: str
    points: list[tuple[float, float, float]]
    smooth: bool  # whether the mean is of more than the value itself


@dataclass(frozen=True)
class Chart:
    title: str
    rung: str
    lines: list[Line]

    def svg(self) -> Markup:
        return draw(f"{self.title}, {self.rung}", self.lines)

    def columns(self) -> list[tuple[str, bool]]:
        """Of the table of numbers: each line's label, and where it has a running mean its label again and True."""
        return [(line.label, mean) for line, mean in self._columns()]

    def _columns(self) -> list[tuple[Line, bool]]:
        return [(line, mean) for line in self.lines for mean in (False, True)[: 1 + line.smooth]]

    def rows(self) -> list[list[str]]:
        """The step, then each column's number; empty where there is none."""
        columns = [{p[0]: p[1 + mean] for p in line.points} for line, mean in self._columns()]
        steps = sorted({p[0] for line in self.lines for p in line.points})
        return [[_number(step), *(_number(column[step]) if step in column else "" for column in columns)] for step in steps]


def chart(found: dict[str, dict[str, dict[str, Points]]]) -> list[Chart]:
    """The charts of all rungs, as `curves` found them by rung; the more there are, the fewer points of each series are drawn."""
    series = sum(len(series) for charts in found.values() for series in charts.values())
    most = max(24, min(240, POINTS // max(series, 1)))
    return [
        Chart(title, rung, [thin(label, points, most) for label, points in series.items()])
        for rung, charts in found.items()
        for title, series in charts.items()
    ]


def thin(label: str, points: Points, most: int) -> Line:
    """The first point, the last, and of each stretch between the one farthest from its mean, so that no spike is lost."""
    kept = list(range(len(points)))
    if len(points) > most:
        stride = -(-(len(points) - 2) // (most - 2))
        stretches = [kept[i : min(i + stride, len(points) - 1)] for i in range(1, len(points) - 1, stride)]
        kept = [0, *(_farthest(points, stretch) for stretch in stretches), len(points) - 1]
    return Line(label, [(*points[i], _mean(points, i)) for i in kept], _window(points) > 0)


def _farthest(points: Points, stretch: list[int]) -> int:
    mean = statistics.fmean(points[i][1] for i in stretch)
    return max(stretch, key=lambda i: abs(points[i][1] - mean))


def _window(points: Points) -> int:
    """How many points before and after are averaged: a twentieth of the run in all. Short runs stay as they are."""
    return len(points) // 40


def _mean(points: Points, index: int) -> float:
    half = _window(points)
    before = min(half, index)
    after = before if index < half else half  # symmetric at the steep start; at the end, what there is
    return statistics.fmean(y for _, y in points[index - before : index + after + 1])


def draw(title: str, lines: list[Line], across: str = "step") -> Markup:
    """A line chart over `across` as SVG, coloured by the page's style sheet: raw points faint, a centred running mean on top."""
    everything = [point[:2] for line in lines for point in line.points]
    x_ticks = _ticks(min(x for x, _ in everything), max(x for x, _ in everything))
    y_ticks = _ticks(min(y for _, y in everything), max(y for _, y in everything))
    x_low, x_high = min(x for x, _ in everything), max(x for x, _ in everything)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x_at(x: float) -> float:
        return round(LEFT + (x - x_low) / ((x_high - x_low) or 1) * (WIDTH - LEFT - RIGHT), 1)

    def y_at(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / ((y_high - y_low) or 1) * (HEIGHT - TOP - BOTTOM), 1)

    parts = []
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(y)}" y2="{y_at(y)}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y_at(y) + 4}" text-anchor="end">{_tick_label(y)}</text>')
    for x in (x for x in x_ticks if x_low <= x <= x_high):
        parts.append(f'<text x="{x_at(x)}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_tick_label(x)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{across}</text>')
    for index, line in enumerate(lines):
        dots = "".join(f"M{x_at(x)} {y_at(y)}h0" for x, y, _ in line.points)
        means = " ".join(f"{x_at(x)},{y_at(mean)}" for x, _, mean in line.points)
        parts.append(f'<path class="{"raw" if len(line.points) > 1 else "dot"} s{index % 8}" d="{dots}"/>')
        parts.append(f'<polyline class="line s{index % 8}" points="{means}"/>')
    label = "; ".join(f"{line.label} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in lines)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {label}")}">'
    return Markup(head + "".join(parts) + "</svg>")


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from at or below `low` to at or above `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 4
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _tick_label(value: float) -> str:
    return f"{value:g}" if abs(value) < 10000 else show_count(value).replace(" ", "")


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or abs(value) >= 10000 else f"{value:.4g}"
