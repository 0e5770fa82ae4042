"""The run as one page: every rung's numbers with intervals, its curves, and its replies to the same prompts.

Reads what the rungs left in their directories (`run.json`, `eval.json`, `trainer_state.json`); no rung knows about it.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from groundup import record, scoreboard
from groundup.curves import draw, read_curves
from groundup.errors import InputError
from groundup.page import render
from groundup.words import is_number, markdown, show_bytes, show_count, show_processors, show_seconds

RUNGS = {
    "tokenizer": "text is cut into pieces",
    "random": "random weights, nothing learned",
    "pretrain": "reads documents, learns what comes next",
    "sft": "learns to answer",
    "dpo": "learns from preferred replies directly",
    "reward": "learns to tell the better reply",
    "ppo": "learns what is liked, from the reward model",
    "grpo": "learns to reason, from right answers",
}
FROM_RECORD = ("status", "parent", "started", "seconds", "tokens", "flops", "parameters", "world_size", "command", "git_commit")
FROM_RECORD += ("versions", "hardware", "config", "plan", "peak_memory_bytes", "prepared")
HEADLINES = ("bits_per_byte", "asked", "true_win_rate", "problems")
# Collecting ----------------------------------------------------------------------------------------------------------


def collect(run_dir: str | Path) -> dict[str, Any]:
    """All rungs of a run in ladder order. A directory with `run.json` or `eval.json` counts as one."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise InputError(f"no run directory {run_dir}", fix="give the directory that holds the rungs, such as out/nano")
    stages = [path for path in run_dir.iterdir() if path.is_dir() and not path.name.startswith(".")]
    rungs = [rung for rung in map(_read_rung, stages) if rung is not None]
    if not rungs:
        if (run_dir / record.FILE).is_file() or (run_dir / record.EVALUATION).is_file():
            fix = f"{run_dir} is itself a rung: give the directory above it, {run_dir.resolve().parent.name}"
        else:
            fix = "a rung is a directory with run.json or eval.json; train one first: recipes/pretrain.py"
        raise InputError("no rung to report on", where=str(run_dir), fix=fix)
    place = {name: index for index, name in enumerate(scoreboard.LADDER)}
    rungs.sort(key=lambda rung: (place.get(rung["rung"], len(place)), rung["started"] or "", rung["name"]))
    metrics = scoreboard.order_metrics(name for rung in rungs for name in rung["metrics"])
    return {
        "schema": 1,
        "run": run_dir.resolve().name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "synthetic": any(record.is_synthetic(rung["data"]) for rung in rungs),
        "metrics": metrics,
        "warnings": _warnings(rungs),
        "rungs": rungs,
    }


def _read_rung(directory: Path) -> dict[str, Any] | None:
    run, evaluation = record.read(directory), record.read_evaluation(directory)
    if run is None and evaluation is None:
        return None
    known, measured = run or {}, evaluation or {}
    return {
        **{key: known.get(key) for key in FROM_RECORD},
        "rung": str(known.get("rung") or measured.get("rung") or directory.name),
        "name": directory.name,
        "seed": known.get("seed", measured.get("seed")),
        "data": known.get("data") or [],
        "final": known.get("metrics") or {},
        "evaluated": evaluation is not None,
        "metrics": measured.get("metrics") or {},
        "by_difficulty": measured.get("by_difficulty") or {},
        "samples": measured.get("samples") or [],
        "evaluation": {key: measured.get(key) for key in ("seed", "seconds", "settings") if key in measured},
        "gate": record.read_json(directory / record.GATE),
    }


def _parent_of(rung: dict, rungs: list[dict]) -> dict | None:
    """The rung of this run whose directory the rung's parent path names."""
    path = (rung["parent"] or {}).get("path")
    return next((other for other in rungs if path and other["name"] == Path(path).name and other is not rung), None)


