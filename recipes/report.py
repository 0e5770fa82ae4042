"""The ladder so far as one page: numbers with intervals, curves, the same prompts answered by every rung. Or two ladders compared.

python recipes/report.py out/nano
python recipes/report.py --compare out/nano out/seed1/out/nano
"""

import argparse
import sys

from groundup import comparison
from groundup.errors import InputError
from groundup.report import collect, write_report
from groundup.results import compare, has_overlap, lines, markdown_table
from groundup.scoreboard import OVERLAP


def main(run_dir: str) -> None:
    # 1. Read what the rungs left in their directories
    report = collect(run_dir)

    # 2. Print the table
    if sys.stdout.isatty():
        table = compare(report)
        (_, *rungs), *metrics = zip(*lines(report, table), strict=True)
        print_table("", ["", *rungs], metrics)  # on its side, a column per rung, to fit a terminal
        print(OVERLAP if has_overlap(table) else "", end="")
    else:
        print(markdown_table(report))

    # 3. Write report.json, report.md and report.html
    print(f"\n{write_report(run_dir)}")


def main_compare(run_a: str, run_b: str, output: str) -> None:
    # 1. Read what both left, and pair it
    found = comparison.compare(run_a, run_b)

    # 2. Print the tables
    if sys.stdout.isatty():
        print("\n".join([*comparison.header(found), *found["warnings"], "", *comparison.summary(found)]))
        for table in comparison.tables(found):
            print_table(*table)
    else:
        print(comparison.as_markdown(found))

    # 3. Write the page
    print(f"\n{comparison.write_comparison(found, output)}")


def print_table(title: str, heads: list[str], lines: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left")
    for head in heads:
        table.add_column(Text(head))
    for cells in lines:
        table.add_row(*(Text(cell.replace("**", ""), style="bold" if cell.startswith("**") else "") for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", nargs="?", help="directory that holds the rungs, such as out/nano")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two such directories, B beside A")
    parser.add_argument("--output", help="page to write with --compare; comparison.html unless given")
    options = parser.parse_args()
    if bool(options.run_dir) == bool(options.compare) or (options.output and not options.compare):
        parser.error("give one run directory, or --compare and two (and --output with these)")
    try:
        if options.compare:
            main_compare(*options.compare, options.output or "comparison.html")
        else:
            main(options.run_dir)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
