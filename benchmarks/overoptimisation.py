"""Where pleasing the reward model parts from pleasing people: PPO with next to no KL penalty, its score beside the hidden taste.

python benchmarks/overoptimisation.py --ladders out/seeds/0 out/seeds/1 out/seeds/2 --figure benchmarks/overoptimisation.svg

Each ladder is a folder in which recipes/ladder.sh nano has climbed (out/nano with its world and `sft`). Reward models are trained
on all preferences and on a few, as over-optimisation begins the earlier the less a reward model has seen (Gao, Schulman & Hilton
2022, arXiv:2210.10760). The taste is toyland's own function; PPO logs it at weight 0. What is finished is not run again.
"""

import json
import math
import shutil
import statistics
import tempfile
from pathlib import Path

from groundup.curves import draw, thin
from measure import header, last_line, parser, table
from rl_throughput import made_up
from runs import nano, recipe

STYLE = """<style>
svg{background:#fff} text{font:10px sans-serif;fill:#444} .grid{stroke:#ddd} .line{fill:none;stroke-width:2} .raw{display:none}
.s0{stroke:#4269d0} .s1{stroke:#d97706} .t0{fill:#4269d0} .t1{fill:#d97706}
</style>"""
STEPS, EVERY = 150, 3


def a_small_ladder(folder: Path) -> Path:
    """A folder with a small world and a random model in place of what was trained."""
    made = folder / "ladder" / "out" / "nano"
    made.mkdir(parents=True)
    made_up(made)
    shutil.copytree(made / "model", made / "ppo")
    (made / "model").rename(made / "sft")
    return folder / "ladder"


def climb(ladder: Path, work: Path, pairs: int, steps: int, seed: int) -> list[dict[str, float]]:
    """Score, taste and KL at each log line of PPO against a reward model of so many pairs."""
    nano_dir, name = ladder / "out" / "nano", f"{ladder.name}-{pairs}"
    world, judge, policy = nano_dir / "world", work / f"reward-{name}", work / f"ppo-{name}"
    start = {"model_name_or_path": str(nano_dir / "sft"), "seed": seed}
    data = {"dataset": str(world / "preferences.jsonl"), "eval_dataset": str(world / "eval_preferences.jsonl"), "max_rows": pairs}
    recipe("reward", nano("reward", **start, **data, output_dir=str(judge)), judge.with_suffix(".yaml"))
    rewards = [{"model": str(judge), "weight": 1.0}, {"name": "groundup.toyland.taste_reward", "weight": 0.0}]
    changes = {"dataset": str(world / "prompts.jsonl"), "rewards": rewards, "kl_coef": 0.001, "max_steps": steps}
    watched = {"logging_steps": EVERY, "save_strategy": "no", "output_dir": str(policy)}
    recipe("ppo", nano("ppo", **start, **changes, **watched), policy.with_suffix(".yaml"))
    lines = json.loads((policy / "trainer_state.json").read_text())["log_history"]
    return [
        {
            "step": line["step"],
            "kl": line["objective/kl"],
            "score": line[f"rewards/{judge.name}/mean"],
            "taste": line["rewards/taste_reward/mean"],
            "error": line["rewards/taste_reward/std"] / math.sqrt(128 * EVERY),
        }
        for line in lines
        if "objective/kl" in line
    ]


def smooth(points: list[dict[str, float]], key: str, half: int = 2) -> list[float]:
    return [statistics.fmean(p[key] for p in points[max(0, i - half) : i + half + 1]) for i in range(len(points))]


def figure(runs: dict[str, list[dict[str, float]]]) -> str:
    """A chart for each run, as an SVG file."""
    parts = []
    for n, (title, points) in enumerate(runs.items()):
        lines = [thin(key, [(point["kl"], point[key]) for point in points], most=300) for key in ("score", "taste")]
        chart = str(draw(title, lines, across="KL to the start, nats a reply")).partition(">")[2].removesuffix("</svg>")
        chart += (
            '<text x="46" y="2" class="t0">reward model</text><text x="328" y="2" class="t1" text-anchor="end">true taste</text>'
        )
        chart += f'<text x="180" y="2" text-anchor="middle">{title}</text>'
        parts.append(f'<g transform="translate({n * 350} 16)">{chart}</g>')
    size = f'viewBox="0 0 {350 * len(parts)} 220" width="{350 * len(parts)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{STYLE}{"".join(parts)}</svg>\n'


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--ladders", type=Path, nargs="+", help="folders that hold out/nano")
    arguments.add_argument("--work", type=Path, default=Path("out/overoptimisation"))
    arguments.add_argument("--pairs", type=int, nargs="+", default=[100, 2000])
    arguments.add_argument("--figure", type=Path, help="SVG file to write")
    args = arguments.parse_args()
    if not args.ladders and not args.quick:
        raise SystemExit("error: give --ladders, folders in which recipes/ladder.sh nano has climbed")
    about, steps = header(), STEPS
    if args.quick:
        args.work = Path(tempfile.mkdtemp())
        args.ladders, args.pairs, steps = [a_small_ladder(args.work)], [64], 2 * EVERY
    runs: dict[str, list[dict[str, float]]] = {}
    rows = []
    for pairs in args.pairs:
        for seed, ladder in enumerate(args.ladders):
            points = climb(ladder.resolve(), args.work.resolve(), pairs, steps, seed)
            runs[f"{pairs} pairs, ladder {ladder.name}"] = points
            taste = smooth(points, "taste")
            best = max(range(len(points)), key=taste.__getitem__)
            first, last, top = points[0], points[-1], points[best]
            rows.append(
                [pairs, ladder.name]
                + [f"{p['score']:.2f}, {p['taste']:.2f} ± {1.96 * p['error']:.2f}, {p['kl']:.1f}" for p in (first, top, last)]
                + [top["step"]]
            )
    names = ["pairs", "ladder", "first: score, taste, KL", "where the taste is highest", "last", "its step"]
    print(table(names, rows) + "\n")
    if args.figure:
        args.figure.write_text(figure(runs))
    last_line({**about, "runs": runs})


if __name__ == "__main__":
    main()