def _warnings(rungs: list[dict]) -> list[str]:
    found = []
    for rung in rungs:
        if rung["status"] in ("running", "interrupted", "failed"):
            found.append(f"{rung['name']} is {rung['status']}: its numbers are not final.")
        parent = _parent_of(rung, rungs)
        if parent and (parent["started"] or "") > (rung["started"] or "~"):
            found.append(f"{parent['name']} was trained again after {rung['name']} had read it: not one ladder.")
    return found


# Comparing -----------------------------------------------------------------------------------------------------------


def _compare(report: dict) -> list[dict[str, Any]]:
    """One entry per metric, with a cell per rung: value, interval, best or not, change from the rung it grew from."""
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
            cell = {"rung": rung["name"], "text": None}
            if value is not None:
                text, _, interval = scoreboard.show_metric(name, rung["metrics"][name]).partition(" (")
                low, high = (value, value) if low is None or high is None else (low, high)
                bar = [round(min(max(x / (top or 1), 0), 1), 4) for x in (value, low, high)]
                cell |= {"text": text, "interval": interval.rstrip(")"), "bar": bar, "best": value == best}
                cell |= {"n": rung["metrics"][name].get("n"), "change": _change(name, rung, rungs)}
                cell["overlap"] = scoreboard.show_overlap(rung["metrics"][name])
            cells.append(cell)
        label, explanation = _say_k(metric.label, report), _say_k(metric.explanation, report)
        table.append({"name": name, "label": label, "explanation": explanation, "metric": metric, "cells": cells})
    return table


def _change(name: str, rung: dict, rungs: list[dict]) -> dict[str, Any] | None:
    """From the nearest ancestor that has the metric; without one, from the rung before that has it."""
    base, seen = _parent_of(rung, rungs), []
    while base and base not in seen and scoreboard.measured(base["metrics"].get(name))[0] is None:
        seen.append(base)
        base = _parent_of(base, rungs)
    if base is None or base in seen:
        before = rungs[: rungs.index(rung)]
        base = next((r for r in reversed(before) if scoreboard.measured(r["metrics"].get(name))[0] is not None), None)
    if base is None:
        return None
    metric = scoreboard.metric(name)
    value, low, high = scoreboard.measured(rung["metrics"][name])
    old, old_low, old_high = scoreboard.measured(base["metrics"][name])
    difference = value - old
    size = f"{100 * abs(difference):.0f} pts" if metric.share else f"{abs(difference):.2f}"
    size = "1 pt" if size == "1 pts" else size
    if float(size.split()[0]) == 0:
        return {"text": "no change", "base": base["name"], "kind": "same"}
    overlap = None not in (low, high, old_low, old_high) and low <= old_high and old_low <= high
    kind = "same" if metric.better is None else "gain" if (difference > 0) == (metric.better == "higher") else "loss"
    text = f"{'▲' if difference > 0 else '▼'} {size}"
    return {"text": text, "base": base["name"], "kind": kind, "overlap": overlap}


def _say_k(text: str, report: dict) -> str:
    """`any of k` with the k that all evaluations share."""
    ks = {(rung["evaluation"].get("settings") or {}).get("k") for rung in report["rungs"]} - {None}
    return text.replace("any of k", f"any of {ks.pop()}") if len(ks) == 1 else text


