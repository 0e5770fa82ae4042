"""Which evaluated items a model was trained on: 13-grams in the files that its records name (groundup.contamination)."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from groundup import record
from groundup.contamination import CHUNK, EvaluationSets
from groundup.errors import InputError
from groundup.jobs import in_chunks
from groundup.sources import convert_rows, describe_files, find_files, read_files


class Unchecked(Exception):
    """Why nobody knows."""


class Exposure:
    """What is looked for. Files that several models were trained on are read once.

    Args:
        texts: by file or task, of each item what identifies it.
    """

    def __init__(self, texts: dict[str, list[list[str]]]):
        entries, self.short = [], []
        for name, items in texts.items():
            entry = {"path": name, "items": items}
            try:
                EvaluationSets([entry])
                entries.append(entry)
            except InputError:  # no text of it is long enough
                self.short.append(name)
        self.sets = EvaluationSets(entries)
        self.found: dict[str, np.ndarray] = {}  # sha256 of a source -> the items that are in it

    def of(self, directory: str | Path) -> dict[str, dict[str, Any]]:
        """By file or task `share` of the `items` that were looked for which stand in the training data, all files that the model
        and those before it were trained on taken whole; how many were `too_short` to be looked for. Or why it is `unchecked`.
        """
        unchecked = {name: {"unchecked": "no text of eight words or more"} for name in self.short}
        try:
            sources = training_data(directory)
            seen = [self._seen(entry) for entry in sources]
        except (Unchecked, InputError) as reason:
            told = reason.what if isinstance(reason, InputError) else str(reason)
            return unchecked | {name: {"unchecked": told} for name in self.sets.names}
        items = np.unique(np.concatenate([*seen, np.empty(0, dtype=np.int64)]))
        counts = np.bincount(self.sets.set_of(items), minlength=len(self.sets.names)).tolist()
        looked_for = [n - short for n, short in zip(self.sets.items, self.sets.short, strict=True)]
        return unchecked | {
            name: {"share": count / n, "items": n, "too_short": short}
            for name, count, n, short in zip(self.sets.names, counts, looked_for, self.sets.short, strict=True)
        }

    def _seen(self, entry: dict[str, Any]) -> np.ndarray:
        name, sha256 = entry["name"], entry.get("sha256")
        if sha256 not in self.found:
            files = find_files(name) if sha256 else {}
            if not files:
                raise Unchecked(f"{name} is no local file")
            if describe_files(files)["sha256"] != sha256:
                raise Unchecked(f"{name} has changed since it was trained on")
            rows = convert_rows(
                read_files(files.values(), "text"), lambda row: list(record.strings(row)), len(files) << 40, Counter()
            )
            found = [np.empty(0, dtype=np.int64)]
            for texts in in_chunks((text for _, row in rows for text in row), CHUNK, size_of=len):
                found.append(np.unique(self.sets.check(texts).pairs[:, 1]))
            self.found[sha256] = np.unique(np.concatenate(found))
        return self.found[sha256]


def training_data(directory: str | Path) -> list[dict[str, Any]]:
    """The sources that a model and those it grew from were trained on, as run.json has them; held-out ones are not among them.

    Raises:
        Unchecked: a record is missing.
    """
    here: Path | None = Path(directory)
    found: list[dict[str, Any]] = []
    while here:
        run = record.read(here)
        if run is None:
            raise Unchecked("there is no record of what it was trained on")
        if run.get("rung") != "random":  # its record is that of the run it began
            config = run.get("config") or {}
            trained = {config.get("dataset"), *(source.get("path") for source in config.get("datasets") or [])}
            held_out = {config.get("eval_dataset")} - trained  # or it was trained on all the same
            read = [entry for entry in run.get("data") or [] if entry.get("name") not in held_out]
            # prepare.py says of each source how many of its documents it held out
            found += [entry for entry in read if not (entry.get("held_out") and entry["held_out"] == entry.get("used"))]
        parent = run.get("parent")
        here = record.find_parent(parent, here) if parent else None
        if parent and not here:
            raise Unchecked(f"the record of {parent.get('path')}, which it grew from, is not there")
    return found
