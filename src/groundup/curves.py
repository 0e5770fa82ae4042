"""A rung's training curves: which values to draw together, and the drawing, as SVG."""

import math
import re
from pathlib import Path

from groundup import record
from groundup.words import is_number, show_count
from markupsafe import Markup, escape

Points = list[tuple[float, float]]

# Chart title -> {key or pattern in log_history: label}; a label with \1 takes the pattern's group.
CURVES = {
    "Loss": {"loss": "training", "eval_loss": "held-out"},
    "Bits per byte, held-out": {"eval_bits_per_byte": "held-out"},
    "Reward": {"reward": "training", "eval_reward": "held-out"},
    "Reward by function": {r"rewards/(.+)/mean": r"\1"},
    "KL to the reference": {"objective/kl": "KL", "kl": "KL"},
    "Completion length, tokens": {"completions/mean_length": "training"},
    "Value loss": {"value_loss": "training"},
    "Pair accuracy": {"accuracy": "training", "eval_accuracy": "held-out"},
    "Margin": {"margin": "training", "eval_margin": "held-out"},
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 200, 46, 12, 10, 34


def read_curves(directory: Path) -> dict[str, dict[str, Points]]:
    """Chart title -> series label -> (step, value) points, as far as the trainer logged them."""
    history = (record.read_json(directory / "trainer_state.json") or {}).get("log_history") or []
    charts: dict[str, dict[str, Points]] = {}
    for title, patterns in CURVES.items():
        series: dict[str, Points] = {}
        for entry in history:
            for key, value in entry.items():
                for pattern, label in patterns.items():
                    match = re.fullmatch(pattern, key)
                    if match and is_number(value) and is_number(entry.get("step")):
                        series.setdefault(match.expand(label), []).append((entry["step"], value))
        if any(len(points) > 1 for points in series.values()):
            charts[title] = {label: sorted(points) for label, points in series.items()}
    if len(charts.get("Reward by function", {})) == 1 and "Reward" in charts:
        del charts["Reward by function"]  # the one function is the reward
    return charts


def draw(title: str, series: dict[str, Points], across: str = "step") -> Markup:
    """A line chart over `across` as SVG, coloured by the page's style sheet: raw points faint, a centred running mean on top."""
    everything = [point for points in series.values() for point in points]
    x_ticks = _ticks(min(x for x, _ in everything), max(x for x, _ in everything))
    y_ticks = _ticks(min(y for _, y in everything), max(y for _, y in everything))
    x_low, x_high = min(x for x, _ in everything), max(max(x for x, _ in everything), x_ticks[-1])
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x_at(x: float) -> float:
        return round(LEFT + (x - x_low) / ((x_high - x_low) or 1) * (WIDTH - LEFT - RIGHT), 1)

    def y_at(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / ((y_high - y_low) or 1) * (HEIGHT - TOP - BOTTOM), 1)

    parts = []
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(y)}" y2="{y_at(y)}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y_at(y) + 4}" text-anchor="end">{_tick_label(y)}</text>')
    for x in (x for x in x_ticks if x >= x_low):
        parts.append(f'<text x="{x_at(x)}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_tick_label(x)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{across}</text>')
    for index, points in enumerate(series.values()):
        dots = "".join(f"M{x_at(x)} {y_at(y)}h0" for x, y in _thin(points))
        line = " ".join(f"{x_at(x)},{y_at(y)}" for x, y in _thin(_smooth(points)))
        parts.append(f'<path class="{"raw" if len(points) > 1 else "dot"} s{index % 4}" d="{dots}"/>')
        parts.append(f'<polyline class="line s{index % 4}" points="{line}"/>')
    label = "; ".join(f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in series.items())
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


def _smooth(points: Points) -> Points:
    half = len(points) // 40  # a window of a twentieth of the run: short runs stay as they are
    means = []
    for index, (x, _) in enumerate(points):
        before = min(half, index)
        after = before if index < half else half  # symmetric at the steep start; at the end, what there is
        window = [y for _, y in points[index - before : index + after + 1]]
        means.append((x, sum(window) / len(window)))
    return means


def _thin(points: Points, most: int = 300) -> Points:
    stride = -(-len(points) // most)
    return points if stride == 1 else [*points[:-1:stride], points[-1]]
