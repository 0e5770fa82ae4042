"""An adapter (LoRA) and the model under it become one plain model, which every rung can start from and everyone can load.

python recipes/merge.py out/nano/sft_lora out/nano/sft
"""

import argparse
import sys

from groundup.command_line import quieten
from groundup.errors import InputError
from groundup.merging import merge


def main(adapter: str, output_dir: str) -> None:
    quieten()
    print(f"merge: done -> {merge(adapter, output_dir)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", help="stage directory that a rung with `use_peft: true` wrote")
    parser.add_argument("output_dir", help="where the plain model goes, a directory that is empty or not there yet")
    try:
        main(**vars(parser.parse_args()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
