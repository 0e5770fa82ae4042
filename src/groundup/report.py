"""The run as one page: every rung's numbers with intervals, its curves, and its replies to the same prompts.

Reads what the rungs left in their directories (`run.json`, `eval.json`, `trainer_state.json`); no rung knows about it.
"""

import itertools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from groundup import record, scoreboard
from groundup.curves import CURVES, ROLLOUTS, chart, curves, not_finite, read_history
from groundup.diagnostics import diagnose, telling
from groundup.errors import InputError
from groundup.lineage import describe, say, tree
from groundup.page import render
from groundup.results import bases, compare, cost, has_overlap, headlines, markdown_table, parent_of, say_k
from groundup.words import is_number, show_bytes, show_count, show_processors, show_seconds

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
PROMPTS, CHARACTERS = 40, 500_000  # shown of what the models said: a report can be sent
FROM_RECORD = ("status", "parent", "started", "seconds", "tokens", "flops", "parameters", "world_size", "command", "git_commit")
FROM_RECORD += ("versions", "hardware", "config", "plan", "peak_memory_bytes", "prepared", "weights_sha256")


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
        "warnings": _warnings(rungs, run_dir),
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


def _warnings(rungs: list[dict], run_dir: Path) -> list[str]:
    found = []
    for rung in rungs:
        if rung["status"] in ("running", "interrupted", "failed"):
            found.append(f"{rung['name']} is {rung['status']}: its numbers are not final.")
        parent = parent_of(rung, rungs)
        if parent and (parent["started"] or "") > (rung["started"] or "~"):
            found.append(f"{parent['name']} was trained again after {rung['name']} had read it: not one ladder.")
        if lost := not_finite(read_history(run_dir / rung["name"])):
            found.append(f"{rung['name']} logged what is no number: {', '.join(lost)}.")
    return found


# Telling -------------------------------------------------------------------------------------------------------------------


def _prompts(rungs: list[dict]) -> list[dict[str, Any]]:
    """The first PROMPTS, once each, with every evaluated rung's reply (None where it was not asked), all within CHARACTERS."""
    replies: dict[tuple[str, str], dict[str, str]] = {}
    for rung in rungs:
        for sample in rung["samples"]:
            key = (_text(sample.get("kind") or ""), _text(sample.get("prompt")))
            replies.setdefault(key, {})[rung["name"]] = _text(sample.get("reply"))
    asked = [rung["name"] for rung in rungs if rung["samples"]]
    shown = list(replies.items())[:PROMPTS]
    longest = max(200, min(4000, CHARACTERS // max(1, len(shown) * (1 + len(asked)))))
    return [
        {
            "kind": kind,
            "prompt": _cut(prompt, longest),
            "replies": [(name, found.get(name) and _cut(found[name], longest)) for name in asked],
        }
        for (kind, prompt), found in shown
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(text: str, longest: int) -> str:
    more = len(text) - longest
    return text if more <= 0 else f"{text[:longest]} [... {more:,} more characters in {record.EVALUATION}]"


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
        tables.append({"label": say_k(scoreboard.metric(name).label, report), "levels": levels, "rows": rows})
    return tables


def _predictions(rungs: list[dict]) -> list[list[str]]:
    """What was foreseen beside what was found: rung, what, prediction, fact and how far off, for each figure that has both."""
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
                lines.append([rung["name"], what, show(foreseen), show(fact), _say_ratio(foreseen / fact)])
    return lines


def _say_ratio(ratio: float) -> str:
    percent = round(100 * (ratio - 1))
    return f"{percent} % too high" if percent > 0 else f"{-percent} % too low" if percent < 0 else "right to 1 %"


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


def _environments(rungs: list[dict]) -> list[list[str]]:
    """Rungs, machine and versions, once for all rungs that share them."""
    groups: dict[tuple[str, str], list[str]] = {}
    for rung in rungs:
        hardware, versions = rung["hardware"] or {}, rung["versions"] or {}
        if hardware or versions:
            libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
            processes = f", {rung['world_size']} processes" if (rung["world_size"] or 1) > 1 else ""
            groups.setdefault((show_hardware(hardware) + processes, libraries), []).append(rung["name"])
    return [[", ".join(names), *key] for key, names in groups.items()]


# Words ---------------------------------------------------------------------------------------------------------------


def show_hardware(hardware: dict) -> str:
    memory = [f"{hardware['memory_gb']:g} GB"] if hardware.get("memory_gb") else []
    machine = [hardware["machine"]] if hardware.get("machine") else []
    return ", ".join(show_processors(hardware) + memory + machine)


def _says(rung: dict) -> str:
    """What the rung teaches, in a few words."""
    judged = any("model" in spec for spec in (rung["config"] or {}).get("rewards") or [])  # by a reward model, GRPO too
    return RUNGS["ppo"] if judged else RUNGS.get(rung["rung"], "")


def _story(report: dict) -> str:
    rungs = report["rungs"]
    seconds = sum(rung["seconds"] for rung in rungs if is_number(rung["seconds"]))
    ladder = " → ".join(rung["name"] for rung in rungs)
    return f"{ladder}." + (f" {show_seconds(seconds)} of training in all." if seconds else "")


NOTE = "toyland is a synthetic world generated from a seed: its people, places and problems are invented."


# Writing -------------------------------------------------------------------------------------------------------------


def write_report(run_dir: str | Path) -> Path:
    """Write `report.json`, `report.md` and `report.html` in the run directory; returns the path of the last."""
    run_dir = Path(run_dir)
    report = record.plain(collect(run_dir))
    rungs, table = report["rungs"], compare(report)
    histories = {rung["name"]: telling(rung, read_history(run_dir / rung["name"])) for rung in rungs}
    # Rollouts' curves stand with the rest of what is known of a rollout, the others by title, so that rungs can be compared.
    charts = chart({name: curves(history, CURVES | ROLLOUTS) for name, history in histories.items()})
    plain = sorted((c for c in charts if c.title in CURVES), key=lambda c: list(CURVES).index(c.title))
    diagnoses = filter(None, (diagnose(rung, histories[rung["name"]], table) for rung in rungs))
    words = {
        "report": report,
        "table": table,
        "marked": has_overlap(table),
        "overlap": scoreboard.OVERLAP,
        "story": _story(report),
        "note": NOTE if report["synthetic"] else "",
        "cost": cost(report, table),
        "diagnoses": [(found, [c for c in charts if c.title in ROLLOUTS and c.rung == found["rung"]]) for found in diagnoses],
        "environments": _environments(rungs),
        "predictions": _predictions(rungs),
        "tree": tree(rungs, run_dir),
        "say": say,
        "describe": describe,
        "preparation": _preparation(rungs),
    }
    page = render(
        "report.html.j2",
        **words,
        rung_words={rung["name"]: _says(rung) for rung in rungs},
        bases=bases(table),
        headlines=headlines(report, table),
        charts=[(title, list(group)) for title, group in itertools.groupby(plain, lambda c: c.title)],
        prompts=_prompts(rungs),
        difficulty=_difficulty(report),
    )
    record.write_json(run_dir / "report.json", report)
    record.write_text(run_dir / "report.md", render("report.md.j2", **words, results=markdown_table(report)))
    return record.write_text(run_dir / "report.html", page)
