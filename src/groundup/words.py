"""How counts, sizes, times, machines and tables are written for people."""

import math
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def show_count(count: float | None) -> str:
    """`124 M`; empty where there is none."""
    if not is_number(count):
        return ""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(count) >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"


def show_bytes(size: float) -> str:
    if size < 2**20:
        return f"{size / 2**10:,.0f} KiB" if size else "0 MiB"
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def show_seconds(seconds: float | None) -> str:
    if not is_number(seconds):
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_processors(hardware: dict) -> list[str]:
    """GPUs and CPU of a record's `hardware`."""
    gpus = hardware.get("gpus") or []
    cpu = [f"{hardware['cpu']}, {hardware.get('cores')} cores"] if hardware.get("cpu") else []
    return [f"{gpus.count(gpu)} x {gpu}" for gpu in dict.fromkeys(gpus)] + cpu


def funnel(read: int, what: str, steps: dict[str, int]) -> str:
    """`100 documents -> 98 (duplicate: 2)`."""
    text = f"{read:,} {what}"
    for reason, count in steps.items():
        read -= count
        text += f" -> {read:,} ({reason}: {count:,})"
    return text


def visible(text: str) -> str:
    """Text of a model's in one line that any terminal can show: it moves no cursor, sets no colours and turns no writing round."""
    text = "".join(sign if sign.isprintable() else "\u23ce" if sign == "\n" else "\ufffd" for sign in text)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def show_clock(seconds: float) -> str:
    """`h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def markdown_cell(value: Any) -> str:
    """Text that can neither end a Markdown table's cell nor open an HTML element, nor is a link or an image."""
    text = "" if value is None else re.sub(r"\s+", " ", str(value))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("](", "]\\(")


def markdown(heads: Sequence, rows: Iterable[Sequence]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(map(markdown_cell, line)) + " |" for line in (heads, ["---"] * len(heads), *rows))
