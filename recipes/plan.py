"""What a rung, or a whole ladder, will cost: memory, disk, hours and money, before anything is run.

python recipes/plan.py --config recipes/small/pretrain.yaml --gpu H100
python recipes/plan.py --config recipes/base --gpu H100 --count 8 --price 2.50
"""

import argparse
import json
import sys
from dataclasses import replace

from groundup.command_line import quieten
from groundup.errors import InputError
from groundup.hardware import named_device, this_device
from groundup.plan import SCHEMES, check, plan
from groundup.plan_table import show
from groundup.workload import TYPES, files, read_workload
from transformers.utils import logging


def main(options: argparse.Namespace, overrides: list[str]) -> int:
    # 1. The device
    for name in ("count", "mfu", "price", "memory", "rows"):
        value = getattr(options, name)
        if value is not None and (value < 0 or value == 0 and name != "price"):
            raise InputError(f"`--{name} {value:g}`", fix="write a number above 0")
    device = named_device(options.gpu) if options.gpu else this_device()
    device = replace(device, memory=int(options.memory * 2**30)) if options.memory else device
    scheme = options.scheme or ("DDP" if options.count > 1 else None)

    # 2. Every rung
    plans, problems = [], []
    for path in files(options.config):
        logging.set_verbosity_error()  # what the recipes' arguments warn of belongs to their own runs
        load = read_workload(path, options.rung, options.count, options.rows, overrides)
        plans.append(found := plan(load, device, scheme, options.mfu, options.price, not options.no_calibration))
        try:
            found["warnings"] = check(found)
        except InputError as error:
            found["warnings"] = [error.what]
            problems.append(error)

    # 3. Print
    print(json.dumps(plans)) if options.json else show(plans)
    for error in problems:
        print(f"error: {error}", file=sys.stderr)
    return 2 if problems else 0


def read_options(line: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    epilog = "Any other `--key value` overrides the YAML, as on the recipe's command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=epilog, allow_abbrev=False)
    parser.add_argument("--config", required=True, nargs="+", help="YAML files of rungs, or a directory of them")
    parser.add_argument("--rung", choices=TYPES, help="when the YAML's keys do not tell")
    parser.add_argument("--gpu", help="a device of the table in groundup.hardware; this machine if left out")
    parser.add_argument("--count", type=int, default=1, help="how many devices")
    parser.add_argument("--scheme", choices=SCHEMES, help="how the model is spread over them; DDP if left out")
    parser.add_argument("--mfu", type=float, help="share of the peak that training gets, such as 0.4")
    parser.add_argument("--price", type=float, help="dollars an hour and device")
    parser.add_argument("--memory", type=float, help="GiB of a device, instead of the table's")
    parser.add_argument("--rows", type=int, help="rows of the data set, where they cannot be counted")
    parser.add_argument("--no_calibration", action="store_true", help="time no steps on this machine")
    parser.add_argument("--json", action="store_true", help="one JSON line instead of the table")
    return parser.parse_known_args(line)


if __name__ == "__main__":
    try:
        quieten()
        sys.exit(main(*read_options()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
