"""Several ladders side by side, one column a seed: what benchmarks/ladder_seeds.sh left in FOLDER.

python benchmarks/ladder_table.py FOLDER SEED ...
"""

import json
from pathlib import Path

from groundup import record
from groundup.scoreboard import metric, order_metrics, show_metric
from measure import last_line, parser


def main(folder: str, seeds: list[str], quick: bool) -> None:
    work = {seed: Path(folder, seed) for seed in seeds}
    reports = {seed: json.loads((path / "out/nano/report.json").read_text()) for seed, path in work.items()}
    costs = {seed: json.loads((path / "cost.json").read_text()) for seed, path in work.items() if (path / "cost.json").is_file()}
    machine, versions = record.hardware(), record.versions()
    print(f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB. Versions: ", end="")
    print(", ".join(f"{name} {version}" for name, version in versions.items() if version))
    told = f"--quick {folder}" if quick else f"{folder} {' '.join(seeds)}"
    print(f"\nCommand: `bash benchmarks/ladder_seeds.sh {told}`\n")
    if quick:
        print("**--quick: two steps of one rung; these figures say only that it runs**\n")
    print("| rung | measure | " + " | ".join(f"seed {seed}" for seed in seeds) + " |")
    print("|---|---|" + "---|" * len(seeds))
    rungs = [rung["rung"] for rung in reports[seeds[0]]["rungs"]]
    for name in rungs:
        here = {seed: next(rung for rung in reports[seed]["rungs"] if rung["rung"] == name) for seed in seeds}
        for measure in order_metrics(here[seeds[0]]["metrics"]):
            cells = [show_metric(measure, here[seed]["metrics"].get(measure)) for seed in seeds]
            print(f"| {name} | {metric(measure).label} | " + " | ".join(cells) + " |")
        if name != "random":
            print(f"| {name} | training, s | " + " | ".join(f"{here[seed]['seconds']:.0f}" for seed in seeds) + " |")
    for key, label, form in (("seconds", "wall time, s", "{:.0f}"), ("peak_gb", "memory of the largest process, GB", "{:.2f}")):
        cells = [form.format(costs[seed][key]) if key in costs.get(seed, {}) else "" for seed in seeds]
        print(f"| all | {label} | " + " | ".join(cells) + " |")
    values = {
        seed: {rung["rung"]: {key: m["value"] for key, m in rung["metrics"].items()} for rung in reports[seed]["rungs"]}
        for seed in seeds
    }
    print()
    last_line({"seeds": values, "cost": costs})


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("folder")
    arguments.add_argument("seeds", nargs="+")
    args = arguments.parse_args()
    main(args.folder, args.seeds, args.quick)
