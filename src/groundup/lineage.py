"""Which rung grew from which, and whether the files that are there are still those that the records tell of."""

import functools
from pathlib import Path
from typing import Any

from groundup import record
from groundup.results import ancestors, parent_of
from groundup.words import show_bytes, show_count

LARGEST = 50 * 2**30  # bytes of weights of a run: beyond it a report would be minutes of reading


def tree(rungs: list[dict], run_dir: str | Path) -> list[dict[str, Any]]:
    """The rungs that grew from none of this run, as `{rung, data, wrong, unchecked, outside, children}`, and so on.

    `outside` is the path of what it grew from, if that is no rung of the run. `wrong` has a line for what is not as recorded
    (`record.verify`), `unchecked` says why nobody looked, if so.
    """
    run_dir = Path(run_dir)
    size = sum(file.stat().st_size for rung in rungs for file in (run_dir / rung["name"]).glob("*.safetensors"))
    kept = functools.cache(record.hashes)  # every rung is its children's ancestor too
    nodes = {}
    for rung in rungs:
        directory = run_dir / rung["name"]
        why = ""
        if rung["status"] != "finished":
            why = "not finished" if rung["status"] else "no record"
        elif not rung["weights_sha256"] or not any(directory.glob("*.safetensors")):
            why = "no weights here"
        elif size > LARGEST:
            why = f"{show_bytes(size)} of weights: too many to read for a report"
        wrong = (
            [] if why else [line.replace(f"{run_dir}/", "") for line in record.verify(directory, lambda path: kept(path.resolve()))]
        )
        data = [(item["name"], describe(item)) for item in rung["data"]]
        nodes[rung["name"]] = {"rung": rung, "data": data, "unchecked": why, "wrong": wrong, "children": []}
    roots = []
    for rung in rungs:
        parent = parent_of(rung, rungs)
        inside = parent and rung not in ancestors(parent, rungs)  # else a circle, of rungs that were trained again
        nodes[rung["name"]]["outside"] = "" if inside else (rung["parent"] or {}).get("path") or ""
        (nodes[parent["name"]]["children"] if inside else roots).append(nodes[rung["name"]])
    return roots


def say(node: dict[str, Any]) -> str:
    """The verdict on a node of the tree in words."""
    return "; ".join(node["wrong"]) or (f"not checked: {node['unchecked']}" if node["unchecked"] else "as recorded")


def describe(item: dict) -> str:
    """`sha256 1f2e..., 1,200 rows, 3 dropped, 80 k tokens` for one entry of `data`."""
    parts = [f"sha256 {item['sha256'][:12]}"] if item.get("sha256") else []
    parts += [f"revision {item['revision'][:12]}"] if item.get("revision") else []
    counts = {**item, "dropped": sum((item.get("dropped") or {}).values())}
    parts += [f"{counts[key]:,} {key}" for key in ("rows", "kept", "dropped") if counts.get(key)]
    return ", ".join(parts + ([f"{show_count(item['tokens'])} tokens"] if item.get("tokens") else []))
