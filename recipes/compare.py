"""Stage directories side by side, as a Markdown table: how they were made, how long it took, and what they measure, with intervals.

python recipes/compare.py out/nano sft ppo dpo grpo_reward
"""

import argparse
import sys
from pathlib import Path

from groundup import record, scoreboard
from groundup.errors import InputError
from groundup.report import show_seconds

METRICS = ("true_win_rate", "kl_from_reference", "asked", "unasked", "follows", "stops", "problems")


def main(run_dir: str, names: list[str]) -> None:
    # 1. Read what the rungs left
    rows = []
    for name in names:
        run, found = record.read(Path(run_dir, name)), record.read_evaluation(Path(run_dir, name))
        if run is None or found is None:
            fix = "train it, then recipes/evaluate_model.py"
            raise InputError(f"`{name}` is not {'measured' if run else 'trained'}", str(Path(run_dir, name)), fix)
        rows.append((name, run, found["metrics"]))

    # 2. Print the table
    shown = [metric for metric in METRICS if any(metric in metrics for *_, metrics in rows)]
    table = [["", "steps", "time", *(scoreboard.metric(metric).label for metric in shown)]]
    for name, run, metrics in rows:
        figures = [scoreboard.show_metric(metric, metrics.get(metric)) for metric in shown]
        table.append([name, str(run.get("steps") or ""), show_seconds(run.get("seconds")), *figures])
    table.insert(1, ["---"] * len(table[0]))
    print("\n".join(f"| {' | '.join(row)} |" for row in table))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", help="directory that holds them, such as out/nano")
    parser.add_argument("names", nargs="+", help="their names in it")
    try:
        main(**vars(parser.parse_args()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
