"""A finished rung to the Hub: model, card, record, evaluation and report; run again after a cut it goes on.

python recipes/push.py out/nano/grpo me/groundup-nano
"""

import argparse
import sys

from groundup import card, record
from groundup.command_line import quieten
from groundup.errors import InputError, RunError
from groundup.hub import Repository


def main(directory: str, repository: str, public: bool, revisions: bool, license: str | None) -> None:
    quieten()
    # 1. What does not belong together is not shown to anyone
    if wrong := record.verify(directory):
        fix = "put the files back as they were, or run the rung again"
        raise InputError(f"not pushed: {'; '.join(wrong)}", directory, fix)

    # 2. Will the Hub take it?
    hub = Repository(repository, private=not public).open()

    # 3. The card names where it is going
    known = record.update(directory, hub_model_id=hub.name, **({"license": license} if license else {}))
    card.write_card(directory, known)

    # 4. Send what is not there yet
    for line in hub.push(directory, revisions):
        print(f"push: {line}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", help="stage directory of a finished rung, such as out/nano/grpo")
    parser.add_argument("repository", help="owner/name; it is made if it is not there")
    seen_by = parser.add_mutually_exclusive_group()
    seen_by.add_argument("--private", action="store_false", dest="public", help="a new repository is private (the default)")
    seen_by.add_argument("--public", action="store_true", help="a new repository is public")
    parser.add_argument("--revisions", action="store_true", help="each checkpoint as well, as a branch `step-N`")
    parser.add_argument("--license", help="what the card says of the licence, apache-2.0 unless the rung was told otherwise")
    parser.set_defaults(public=False)
    try:
        main(**vars(parser.parse_args()))
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
