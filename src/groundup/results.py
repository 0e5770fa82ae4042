"""Rungs by metrics: what each can do, what changed since the rung before it, and what that cost."""

from pathlib import Path
from typing import Any

from groundup import scoreboard
from groundup.words import markdown

HEADLINES = ("bits_per_byte", "asked", "true_win_rate", "problems")
FIRST = ("tokenizer", "random", "pretrain")  # what comes before them knew nothing that could be lost


def parent_of(rung: dict, rungs: list[dict]) -> dict | None:
    """The rung of this run whose directory the rung's parent path names."""
    path = (rung["parent"] or {}).get("path")
    return next((other for other in rungs if path and other["name"] == Path(path).name and other is not rung), None)


def compare(report: dict) -> list[dict[str, Any]]:
    """One row per metric with a cell per rung: value, interval, best or not, change from the rung it grew from, and the share of
    its items that stand in the training data: in the row's `overlap` where it is the same for all rungs, else in the cells'.
    """
    rungs = report["rungs"]
    table = []
    for name in report["metrics"]:
        metric = scoreboard.metric(name)
        results = [scoreboard.measured(rung["metrics"].get(name)) for rung in rungs]
        values = [value for value, _, _ in results if value is not None]
        if not values:
            continue
        sizes = [abs(number) for result in results for number in result if number is not None]
        top = 1.0 if metric.share else max(sizes)
        best = None
        if metric.better and len(values) > 1:
            best = max(values) if metric.better == "higher" else min(values)
        cells = []
        for rung, (value, low, high) in zip(rungs, results, strict=True):
            cell = {"rung": rung["name"], "text": None, "overlap": ""}
            if value is not None:
                text, _, interval = scoreboard.show_metric(name, rung["metrics"][name]).partition(" (")
                low, high = (value, value) if low is None or high is None else (low, high)
                bar = [round(min(max(x / (top or 1), 0), 1), 4) for x in (value, low, high)]
                cell |= {"text": text, "interval": interval.rstrip(")"), "bar": bar, "best": value == best}
                cell |= {"n": rung["metrics"][name].get("n"), "change": _change(name, rung, rungs)}
                cell["overlap"] = scoreboard.mark_overlap(rung["metrics"][name])
            cells.append(cell)
        row = {"name": name, "metric": metric, "cells": cells, "overlap": ""}
        row |= {key: say_k(getattr(metric, key), report) for key in ("label", "explanation")}
        marks = {cell["overlap"] for cell in cells if cell["text"]}
        if len(marks) == 1:
            row["overlap"] = marks.pop()
            cells[:] = [cell | {"overlap": ""} for cell in cells]
        table.append(row)
    return table


def _change(name: str, rung: dict, rungs: list[dict]) -> dict[str, Any] | None:
    """From the nearest ancestor that has the metric; without one, from the rung before that has it."""
    before = [*ancestors(rung, rungs), *reversed(rungs[: rungs.index(rung)])]
    base = next((r for r in before if scoreboard.measured(r["metrics"].get(name))[0] is not None), None)
    if base is None:
        return None
    metric = scoreboard.metric(name)
    value, low, high = scoreboard.measured(rung["metrics"][name])
    old, old_low, old_high = scoreboard.measured(base["metrics"][name])
    difference = value - old
    known = None not in (low, high, old_low, old_high)
    overlap = known and low <= old_high and old_low <= high
    before = scoreboard.show_metric(name, base["metrics"][name]).partition(" (")[0]
    change = {"base": base["name"], "before": before, "overlap": overlap, "apart": known and not overlap}
    size = f"{100 * abs(difference):.0f} pts" if metric.share else f"{abs(difference):.2f}"
    if float(size.split()[0]) == 0 and change["apart"]:  # many items tell small differences
        size = f"{100 * abs(difference):.1g} pts" if metric.share else f"{abs(difference):.1g}"
    if float(size.split()[0]) == 0:
        return change | {"text": "no change", "kind": "same"}
    kind = "same" if metric.better is None else "gain" if (difference > 0) == (metric.better == "higher") else "loss"
    size = "1 pt" if size == "1 pts" else size
    return change | {"text": f"{'▲' if difference > 0 else '▼'} {size}", "kind": kind}


