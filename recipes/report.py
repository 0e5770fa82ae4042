"""The ladder so far as one page: numbers with intervals, curves, and the same prompts answered by every rung.

python recipes/report.py out/nano
"""

import argparse
import sys

from groundup.errors import InputError
from groundup.report import collect, write_report
from groundup.results import compare, has_overlap, lines, markdown_table
from groundup.scoreboard import OVERLAP


def main(run_dir: str) -> None:
    # 1. Read what the rungs left in their directories
    report = collect(run_dir)

    # 2. Print the table
    if sys.stdout.isatty():
        print_table(lines(report))
        print(OVERLAP if has_overlap(compare(report)) else "", end="")
    else:
        print(markdown_table(report))

    # 3. Write report.json, report.md and report.html
    print(f"\n{write_report(run_dir)}")


def print_table(results: list[list[str]]) -> None:
    """The results turned on their side, a column per rung, to fit a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    (_, *rungs), *metrics = zip(*results, strict=True)
    table = Table("")
    for rung in rungs:
        table.add_column(Text(rung))
    for cells in metrics:
        table.add_row(*(Text(cell.replace("**", ""), style="bold" if cell.startswith("**") else "") for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", help="directory that holds the rungs, such as out/nano")
    try:
        main(parser.parse_args().run_dir)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
