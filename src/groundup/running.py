"""A rung under way: its directory, its record, and how it ends."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from groundup import record
from groundup.checkpoint import Lock
from groundup.errors import INTERRUPTED, SAVED, InputError


@dataclass
class Run:
    """A rung under way.

    Attributes:
        checkpoint: to resume from.
        allowed: what may be otherwise than before the interruption (`RunArguments.allow_change`).
        before: the record that the interrupted run left.
        lock: of the first process.
    """

    directory: Path
    record: dict[str, Any]
    checkpoint: str | None
    allowed: frozenset[str] = frozenset()
    before: dict[str, Any] = field(default_factory=dict)
    lock: Lock | None = None
    began: float = field(default_factory=time.perf_counter)
    data: list[dict] = field(default_factory=list)

    under_way: ClassVar["Run | None"] = None  # of this process: how it ends is known outside the recipe only

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return os.environ.get("RANK", "0") == "0"

    @property
    def seconds(self) -> float:
        """Of training, all parts of an interrupted run together."""
        return round(self.record["seconds"] + time.perf_counter() - self.began, 1)

    def say(self, line: str) -> None:
        """Print a line once, whatever the number of processes."""
        if self.main:
            print(f"{self.record['rung']}: {line}", flush=True)

    def note(self, **fields: Any) -> None:
        """Write these fields of run.json, as of now."""
        if self.main:
            record.update(self.directory, seconds=self.seconds, **fields)

    def uses(self, *sources: list[dict] | None) -> None:
        """Note where the rows came from (`Loaded.provenance`), and say what was dropped.

        Raises:
            InputError: the run goes on, and its rows are others than before.
        """
        entries = [entry for source in sources if source for entry in source]
        start = len(self.data)
        self.data += entries
        if self.checkpoint and "data" not in self.allowed:
            pairs = zip(self.before["data"][start:], record.plain(entries), strict=False)
            if changes := [line for then, now in pairs if (line := other(then, now))]:
                fix = "put the data back, or begin anew in another `output_dir`; `--allow_change data` goes on with these rows"
                raise InputError(f"the run goes on with other data: {'; '.join(changes)}", str(self.directory), fix)
        self.note(data=self.data)
        for entry in entries:
            for reason, count in entry.get("dropped", {}).items():
                self.say(f"{count:,} of {entry['rows']:,} rows dropped ({reason}): {entry['name']}")

    def ended(self, status: int, reason: str = "") -> int:
        """Write into run.json that the process ends with this exit status; launchers make 1 of all but 0.

        Returns:
            The status that stands there: of the process that ended first.
        """
        state = record.read(self.directory)
        if state and state["status"] == "running":  # whichever process ends first knows why
            name = "interrupted" if status in (SAVED, INTERRUPTED) else "failed"
            record.update(self.directory, status=name, exit_status=status, reason=reason.strip()[:2000], seconds=self.seconds)
        if self.lock:
            self.lock.release()
        Run.under_way = None
        return (state or {}).get("exit_status", status)


def other(then: dict[str, Any], now: dict[str, Any]) -> str | None:
    """How a source of rows differs from what it was, by its content: `name: sha256 0123456789ab -> ...`; None when it does not."""
    for key in ("sha256", "revision", "rows", "kept", "used"):
        if then.get(key) != now.get(key):
            told = [str(entry.get(key))[:12] for entry in (then, now)]
            return f"{now['name']}: {key} {' -> '.join(told)}"
    return None
