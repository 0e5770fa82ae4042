"""Checkpoints that are whole or passed over, and a directory that one run at a time writes to.

The Trainer writes a checkpoint's files one by one, and takes the one with the largest number, whatever is in it. Here a manifest is
written when all else is there: a directory without one was never finished, and one whose files differ from it is damaged.
Staging a directory and renaming it is what transformers tried and took back (huggingface/transformers#36076, #36112).
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from groundup.errors import InputError
from groundup.record import write_json

MANIFEST = "MANIFEST.json"
LOCK = ".lock"
GONE = ".gone"


# One checkpoint ------------------------------------------------------------------------------------------------------


def seal(checkpoint: Path, **facts: Any) -> Path:
    """Write the manifest of a checkpoint of which all files are there: name, bytes and sha256 of each, all of it on the disk.

    Args:
        facts: what else to keep with it, as plain values.
    """
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST):
        files[path.relative_to(checkpoint).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path, sync=True)}
    written = write_json(checkpoint / MANIFEST, {"schema": 1, **facts, "files": files})
    for directory in (checkpoint, checkpoint.parent):
        _sync_directory(directory)
    return written


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None when it is what was sealed.

    A manifest that names a file outside the directory, or a link, is damage too: nothing there is read.
    """
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not readable"
    if not expected:
        return f"{MANIFEST} names no files"
    root = checkpoint.resolve()
    for name, (size, digest) in expected.items():
        path = checkpoint / name
        if Path(name).is_absolute() or ".." in Path(name).parts or path.resolve() != root / name:
            return f"{MANIFEST} names {name}, which is not inside"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, not {size:,}"
        if _sha256(path) != digest:
            return f"{name} is not what was written (sha256)"
    return None


def _sha256(path: Path, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# All of a run's ------------------------------------------------------------------------------------------------------


def checkpoints(directory: str | Path) -> list[tuple[int, Path]]:
    """Step and path of each `checkpoint-N`, in order, whatever is in them."""
    found = [(step_of(path), path) for path in Path(directory).glob("checkpoint-*") if path.is_dir()]
    return sorted((step, path) for step, path in found if step is not None)


def step_of(checkpoint: str | Path) -> int | None:
    """The step that a checkpoint's name tells, `checkpoint-N` at the end of a path; None for another name."""
    match = re.fullmatch(r"checkpoint-([0-9]+)", Path(checkpoint).name)
    return int(match[1]) if match else None


def newest_checkpoint(directory: str | Path, saved: int | None = None) -> tuple[str | None, list[str]]:
    """The newest whole checkpoint of a stage directory, and what was found on the way: a line for each newer one.

    One that was never finished is deleted: a run was killed while it saved. One that is damaged is set aside under another name,
    once an older one is found to go on from.

    Args:
        saved: the last step that the run's record says was saved.

    Raises:
        InputError: checkpoints were saved, and none is whole. They stay as they are.
    """
    unfinished, damaged, found = [], [], None
    for step, path in reversed(checkpoints(directory)):
        wrong = damage(path)
        if wrong is None:
            found = str(path)
            break
        (damaged if step == saved or (path / MANIFEST).exists() else unfinished).append((path, wrong))
    if found is None and (damaged or saved is not None):
        told = "; ".join(f"{path.name}: {wrong}" for path, wrong in damaged)
        fix = "put a checkpoint back as it was written; to begin anew, give another `output_dir` or remove this one"
        what = f"no checkpoint is whole: {told or f'step {saved} was saved, and there is no checkpoint'}"
        raise InputError(what, str(directory), fix)
    passed_over = []
    for path, wrong in unfinished:
        discard(path)
        passed_over.append(f"{path} was not finished, and is gone: {wrong}")
    for path, wrong in damaged:
        aside = next(p for n in range(1000) if not (p := path.with_name(f"{path.name}.damaged{n or ''}")).exists())
        os.replace(path, aside)
        passed_over.append(f"{path} is damaged: {wrong}; set aside as {aside.name}")
    return found, passed_over


def rotate(directory: Path, keep: int | None, *spared: str | Path | None) -> None:
    """Delete all but the newest `keep` sealed checkpoints and those `spared`; None keeps all. One at least stays."""
    if not keep:
        return
    sealed = [path for _, path in checkpoints(directory) if (path / MANIFEST).is_file()]
    for path in sealed[: -max(keep, 1)]:
        if path.resolve() not in [Path(other).resolve() for other in spared if other]:
            discard(path)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint such that a kill in the middle leaves no part of it under its name."""
    away = checkpoint.with_name(f".{checkpoint.name}{GONE}")
    shutil.rmtree(away, ignore_errors=True)
    os.replace(checkpoint, away)
    shutil.rmtree(away)


def sweep(directory: Path) -> None:
    """Delete what kills left behind: checkpoints half deleted, files that never got their name. One must have the directory."""
    for path in directory.glob(f".checkpoint-*{GONE}"):
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(".*.tmp"):  # record.write_aside
        path.unlink(missing_ok=True)


# One run at a time ---------------------------------------------------------------------------------------------------


class Lock:
    """A stage directory of one's own, until `release` or the end of the process.

    A POSIX record lock: the kernel drops it with the process, so that none is ever stale; forked workers do not hold it.

    Raises:
        InputError: another process has it, or the directory cannot be written to.
    """

    def __init__(self, directory: Path):
        self.directory, self.path, self.file = directory, directory / LOCK, None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            while self.file is None:
                file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
                self._take(file)
                if self.path.is_file() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    self.file = file
                else:  # its last holder removed it just now
                    file.close()
        except OSError as error:
            raise InputError(f"cannot write there: {error.strerror}", str(directory), "give another `output_dir`") from None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.file.truncate(0)
        self.file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}) + "\n")
        self.file.flush()

    def _take(self, file: IO[str]) -> None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            try:
                holder = json.loads(file.read())
                who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
            except (ValueError, KeyError, TypeError):
                who = "another process"
            file.close()
            fix = "wait for it or stop it, or give another `output_dir`"
            raise InputError(f"the directory is in use by {who}", str(self.directory), fix) from None

    def release(self) -> None:
        """Give it back; a directory in which nothing was written goes with it."""
        if self.file is None:
            return
        self.path.unlink(missing_ok=True)
        self.file.close()
        self.file = None
        if not any(self.directory.iterdir()):
            self.directory.rmdir()
