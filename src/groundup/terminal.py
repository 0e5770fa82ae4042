"""A conversation in the terminal, or through a pipe, with one model or with several side by side."""

import sys
from collections.abc import Iterator, Sequence

from groundup.conversation import Message, Speaker

# What a model says is text: it moves no cursor and sets no colours.
CONTROL = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}, "\ufffd")
COMMANDS = "/reset forgets what was said, /system TEXT sets a system message, /exit ends"


def converse(speakers: Sequence[Speaker], *settings: float | None) -> None:
    """Each line is a question to all `speakers`, or one of the `COMMANDS`, until there are no more lines.

    Args:
        settings: of `Speaker.reply`: temperature, tokens, seed.
    """
    system: list[Message] = []
    histories: dict[str, list[Message]] = {speaker.name: [] for speaker in speakers}
    if sys.stdin.isatty():
        print(COMMANDS, file=sys.stderr)
    for line in lines():
        command, _, rest = line.partition(" ")
        if command == "/exit":
            break
        if command in ("/reset", "/system"):
            histories = {name: [] for name in histories}
            if command == "/system":
                system = [{"role": "system", "content": rest}] if rest else []
                for speaker in speakers:
                    if not speaker.takes_system:
                        print(f"{speaker.name} takes no system message", file=sys.stderr)
        elif command.startswith("/"):
            print(f"no command `{command}`: {COMMANDS}", file=sys.stderr)
        else:
            for speaker in speakers:
                if len(speakers) > 1:
                    print(f"{speaker.name}: ", end="", flush=True)
                history = histories[speaker.name]
                history.append({"role": "user", "content": line})
                said = say(speaker.reply([*(system if speaker.takes_system else []), *history], *settings))
                history.append({"role": "assistant", "content": said})


def say(reply: Iterator[str]) -> str:
    """Print a reply while it comes; ^C ends it."""
    said = ""
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
