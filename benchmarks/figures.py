"""The figures of docs/, drawn from the logs that recipes/ladder.sh nano left: `python benchmarks/figures.py out/nano`."""

import json
import sys
import tempfile
from pathlib import Path

from groundup.curves import Points, draw, thin
from measure import header, last_line, parser

ROOT = Path(__file__).parents[1]
STYLE = """<style>
svg{background:#fff} text{font:10px sans-serif;fill:#444} .grid{stroke:#ddd} .line{fill:none;stroke-width:2} .raw{display:none}
.s0{stroke:#4269d0} .dot{fill:none;stroke-width:4;stroke-linecap:round}
</style>"""
FIGURES = {  # file -> rung, and title -> key of its log
    "pretraining": ("pretrain", {"loss": "loss", "held-out bits per byte": "eval_bits_per_byte"}),
    "preferences": (
        "ppo",
        {"reward": "reward", "hidden taste": "rewards/taste_reward/mean", "KL to the start, nats a reply": "objective/kl"},
    ),
    "reasoning": (
        "grpo",
        {"reward": "reward", "tokens a completion": "completions/mean_length", "share of flat groups": "frac_reward_zero_std"},
    ),
}


def side_by_side(charts: dict[str, Points]) -> str:
    """A chart for each series, as an SVG file."""
    parts = []
    for n, (title, points) in enumerate(charts.items()):
        chart = str(draw(title, [thin(title, points, most=300)])).partition(">")[2].removesuffix("</svg>")
        chart += f'<text x="180" y="2" text-anchor="middle">{title}</text>'
        parts.append(f'<g transform="translate({n * 350} 16)">{chart}</g>')
    size = f'viewBox="0 0 {350 * len(parts)} 220" width="{350 * len(parts)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{STYLE}{"".join(parts)}</svg>\n'


def read(rung: Path, keys: dict[str, str]) -> dict[str, Points]:
    lines = json.loads((rung / "trainer_state.json").read_text())["log_history"]
    charts = {title: [(line["step"], line[key]) for line in lines if key in line] for title, key in keys.items()}
    missing = [title for title, points in charts.items() if not points]
    if missing:
        sys.exit(f"error: {rung} logged no {', '.join(missing)}")
    return charts


def made_up(folder: Path) -> Path:
    """A ladder's logs in small, for a look."""
    for rung, keys in FIGURES.values():
        lines = [{"step": step, **dict.fromkeys(keys.values(), 1.0 / step)} for step in range(1, 9)]
        (folder / rung).mkdir()
        (folder / rung / "trainer_state.json").write_text(json.dumps({"log_history": lines}))
    return folder


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("run", type=Path, nargs="?", default=Path("out/nano"), help="folder of the rungs")
    arguments.add_argument("--to", type=Path, default=ROOT / "docs" / "figures")
    args = arguments.parse_args()
    if args.quick:
        args.run, args.to = made_up(Path(tempfile.mkdtemp())), Path(tempfile.mkdtemp())
    about = header()
    args.to.mkdir(parents=True, exist_ok=True)
    for name, (rung, keys) in FIGURES.items():
        (args.to / f"{name}.svg").write_text(side_by_side(read(args.run / rung, keys)))
        print(args.to / f"{name}.svg")
    last_line({**about, "figures": list(FIGURES)})


if __name__ == "__main__":
    main()
