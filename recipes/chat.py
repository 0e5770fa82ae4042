"""A conversation with a rung, or with several side by side, in the terminal or in a browser.

python recipes/chat.py out/nano/grpo
"""

import argparse
import sys

from groundup.command_line import quieten
from groundup.conversation import Speaker, short_names
from groundup.errors import InputError
from groundup.server import serve
from groundup.terminal import converse


def main(models: list[str], temperature: float | None, max_tokens: int | None, seed: int | None, web: bool, port: int) -> None:
    # 1. Models
    quieten()
    speakers = [Speaker(path, name) for path, name in zip(models, short_names(models), strict=True)]
    for speaker in speakers:
        if not speaker.chats:
            print(f"{speaker.name} has learned no chat: it goes on with what you write as text", file=sys.stderr)

    # 2. A conversation, until ^C, the end of what is piped in, or /exit
    if web:
        serve(speakers, port)
    else:
        converse(speakers, temperature, max_tokens, seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="stage directories or Hub ids")
    parser.add_argument("--temperature", type=float, help="0 for the likeliest reply (default: the model's own setting)")
    parser.add_argument("--max_tokens", type=int, help="longest reply (default: the model's own setting)")
    parser.add_argument("--seed", type=int, help="of what is sampled, for the same reply again")
    parser.add_argument("--web", action="store_true", help="serve a page and an OpenAI-compatible endpoint on this machine")
    parser.add_argument("--port", type=int, default=8000, help="with --web; 0 for any that is free")
    try:
        main(**vars(parser.parse_args()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