def _prompts(rungs: list[dict]) -> list[dict[str, Any]]:
    """Each prompt once, in order of appearance, with every evaluated rung's reply (None where it was not asked)."""
    replies: dict[tuple[str, str], dict[str, str]] = {}
    for rung in rungs:
        for sample in rung["samples"]:
            key = (_text(sample.get("kind") or ""), _text(sample.get("prompt")))
            replies.setdefault(key, {})[rung["name"]] = _text(sample.get("reply"))
    asked = [rung["name"] for rung in rungs if rung["samples"]]
    return [
        {"kind": kind, "prompt": prompt, "replies": [(name, found.get(name)) for name in asked]}
        for (kind, prompt), found in replies.items()
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _difficulty(report: dict) -> list[dict[str, Any]]:
    tables = []
    for name in scoreboard.order_metrics(key for rung in report["rungs"] for key in rung["by_difficulty"]):
        found = {rung["name"]: rung["by_difficulty"].get(name) or {} for rung in report["rungs"]}
        levels = sorted({level for results in found.values() for level in results}, key=lambda x: (len(x), x))
        rows = []
        for rung, results in found.items():
            cells = [(scoreboard.show_metric(name, results.get(x)), scoreboard.measured(results.get(x))[0]) for x in levels]
            if results:
                rows.append((rung, cells))
        tables.append({"label": _say_k(scoreboard.metric(name).label, report), "levels": levels, "rows": rows})
    return tables


def _predictions(rungs: list[dict]) -> list[list[str]]:
    """What was foreseen beside what was found: rung, what, prediction, fact and their ratio, for each figure that has both."""
    lines = []
    for rung in rungs:
        plan = rung["plan"] or {}
        figures = (
            ("peak memory", (plan.get("memory") or {}).get("tracked"), rung["peak_memory_bytes"], show_bytes),
            ("time", plan.get("seconds"), rung["seconds"], show_seconds),
            ("tokens", plan.get("tokens"), rung["tokens"], show_count),
        )
        for what, foreseen, fact, show in figures:
            if rung["status"] == "finished" and is_number(foreseen) and is_number(fact) and fact > 0:
                lines.append([rung["name"], what, show(foreseen), show(fact), f"{foreseen / fact:.2f}"])
    return lines


def _preparation(rungs: list[dict]) -> list[list[str]]:
    """How documents became tokens, a line of rung, what, documents and tokens for each count of a manifest (groundup.shards)."""
    lines = []
    for rung in rungs:
        manifest = rung["prepared"] or {}

        def line(what: str, documents: Any = None, tokens: Any = None, name: str = rung["name"]) -> None:
            counts = [f"{count:,}" if is_number(count) else "" for count in (documents, tokens)]
            lines.append([name, what, *counts])

        if manifest.get("documents"):
            line("read", manifest["documents"])
        for reason, count in (manifest.get("dropped") or {}).items():
            line(f"dropped: {reason}", count)
        decontamination = manifest.get("decontamination") or {}
        if "notice" in decontamination:
            line(decontamination["notice"])
        for entry in decontamination.get("sets") or ():
            line(f"contaminated by {entry['name']}: {entry['items_found']} of {entry['items']} items found", entry["documents"])
        for split, counts in (manifest.get("splits") or {}).items():
            line(f"{split}, {manifest.get('packing')}", counts.get("documents"), counts.get("tokens"))
            for reason, entry in (counts.get("dropped") or {}).items():
                line(f"{split}, dropped: {reason}", entry.get("documents"), entry.get("tokens"))
            if counts.get("padding"):
                line(f"{split}, padding", None, counts["padding"])
            if counts.get("split_documents"):
                line(f"{split}, longer than a row and cut", counts["split_documents"])
    return lines


def _environments(rungs: list[dict]) -> list[dict[str, str]]:
    """Machine and versions, once for all rungs that share them."""
    groups: dict[tuple[str, str], list[str]] = {}
    for rung in rungs:
        hardware, versions = rung["hardware"] or {}, rung["versions"] or {}
        if hardware or versions:
            libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
            processes = f", {rung['world_size']} processes" if (rung["world_size"] or 1) > 1 else ""
            groups.setdefault((show_hardware(hardware) + processes, libraries), []).append(rung["name"])
    return [{"rungs": ", ".join(names), "machine": key[0], "versions": key[1]} for key, names in groups.items()]


# Words ---------------------------------------------------------------------------------------------------------------


def show_hardware(hardware: dict) -> str:
    memory = [f"{hardware['memory_gb']:g} GB"] if hardware.get("memory_gb") else []
    machine = [hardware["machine"]] if hardware.get("machine") else []
    return ", ".join(show_processors(hardware) + memory + machine)


def _story(report: dict) -> str:
    rungs = report["rungs"]
    seconds = sum(rung["seconds"] for rung in rungs if is_number(rung["seconds"]))
    ladder = " → ".join(rung["name"] for rung in rungs)
    return f"{ladder}." + (f" {show_seconds(seconds)} of training in all." if seconds else "")


def _provenance(item: dict) -> str:
    """`sha256 1f2e..., 1,200 rows, 3 dropped, 80 k tokens` for one entry of `data`."""
    parts = [f"sha256 {item['sha256'][:12]}"] if item.get("sha256") else []
    parts += [f"revision {item['revision'][:12]}"] if item.get("revision") else []
    counts = {**item, "dropped": sum((item.get("dropped") or {}).values())}
    parts += [f"{counts[key]:,} {key}" for key in ("rows", "kept", "dropped") if counts.get(key)]
    return ", ".join(parts + ([f"{show_count(item['tokens'])} tokens"] if item.get("tokens") else []))


NOTE = "toyland is a synthetic world generated from a seed: its people, places and problems are invented."


# Writing -------------------------------------------------------------------------------------------------------------


def write_report(run_dir: str | Path) -> Path:
    """Write `report.json`, `report.md` and `report.html` in the run directory; returns the path of the last."""
    run_dir = Path(run_dir)
    report = record.plain(collect(run_dir))
    table = _compare(report)
    words = {
        "report": report,
        "provenance": _provenance,
        "table": table,
        "story": _story(report),
        "note": NOTE if report["synthetic"] else "",
        "environments": _environments(report["rungs"]),
        "predictions": _predictions(report["rungs"]),
        "gates": [(rung["name"], scoreboard.gate_table(rung["gate"]), rung["gate"]) for rung in report["rungs"] if rung["gate"]],
        "preparation": _preparation(report["rungs"]),
    }
    figures = [
        {"rung": rung["name"], "title": title, "series": list(series), "svg": draw(f"{title}, {rung['name']}", series)}
        for rung in report["rungs"]
        for title, series in read_curves(run_dir / rung["name"]).items()
    ]
    page = render(
        "report.html.j2",
        **words,
        rung_words=RUNGS,
        headlines=_headlines(table),
        figures=figures,
        prompts=_prompts(report["rungs"]),
        difficulty=_difficulty(report),
    )
    record.write_json(run_dir / "report.json", report)
    record.write_text(run_dir / "report.md", render("report.md.j2", **words, results=markdown_table(report)))
    return record.write_text(run_dir / "report.html", page)


def _headlines(table: list[dict]) -> list[dict[str, Any]]:
    """The first and the last rung's value of a few metrics: the last, not the best, so that a loss shows too."""
    cells = {row["label"]: [cell for cell in row["cells"] if cell["text"]] for row in table if row["name"] in HEADLINES}
    return [{"label": label, "first": c[0], "last": c[-1]} for label, c in cells.items() if len(c) > 1]


def markdown_table(report: dict) -> str:
    """Rungs by metrics as a Markdown table, the best of a column in bold."""
    heads, *rows = results(report)
    return markdown(heads, rows)


def results(report: dict) -> list[list[str]]:
    """A line of heads, then a line of cells per rung; the best of a column stands between `**`."""
    table = _compare(report)
    heads = ["Rung", *(row["label"] for row in table)] if table else ["Rung", "Results"]
    lines = [heads]
    for index, rung in enumerate(report["rungs"]):
        texts = []
        for cell in (row["cells"][index] for row in table):
            text = f"{cell['text']} ({cell['interval']})" if cell.get("interval") else cell["text"] or ""
            texts.append(f"**{text}**" if cell.get("best") else text)
        if not rung["evaluated"]:
            texts = ["not evaluated", *texts[1:]]
        lines.append([rung["name"], *texts])
    return lines
