"""Plans as a table on the terminal."""

import sys

from groundup.plan import SCHEMES, show_parts
from groundup.words import show_bytes, show_count, show_seconds
from rich.console import Console
from rich.table import Table


def show(plans: list[dict]) -> None:
    """Print a table of rungs, then what needs a sentence: memory by part, warnings, what is unknown and what was assumed."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table("rung", box=None, pad_edge=False)
    for name in ("parameters", "steps", "tokens", "FLOPs", "memory a device", "disk", "time", "cost"):
        table.add_column(name, justify="right")
    for found in plans:
        memory = found["memory"]
        table.add_row(
            found["rung"],
            show_count(found["parameters"]),
            f"{found['steps']:,}" if found.get("steps") else "",
            show_count(found["tokens"]),
            f"{found['flops']:.1e}" if found["flops"] else "",
            show_bytes(memory["total"]) if memory else "",
            show_bytes(sum(found["disk"].values())) if found["disk"] else "",
            show_seconds(found["seconds"]) or "unknown",
            money(found["dollars"]),
        )
    if len(plans) > 1:
        tokens = [p["tokens"] for p in plans if p.get("steps")]  # those that something is trained on
        seconds, dollars = ([p[key] for p in plans if p[key] is not None] for key in ("seconds", "dollars"))
        name = "all" if len(seconds) == len(plans) else "what is known"
        table.add_row(
            name, "", "", show_count(sum(tokens)), "", "", "", show_seconds(sum(seconds)), money(sum(dollars) if dollars else None)
        )
    last = plans[-1]
    console.print(f"on {last['devices']} x {last['device']}, {last['scheme']}", highlight=False)
    console.print(table)
    for found in plans:
        if memory := found["memory"]:
            console.print(f"\n[bold]{found['rung']}[/bold]: {show_parts(memory['parts'])}", highlight=False)
            if memory["schemes"]:
                spread = ", ".join(f"{name} {show_bytes(memory['schemes'][name])}" for name in SCHEMES if name in memory["schemes"])
                console.print(f"  spread otherwise: {spread}", highlight=False)
        for key in ("warnings", "unknown"):
            for line in found[key]:
                console.print(f"  {key.removesuffix('s')}: {line}", style="yellow", highlight=False)
    for line in dict.fromkeys(line for found in plans for line in found["assumed"]):
        console.print(f"assumed: {line}", style="dim", highlight=False)


def money(dollars: float | None) -> str:
    return "" if dollars is None else f"${dollars:,.2f}"
