"""Two runs side by side: how far apart their figures are, and how surely, and what else differs between them.

Where a rung of both was asked the same items, they are compared item by item. What is hard for one model is mostly hard for the
other, and such luck with the items, which makes the intervals of single figures wide, cancels out.
"""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from groundup import record, scoreboard, stats
from groundup.curves import CURVES, ROLLOUTS, Chart, chart, curves, read_history
from groundup.errors import InputError
from groundup.page import render
from groundup.report import NOTE, collect
from groundup.words import is_number, markdown, show_bytes, show_count, show_processors, show_seconds

OTHERWISE = {  # what is known of a figure -> what is to be said where it differs
    "reference_sha256": "over other models",
    "prompt": "other prompts",
    "num_fewshot": "other examples",
    "decoding": "other decoding",
    "seed": "other seeds of sampling",
    "version": "other versions of the task",
}
COSTS = {"parameters": show_count, "steps": show_count, "tokens": show_count, "flops": show_count}
COSTS |= {"seconds": show_seconds, "peak_memory_bytes": show_bytes}
COST_WORDS = {"flops": "FLOPs", "seconds": "time", "peak_memory_bytes": "peak memory"}

# Figures -------------------------------------------------------------------------------------------------------------


def compare(run_a: str | Path, run_b: str | Path) -> dict[str, Any]:
    """All that two run directories, as `recipes/ladder.sh` writes them, let say about b beside a. Rungs are paired by name.

    Returns:
        `runs`, their paths; `rows`, a difference each (see `difference`) with its `rung`; `others`, `costs`, `alone`, `warnings`.

    Raises:
        InputError: no such run, twice the same, or nothing in common that was measured.
    """
    runs = [Path(run_a), Path(run_b)]
    if runs[0].resolve() == runs[1].resolve():
        raise InputError("the same run twice", str(runs[0]), "name two run directories, such as out/nano and out/seed1/out/nano")
    reports = [collect(run) for run in runs]
    named = [{rung["name"]: rung for rung in report["rungs"]} for report in reports]
    pairs = {name: (rung, named[1][name]) for name, rung in named[0].items() if name in named[1]}
    where = f"{runs[0]} and {runs[1]}"
    if not pairs:
        names = " and ".join(f"{', '.join(rungs)} ({run})" for rungs, run in zip(named, runs, strict=True))
        fix = "rungs are paired by the names of their directories; recipes/compare.py sets rungs of one run side by side"
        raise InputError(f"no rung in common: {names}", where, fix)
    for run, rungs in zip(runs, named, strict=True):
        if not any(rungs[name]["evaluated"] for name in pairs):
            fix = f"python recipes/evaluate_model.py --config recipes/nano/evaluate.yaml --run_dir {run} --models {' '.join(pairs)}"
            raise InputError(f"no rung of {run} has been evaluated", str(run), fix)
    rows = [row for name, pair in pairs.items() for row in _rows(name, pair, [run / name for run in runs])]
    if not rows:
        raise InputError("no figure in common", where, "evaluate both with the same files (recipes/nano/evaluate.yaml)")
    tested = [row for row in rows if row["tested"]]
    for row, stays in zip(tested, stats.holm([row["p"] for row in tested]), strict=True):
        row["stays"] = stays
    return {
        "runs": [run.as_posix() for run in runs],
        "names": [report["run"] for report in reports],
        "rungs": list(pairs),
        "rows": rows,
        "others": _others(pairs, runs),
        "costs": _costs(runs, list(pairs)),
        "alone": [[name for name in rungs if name not in pairs] for rungs in named],
        "warnings": [
            f"{letter}: {line}" for letter, lines in zip("AB", map(_warnings, runs, reports), strict=True) for line in lines
        ],
        "synthetic": any(report["synthetic"] for report in reports),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _warnings(run: Path, report: dict) -> list[str]:
    lines = list(report["warnings"])
    for rung in report["rungs"]:
        trained, measured = (read(run / rung["name"]) or {} for read in (record.read, record.read_evaluation))
        hashes = [one.get("weights_sha256") for one in (trained, measured)]
        if None not in hashes and hashes[0] != hashes[1]:
            lines.append(f"{rung['name']}: {record.EVALUATION} tells of other weights than {record.FILE}.")
    return lines


def _rows(name: str, pair: tuple[dict, dict], stages: list[Path]) -> list[dict[str, Any]]:
    items = [record.read_items(stage) for stage in stages]
    weights = [(record.read_evaluation(stage) or {}).get("weights_sha256") for stage in stages]
    same = weights[0] is not None and weights[0] == weights[1]
    rows = []
    for metric in scoreboard.order_metrics(pair[0]["metrics"]):
        figures = [rung["metrics"].get(metric) for rung in pair]
        if all(scoreboard.measured(figure)[0] is not None for figure in figures):
            row = difference(metric, figures, [kept.get(metric) for kept in items])
            # What the same weights gave twice says nothing about whether two models differ.
            rows.append({"rung": name, **row, "same_weights": same, "tested": row["p"] is not None and not same, "stays": False})
    return rows


def difference(name: str, figures: list[dict], items: list[dict | None]) -> dict[str, Any]:
    """One figure of b less that of a.

    Args:
        figures: a's and b's, as they stand in eval.json.
        items: what is kept of each one's items, if it is.

    Returns:
        `value`, `low`, `high` (95 %, None where not known), `apart` (from 0); `paired`, or else `why` not; `p` of no difference,
        for paired zeros and ones McNemar's, else the interval's; `kind` (gain, loss, or same: not apart, or not known what is
        better); `only` (items that only a, only b got right).
    """
    metric = scoreboard.metric(name)
    row: dict[str, Any] = {"metric": name, "label": metric.label, "figures": figures, "only": None, "p": None, "equal": False}
    row["why"] = why = _unpaired(figures, items)
    row["paired"] = why is None
    known = [key for key in OTHERWISE if all(key in figure for figure in figures)]
    row["otherwise"] = [OTHERWISE[key] for key in known if figures[0][key] != figures[1][key]]
    if row["paired"]:
        (a, b), clusters = [kept["values"] for kept in items], items[0].get("clusters")
        weights = (items[1]["weights"], items[0]["weights"]) if "weights" in items[0] else None
        found = stats.difference(b, a, clusters, weights)
        row["equal"] = a == b and (weights is None or weights[0] == weights[1])
        if {*a, *b} <= {0, 1} and clusters is None and weights is None:
            only_b, only_a, row["p"] = stats.mcnemar(b, a)
            row["only"] = [only_a, only_b]
        else:
            row["p"] = stats.chance(found)
    else:
        a, b = (dict(zip(("value", "low", "high"), scoreboard.measured(figure), strict=True)) for figure in figures)
        found = {"value": b["value"] - a["value"], "low": None, "high": None}
        if None not in (*a.values(), *b.values()):
            found["low"], found["high"] = stats.combine(b, a)
            row["p"] = stats.chance(found)
    row |= {key: found[key] for key in ("value", "low", "high")}
    row["apart"] = found["low"] is not None and not found["low"] <= 0 <= found["high"]
    better = {"higher": found["value"] > 0, "lower": found["value"] < 0}.get(metric.better or "")
    return row | {"kind": "same" if not row["apart"] or better is None else "gain" if better else "loss"}


def _unpaired(figures: list[dict], items: list[dict | None]) -> str | None:
    """Why two figures cannot be compared item by item, if so."""
    for letter, figure, kept in zip("AB", figures, items, strict=True):
        if not kept or not kept.get("values"):
            return f"no items kept of {letter}"
        mean = sum(kept["values"]) / (sum(kept["weights"]) if "weights" in kept else len(kept["values"]))
        if not math.isclose(mean, figure["value"], rel_tol=1e-9, abs_tol=1e-9):
            return f"the items of {letter} are not of its figure"  # someone wrote one file without the other
    a, b = items
    same = all(a.get(key) == b.get(key) for key in ("items_sha256", "clusters")) and len(a["values"]) == len(b["values"])
    return None if same else "other items"


# What else differs ---------------------------------------------------------------------------------------------------


def _others(pairs: dict[str, tuple[dict, dict]], runs: list[Path]) -> list[list[str]]:
    """Of settings, data and circumstances, a line each: what is it about, A -> B, and the rungs of which it is true."""
    found: dict[tuple[str, str], list[str]] = {}
    known = [name for name in pairs if any(record.read(run / name) for run in runs)]
    for name, pair in pairs.items():
        words = [set(record.strings([rung["config"], rung["data"], rung["parent"], rung["evaluation"]])) for rung in pair]
        told = [_told(run / name, rung, words[0] & words[1]) for run, rung in zip(runs, pair, strict=True)]
        asked = [one["evaluation"] for one in told]  # by another version of ours, perhaps: only what both know
        told[0]["evaluation"], told[1]["evaluation"] = ({key: one[key] for key in asked[0] if key in asked[1]} for one in asked)
        for topic, of_a in told[0].items():
            for line in record.changed(of_a, told[1][topic]):
                found.setdefault((topic, line), []).append(name)
    rungs = {
        tuple(names): "all" if names in (list(pairs), known) and len(names) > 1 else ", ".join(names) for names in found.values()
    }
    return [[topic, line, rungs[tuple(names)]] for (topic, line), names in found.items()]


def _told(stage: Path, rung: dict, shared: set[str]) -> dict[str, dict[str, Any]]:
    """By topic, what a rung's record says of how it came to be; paths within its run begin with `RUN`, but for `shared` ones."""
    run = record.read(stage) or {}
    config, hardware, parent = run.get("config") or {}, run.get("hardware") or {}, run.get("parent") or {}
    home = Path(str(config.get("output_dir") or stage)).parent.as_posix()

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {moved(key): moved(each) for key, each in value.items() if each is not None}
        if isinstance(value, list):
            return [moved(each) for each in value]
        own = isinstance(value, str) and value not in shared and f"{value}/".startswith(f"{home}/")
        return f"RUN{value[len(home) :]}" if own else value

    def short(digest: Any) -> str:
        return str(digest)[:12] if digest else "unknown"

    data = {}
    for item in rung["data"]:
        told = {key: short(item[key]) for key in ("sha256", "revision") if item.get(key)}
        counts = {key: item[key] for key in ("rows", "kept", "used", "tokens") if is_number(item.get(key))}
        data[moved(str(item.get("name")))] = told | counts
    seed = {} if "seed" in config else {"seed": rung["seed"]}
    begun = {"parent": moved(str(parent.get("path"))), "weights": short(parent.get("weights_sha256"))} if parent else {}
    return {
        "settings": moved({**config, "output_dir": None}) | seed,
        "data": data,
        "started from": begun | {"tokenizer": short(run.get("tokenizer_sha256"))} if run else {},
        "versions": {key: value for key, value in (rung["versions"] or {}).items() if value},
        "commit": {"commit": short(rung["git_commit"])} if run else {},
        "machine": {"processors": show_processors(hardware), "processes": rung["world_size"]} if hardware else {},
        "evaluation": moved(rung["evaluation"].get("settings") or {}),
    }


def _costs(runs: list[Path], names: list[str]) -> list[list[str]]:
    """What each rung took: its name, what of, A, B, and B / A where both are known."""
    lines = []
    for name in names:
        taken = [record.read(run / name) or {} for run in runs]
        for key, show in COSTS.items():
            a, b = (one.get(key) for one in taken)
            if (key in ("parameters", "steps") and a == b) or not (a or b):
                continue
            ratio = f"{b / a:.2f}" if is_number(a) and is_number(b) and a else ""
            lines.append([name, COST_WORDS.get(key, key), *(show(x) if is_number(x) else "" for x in (a, b)), ratio])
    return lines


# Words ---------------------------------------------------------------------------------------------------------------


def summary(found: dict) -> list[str]:
    """What can be said of all differences together, a sentence each."""
    rows, tested = found["rows"], [row for row in found["rows"] if row["tested"]]
    lines = [f"{_count(rows, 'figure')} of {_count(found['rungs'], 'rung')} stand side by side."]
    equal = _equal(found)
    if equal:
        lines.append(f"{', '.join(equal)}: the same weights, and the same on every item.")
    same = [name for name in found["rungs"] if name not in equal and any(r["rung"] == name and r["same_weights"] for r in rows)]
    if same:
        lines.append(f"{', '.join(same)}: the same weights; what differs there is not the model.")
    unpaired = [row for row in rows if not row["paired"]]
    if unpaired:
        reasons = ", ".join(dict.fromkeys(row["why"] for row in unpaired))
        lines.append(f"{len(unpaired)} are compared unpaired, by their two intervals ({reasons}): such a comparison sees less.")
    otherwise = [row for row in rows if row["otherwise"]]
    if otherwise:
        lines.append(f"{len(otherwise)} were measured otherwise in A than in B, and are no contest; the table says how.")
    if not tested:
        return lines
    apart = [row for row in tested if row["apart"]]
    kinds = {"better in B": "gain", "worse in B": "loss", "neither better nor worse": "same"}
    counts = [f"{n} {words}" for words, kind in kinds.items() if (n := sum(row["kind"] == kind for row in apart))]
    said = f"{'are' if len(apart) > 1 else 'is'} apart from 0 (95 %){': ' * bool(counts)}{', '.join(counts)}"
    lines.append(f"{len(apart) or 'None'} of {_count(tested, 'difference')} between different weights {said}.")
    lines.append("The intervals are about the items; what another seed of training would change is not in them.")
    if len(tested) > 1:
        stay = sum(row["stays"] for row in tested)
        lines.append(
            f"If nothing differed, about {len(tested) / 20:.1f} of {len(tested)} would be apart by chance. "
            f"If all are to hold at once (Holm's correction), {stay or 'none'} would be{', marked *' * bool(stay)}."
        )
    return lines


def _equal(found: dict) -> list[str]:
    """The rungs in which nothing can differ, and nothing does."""
    of = {rung: [row for row in found["rows"] if row["rung"] == rung] for rung in found["rungs"]}
    alike = {rung: [row["same_weights"] and row["equal"] and not row["otherwise"] for row in rows] for rung, rows in of.items()}
    return [rung for rung, each in alike.items() if each and all(each)]


def _count(things: list, what: str) -> str:
    return f"{len(things)} {what}{'s' * (len(things) != 1)}"


def tables(found: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, heads and lines of each table, for Markdown and terminals."""
    lines, equal = [], _equal(found)
    for row in found["rows"]:
        if row["rung"] not in equal:
            sides = [scoreboard.show_metric(row["metric"], figure) for figure in row["figures"]]
            lines.append([row["rung"], row["label"], *sides, show_difference(row), how(row)])
    made = [("", ["Rung", "Measure", "A", "B", "B - A (95 %)", "How"], lines)]
    if found["others"]:
        made.append(("What else differs", ["Of", "A -> B", "Rungs"], found["others"]))
    if found["costs"]:
        made.append(("What it took", ["Rung", "Of", "A", "B", "B / A"], found["costs"]))
    return made


def show_difference(row: dict) -> str:
    return f"{scoreboard.show_difference(row['metric'], row)} {word(row)}{'*' * row['stays']}".rstrip()


def word(row: dict) -> str:
    return {"gain": "better", "loss": "worse"}.get(row["kind"], "apart" if row["apart"] else "")


def how(row: dict) -> str:
    """`paired, n 200; right in A only 3, in B only 14; p 0.013`."""
    n = row["figures"][0].get("n")
    words = [f"paired, n {n:,}" if row["paired"] else f"unpaired: {row['why']}"]
    if row["only"] == [0, 0]:
        return "; ".join([*words, "the same on every item", *row["otherwise"]])
    words += [f"right in A only {row['only'][0]}, in B only {row['only'][1]}"] if row["only"] else []
    words += [f"p {row['p']:.3f}" if row["p"] >= 0.001 else "p below 0.001"] if row["p"] is not None else []
    return "; ".join(words + row["otherwise"])


def header(found: dict) -> list[str]:
    """Which run is A and which B, and what only one of them has."""
    lines = [f"{letter}: {run}" for letter, run in zip("AB", found["runs"], strict=True)]
    lines += [f"Only in {letter}: {', '.join(names)}." for letter, names in zip("AB", found["alone"], strict=True) if names]
    return lines


def as_markdown(found: dict) -> str:
    parts = ["\n".join(f"- {line}" for line in lines) for lines in (header(found) + found["warnings"], summary(found))]
    for title, heads, lines in tables(found):
        parts += [f"## {title}"] * bool(title) + [markdown(heads, lines)]
    return "\n\n".join(parts)


def write_comparison(found: dict, path: str | Path) -> Path:
    """The same as a page, with a plot of each difference around 0 and the curves of both runs, one over the other."""
    if Path(path).is_dir():
        raise InputError("this is a directory", str(path), "name a file, such as comparison.html")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    page = render(
        "comparison.html.j2",
        found=record.plain(found),
        title=" and ".join(dict.fromkeys(found["names"])) + ", side by side",
        note=NOTE if found["synthetic"] else "",
        header=header(found),
        summary=summary(found),
        rungs=[(rung, *_plots(found, rung)) for rung in found["rungs"] if rung not in _equal(found)],
        tables=[table for table in tables(found) if table[0]],
        charts=_charts(found),
    )
    return record.write_text(path, page)


def _plots(found: dict, rung: str) -> tuple[list[dict[str, Any]], str]:
    """The differences of a rung in words, and where they lie around 0, which is at 0.5; and those of which no item differs.

    The shares of a rung have one scale, any other measure its own, the same at every rung.
    """
    rows = [row for row in found["rows"] if row["rung"] == rung]
    lines, alike = [], []
    for row in rows:
        text, _, interval = scoreboard.show_difference(row["metric"], row).partition(" (")
        interval = interval.rstrip(")")
        if row["equal"] and not row["otherwise"]:
            alike.append(f"{row['label']} ({interval})")
            continue
        of = [r for r in found["rows"] if r["metric"] == row["metric"]]
        if scoreboard.metric(row["metric"]).share:
            of = [r for r in rows if scoreboard.metric(r["metric"]).share]
        most = max(abs(x) for r in of for x in (r["value"], r["low"], r["high"]) if x is not None) or 1
        ends = [row["value"] if x is None else x for x in (row["value"], row["low"], row["high"])]
        plot = [round(min(max(0.5 + x / most / 2, 0), 1), 4) for x in ends]
        sides = [scoreboard.show_metric(row["metric"], figure).partition(" (") for figure in row["figures"]]
        words = {"sides": [(value, interval.rstrip(")")) for value, _, interval in sides], "how": how(row), "plot": plot}
        lines.append({**row, **words, "text": text, "interval": interval, "word": word(row)})
    return lines, ", ".join(alike)


def _charts(found: dict) -> list[Chart]:
    """A chart for each curve that either run logged, but for those that are the same in both."""
    charts: dict[str, dict[str, dict]] = {}
    for rung in found["rungs"]:
        both = [curves(read_history(Path(run) / rung), CURVES | ROLLOUTS) for run in found["runs"]]
        for title, label in dict.fromkeys((title, label) for one in both for title, series in one.items() for label in series):
            series = {letter: one.get(title, {}).get(label) for letter, one in zip("AB", both, strict=True)}
            if series["A"] != series["B"] and any(len(points or ()) > 1 for points in series.values()):
                name = title if label in ("training", "critic", "policy") or label in title else f"{title}: {label}"
                charts.setdefault(rung, {})[name] = {letter: points for letter, points in series.items() if points}
    return chart(charts)
