"""A conversation with a rung, or with several side by side, in the terminal or in a browser.

python recipes/chat.py out/nano/grpo
"""

import argparse
import os
import sys
from collections.abc import Iterator

from groundup.command_line import quieten
from groundup.conversation import Speaker
from groundup.errors import InputError
from groundup.server import serve

# What a model says is text: it moves no cursor and sets no colours.
CONTROL = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}, "\ufffd")
COMMANDS = "/reset forgets what was said, /system TEXT sets a system message, /exit ends"


def main(models: list[str], temperature: float | None, max_tokens: int | None, seed: int | None, web: bool, port: int) -> None:
    # 1. Models
    quieten()
    speakers = [Speaker(path, name) for path, name in zip(models, short_names(models), strict=True)]
    for speaker in speakers:
        if not speaker.chats:
            print(f"{speaker.name} has learned no chat: it goes on with what you write as text", file=sys.stderr)

    # 2. In a browser
    if web:
        serve(speakers, port)
        return

    # 3. In the terminal
    system, histories = [], {speaker.name: [] for speaker in speakers}
    if sys.stdin.isatty():
        print(COMMANDS, file=sys.stderr)
    for line in lines():
        command, _, rest = line.partition(" ")
        if command == "/exit":
            break
        if command in ("/reset", "/system"):
            histories = {name: [] for name in histories}
            system = (
                [{"role": "system", "content": rest}] if command == "/system" and rest else system if command == "/reset" else []
            )
            for speaker in speakers:
                if command == "/system" and not speaker.takes_system:
                    print(f"{speaker.name} takes no system message", file=sys.stderr)
            continue
        if command.startswith("/"):
            print(f"no command `{command}`: {COMMANDS}", file=sys.stderr)
            continue
        for speaker in speakers:
            history = histories[speaker.name]
            asked = [*(system if speaker.takes_system else []), *history, {"role": "user", "content": line}]
            said = say(speaker, asked, temperature, max_tokens, seed, named=len(speakers) > 1)
            history += [asked[-1], {"role": "assistant", "content": said}]


def say(speaker: Speaker, asked: list, temperature: float | None, max_tokens: int | None, seed: int | None, named: bool) -> str:
    """Print a reply while it comes; ^C ends it."""
    if named:
        print(f"{speaker.name}: ", end="", flush=True)
    reply, said = speaker.reply(asked, temperature, max_tokens, seed), ""
    try:
        for piece in reply:
            said += piece
            print(piece.translate(CONTROL), end="", flush=True)
    except KeyboardInterrupt:
        pass
    print(flush=True)
    return said


def lines() -> Iterator[str]:
    """What the user writes, line by line, without empty ones."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line


def short_names(models: list[str]) -> list[str]:
    """Each path without what all of them begin with."""
    paths = [path.rstrip("/") for path in models]
    names = [os.path.basename(path) for path in paths]
    return names if len(set(names)) == len(names) else paths


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
