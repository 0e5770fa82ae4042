"""GRPO on toyland's problems, one thing changed at a time: the curriculum, dynamic sampling, and the losses that TRL has.

python benchmarks/grpo_variants.py --ladders out/seeds/0 out/seeds/1 out/seeds/2

Each ladder is a folder in which recipes/ladder.sh nano has climbed; every run is recipes/nano/grpo.yaml from its PPO model.
Losses differ in how they clip only off the policy, so they are compared with two passes over each rollout. Solved problems are
of the difficulty trained and one harder than any trained, held out both, greedy and by any of eight samples: a policy that only
sharpens gains in the first and not in the second. Differences are paired, over the harder problems of all ladders. What is
finished is not run again.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from groundup import record, stats
from measure import header, last_line, parser, table
from overoptimisation import a_small_ladder
from runs import ROOT, nano, recipe

VARIANTS: dict[str, dict[str, Any]] = {
    "all in turn": {"curriculum": False},
    "curriculum": {},
    "curriculum, dynamic sampling": {"extra_rollouts": 2},
}
TWICE = {"curriculum": False, "num_iterations": 2}
LOSSES: dict[str, dict[str, Any]] = {
    "DAPO": TWICE,
    "GRPO": TWICE | {"loss_type": "grpo"},
    "Dr. GRPO": TWICE | {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "CISPO": TWICE | {"loss_type": "cispo", "epsilon_high": 5.0},
    "GSPO": TWICE | {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
}
SHOWN = ("problems", "problems_pass_at_k", "problems_harder", "problems_harder_pass_at_k", "asked")


def evaluate(ladder: Path, model: Path, quick: bool) -> tuple[dict[str, dict[str, float]], list[float]]:
    """The figures, and whether each harder problem was solved."""
    world = ladder / "out" / "nano" / "world"
    words = [sys.executable, str(ROOT / "recipes" / "evaluate_model.py"), "--run_dir", str(model.parent), "--models", model.name]
    files = {"problems": "eval_problems", "harder": "eval_harder", "questions": "eval_questions"}
    for key, name in files.items():
        words += [f"--{key}", str(world / f"{name}.jsonl")]
    words += ["--max_new_tokens", "64", "--pass_at_k_problems", "200"]
    if quick:
        words += ["--max_rows", "4", "--k", "2"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"evaluate_model.py failed on {model}:\n{done.stderr[-3000:]}")
    return record.read_evaluation(model)["metrics"], record.read_items(model)["problems_harder"]["values"]


def against(found: dict[str, list[float]]) -> list[list[str]]:
    """A row for each variant and what it changes: all in turn, or DAPO where rollouts are used twice."""
    rows = []
    for name, solved in found.items():
        base = "DAPO" if name in LOSSES else "all in turn"
        if name != base and base in found:
            apart, (more, fewer, p) = stats.difference(solved, found[base]), stats.mcnemar(solved, found[base])
            points = f"{100 * apart['value']:+.1f} ({100 * apart['low']:+.1f} to {100 * apart['high']:+.1f})"
            rows.append([name, base, points, f"{more}, {fewer}", f"{p:.3f}"])
    return rows


def train(ladder: Path, work: Path, name: str, changes: dict[str, Any], seed: int, quick: bool) -> Path:
    made, world = ladder / "out" / "nano", ladder / "out" / "nano" / "world"
    model = work / f"{name.lower().replace(' ', '-').replace(',', '').replace('.', '')}-{ladder.name}"
    settings = {
        "dataset": str(world / "problems.jsonl"),
        "rehearsal_dataset": str(world / "prompts.jsonl"),
        "model_name_or_path": str(made / "ppo"),
        "output_dir": str(model),
        "save_strategy": "no",
        "seed": seed,
    }
    if "num_iterations" in changes:
        settings["max_steps"] = 60 * changes["num_iterations"]  # as many rollouts
    if quick:
        settings |= {"max_steps": 2, "per_device_train_batch_size": 8, "max_completion_length": 8, "force": True}
    recipe("grpo", nano("grpo", **{**settings, **changes}), model.with_suffix(".yaml"))
    return model


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--ladders", type=Path, nargs="+", help="folders that hold out/nano")
    arguments.add_argument("--work", type=Path, default=Path("out/grpo_variants"))
    arguments.add_argument("--only", nargs="+", choices=[*VARIANTS, *LOSSES], default=[*VARIANTS, *LOSSES], metavar="VARIANT")
    args = arguments.parse_args()
    if not args.ladders and not args.quick:
        raise SystemExit("error: give --ladders, folders in which recipes/ladder.sh nano has climbed")
    about = header()
    if args.quick:
        args.work = Path(tempfile.mkdtemp())
        args.ladders, args.only = [a_small_ladder(args.work)], ["curriculum"]
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in args.only}
    solved: dict[str, list[float]] = {name: [] for name in args.only}
    for seed, ladder in enumerate(args.ladders):
        for name in args.only:
            model = train(ladder.resolve(), args.work.resolve(), name, (VARIANTS | LOSSES)[name], seed, args.quick)
            metrics, harder = evaluate(ladder.resolve(), model, args.quick)
            found[name].append(metrics)
            solved[name] += harder
            print(f"{ladder}, {name}: " + ", ".join(f"{key} {metrics[key]['value']:.3f}" for key in SHOWN), flush=True)
    rows = []
    for name, seeds in found.items():
        cells = []
        for key in SHOWN:
            values = [metrics[key]["value"] for metrics in seeds]
            cells.append(f"{' '.join(f'{100 * v:.0f}' for v in values)} ({100 * statistics.fmean(values):.1f})")
        rows.append([name, *cells])
    print("\n" + table(["per cent, each ladder (mean)", *SHOWN], rows) + "\n")
    print(
        table(
            ["harder problems", "against", "points apart", "solved by it alone, by the other alone", "McNemar's p"], against(solved)
        )
    )
    last_line({**about, "variants": found})


if __name__ == "__main__":
    main()