def bases(table: list[dict]) -> list[str]:
    """For each rung, the one that most of its changes are counted from; empty where nothing is."""
    columns = zip(*(row["cells"] for row in table), strict=True)
    counted = ([cell["change"]["base"] for cell in cells if cell["text"] and cell["change"]] for cells in columns)
    return [max(names, key=names.count, default="") for names in counted]


def cost(report: dict, table: list[dict]) -> list[dict[str, Any]]:
    """What each rung after pre-training paid for what it learned: `{rung, base, loss, gain, same}`.

    A loss or a gain is one whose interval and that of the rung before it lie apart; the others, and those without an interval, are
    under `same`. Losses and gains read `Cloze: 100 % → 60 %`.
    """
    told, counted_from = [], bases(table)
    for index, rung in enumerate(report["rungs"]):
        cells = [(row["label"], row["cells"][index]) for row in table if row["metric"].better]
        changes = [(label, cell["text"], cell["change"]) for label, cell in cells if cell["text"] and cell["change"]]
        if rung["rung"] in FIRST or not changes:
            continue
        base = counted_from[index]
        found: dict[str, Any] = {"rung": rung["name"], "base": base, "loss": [], "gain": [], "same": []}
        for label, now, change in changes:
            kind = change["kind"] if change["apart"] else "same"
            since = "" if change["base"] == base else f" (since {change['base']})"
            found[kind].append(label if kind == "same" else f"{label}: {change['before']} → {now}{since}")
        told.append(found)
    return told


def say_k(text: str, report: dict) -> str:
    """`any of k` with the k that all evaluations share."""
    ks = {(rung["evaluation"].get("settings") or {}).get("k") for rung in report["rungs"]} - {None}
    return text.replace("any of k", f"any of {ks.pop()}") if len(ks) == 1 else text


def ancestors(rung: dict, rungs: list[dict]) -> list[dict]:
    """The rungs of this run that it grew from, its parent first. A circle, of rungs trained again, is gone round once."""
    found: list[dict] = []
    above = parent_of(rung, rungs)
    while above and above is not rung and above not in found:
        found.append(above)
        above = parent_of(above, rungs)
    return found


def headlines(report: dict, table: list[dict]) -> list[dict[str, Any]]:
    """A few metrics at the first rung and at the last of the longest descent: not at the best, so that a loss shows too."""
    rungs = report["rungs"]
    end = max(reversed(rungs), key=lambda rung: len(ancestors(rung, rungs)))
    line = {rung["name"] for rung in (end, *ancestors(end, rungs))} if ancestors(end, rungs) else {rung["name"] for rung in rungs}
    found = []
    for row in table:
        first = next(cell for cell in row["cells"] if cell["text"])
        last = [cell for cell in row["cells"] if cell["text"] and cell["rung"] in line and cell is not first]
        if row["name"] in HEADLINES and last:
            found.append({"label": row["label"], "first": first, "last": last[-1]})
    return found


def has_overlap(table: list[dict]) -> bool:
    """Whether any figure bears the mark that `scoreboard.OVERLAP` explains."""
    return any(row["overlap"] or any(cell["overlap"] for cell in row["cells"]) for row in table)


def markdown_table(report: dict) -> str:
    """Rungs by metrics as a Markdown table, the best of a column in bold."""
    table = compare(report)
    heads, *rows = lines(report, table)
    text = markdown(heads, rows)
    return f"{text}\n\n{scoreboard.OVERLAP}" if has_overlap(table) else text


def lines(report: dict, table: list[dict]) -> list[list[str]]:
    """A line of heads, then a line of cells per rung; the best of a column stands between `**`."""
    heads = ["Rung", *(_marked(row["label"], row) for row in table)] if table else ["Rung", "Results"]
    found = [heads]
    for index, rung in enumerate(report["rungs"]):
        texts = []
        for cell in (row["cells"][index] for row in table):
            text = f"{cell['text']} ({cell['interval']})" if cell.get("interval") else cell["text"] or ""
            texts.append(_marked(f"**{text}**" if cell.get("best") else text, cell))
        if not rung["evaluated"]:
            texts = ["not evaluated", *texts[1:]]
        found.append([rung["name"], *texts])
    return found


def _marked(text: str, place: dict) -> str:
    return f"{text} {place['overlap']}" if place["overlap"] else text
