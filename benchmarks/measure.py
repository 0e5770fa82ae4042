"""What the benchmarks share: where and with what a figure was measured, how long a thing took, and the JSON line at the end.

A benchmark is a script of its own: it takes `--quick` (under a minute, for a look), calls `header()` first and `last_line()` last.
"""

import argparse
import json
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from groundup import record

median = statistics.median


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser that knows `--quick`; `description` is the script's docstring."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="under a minute, for a look: its figures say only that it runs")
    return parser


def machine() -> dict[str, Any]:
    """Processor, cores, memory, GPUs, versions of Python and the libraries, date and commit: what a figure depends on."""
    import torch  # record.hardware names GPUs only once torch is loaded

    return {
        **record.hardware(),
        "threads": torch.get_num_threads(),
        "versions": {name: version for name, version in record.versions().items() if version},
        "date": datetime.now(UTC).date().isoformat(),
        "commit": record.git_commit(),
    }


def command_line() -> str:
    """This process's command, as one would type it in the checkout."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def header(command: str | None = None) -> dict[str, Any]:
    """Print machine, versions and command as Markdown lines; the same as a dictionary, for `last_line`."""
    found, command = machine(), command or command_line()
    gpus = "".join(f", {gpu}" for gpu in found["gpus"])
    print(f"- machine: {found['cpu']}, {found['cores']} cores ({found['threads']} threads), {found['memory_gb']} GB{gpus}")
    print(f"- date and commit: {found['date']}, {found['commit'] or 'no checkout'}")
    print(f"- versions: {', '.join(f'{name} {version}' for name, version in found['versions'].items())}")
    print(f"- command: `{command}`\n", flush=True)
    return {"machine": found, "command": command}


def last_line(figures: dict[str, Any]) -> None:
    """Print all figures as one line of standard JSON (nan and inf as text). Nothing may be printed after it."""
    print(json.dumps(record.plain(figures), ensure_ascii=False, allow_nan=False), flush=True)


def peak_rss(children: bool = False) -> int:
    """Bytes of the largest resident set this process has had; with `children`, of the largest of its finished children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def synchronise() -> None:
    """Wait for what the accelerator was given to do; nothing where there is none, or where torch is not loaded."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.synchronize()


def loop_timer(step: Callable[[], Any], times: int, warm_up: int = 3) -> list[float]:
    """Seconds of each of `times` calls of `step`, after `warm_up` calls that are not counted (compilation, caches)."""
    for _ in range(warm_up):
        step()
    seconds = []
    for _ in range(times):
        synchronise()
        began = time.perf_counter()
        step()
        synchronise()
        seconds.append(time.perf_counter() - began)
    return seconds


def in_turn(contestants: dict[str, Callable[[], Any]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Seconds of `rounds` calls of each contestant, one of each a round, so that a busy machine is unfair to all alike."""
    for step in contestants.values():
        loop_timer(step, 0, warm_up)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, step in contestants.items():
            seconds[name] += loop_timer(step, 1, warm_up=0)
    return seconds


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))
