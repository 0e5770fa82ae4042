"""What a SIGKILL would leave on the disk, at each moment at which a recipe writes.

Everything that Python opens for writing, renames, makes or removes raises an audit event just before; weights and pickles are
written by native code, whose calls are wrapped. At each such point the directory is copied. Nothing of a process outlives a SIGKILL
but the files it has written, so a copy is what a kill there leaves.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LABELS = "labels.jsonl"
PLACE_OF_DESCRIPTOR = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}


class Camera:
    """Copies `directory` into a folder of `album` at each point, of this process and not of those it forks."""

    def __init__(self, directory: str, album: str):
        self.directory, self.album, self.owner = os.path.realpath(directory), Path(album), os.getpid()
        self.count, self.busy = 0, False
        self.album.mkdir()

    def take(self, label: str) -> None:
        if self.busy or os.getpid() != self.owner:
            return
        self.busy = True
        try:
            if os.path.isdir(self.directory):
                shutil.copytree(self.directory, self.album / f"{self.count:04}")
                with open(self.album / LABELS, "a") as file:
                    file.write(json.dumps(label) + "\n")
                self.count += 1
        finally:
            self.busy = False

    def inside(self, path, descriptor: int = -1) -> str | None:
        """The path within the directory, of one that may be relative to an open directory."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return None
        base = os.readlink(f"/proc/self/fd/{descriptor}") if descriptor not in (-1, None) else os.getcwd()
        full = os.path.normpath(os.path.join(base, os.fsdecode(path)))
        return os.path.relpath(full, self.directory) if (full + "/").startswith(self.directory + "/") else None

    def hear(self, event: str, args: tuple) -> None:
        if self.busy:
            return
        if event == "open":
            path = self.inside(args[0]) if args[2] & (os.O_WRONLY | os.O_RDWR) else None
        elif event == "os.rename":
            path = self.inside(args[1], args[3])
        elif event in PLACE_OF_DESCRIPTOR:
            path = self.inside(args[0], args[PLACE_OF_DESCRIPTOR[event]])
        else:
            return
        if path is not None:
            self.take(f"{event} {path}")


def begin(directory: str, album: str) -> None:
    """Take pictures of `directory` in this process from now on."""
    import safetensors.torch
    import torch
    from transformers import TokenizersBackend

    camera = Camera(directory, album)

    def wrapped(function, place):
        def call(*args, **kwargs):
            path = camera.inside(args[place] if len(args) > place else kwargs["save_directory"])
            if path is not None:
                camera.take(f"write {path}")
            result = function(*args, **kwargs)
            if path is not None:
                camera.take(f"written {path}")
            return result

        return call

    torch.save = wrapped(torch.save, 1)
    safetensors.torch.serialize_file = wrapped(safetensors.torch.serialize_file, 1)
    TokenizersBackend._save_pretrained = wrapped(TokenizersBackend._save_pretrained, 1)
    sys.addaudithook(camera.hear)


@dataclass
class Picture:
    """A directory as a kill leaves it, before the event `label`; `cut` is a file of which only the first half was written."""

    place: Path
    label: str
    cut: str | None = None

    def put(self, directory: Path, link: bool = False) -> Path:
        """The directory as it was left; with `link` its files are the picture's own, to be moved or deleted but not written to."""
        shutil.copytree(self.place, directory, copy_function=os.link if link else shutil.copyfile)
        if self.cut:
            whole = (directory / self.cut).read_bytes()
            (directory / self.cut).unlink()
            (directory / self.cut).write_bytes(whole[: len(whole) // 2])
        return directory


def written(before: Path | None, after: Path) -> list[str]:
    """Files that hold something else, or were not there."""

    def content(root: Path | None) -> dict[str, bytes]:
        files = root.rglob("*") if root else ()
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.is_file()}

    old = content(before)
    return [name for name, text in content(after).items() if old.get(name) != text]


def pictures(album: Path) -> Iterator[Picture]:
    """All of an album in order, and before each that shows a newly written file one that shows the half of it.

    Raises:
        AssertionError: two files were written between two pictures: one of them was not seen.
    """
    labels = [json.loads(line) for line in (album / LABELS).read_text().splitlines()]
    before, event = None, ""
    for number, label in enumerate(labels):
        place = album / f"{number:04}"
        if not event.startswith("os.rename"):  # what is renamed is whole under its new name at once
            news = [name for name in written(before, place) if (place / name).stat().st_size]
            assert len(news) <= 1, f"between `{event}` and `{label}`: {news}"
            for name in news:
                yield Picture(place, f"{name} half written", name)
        yield Picture(place, label)
        before, event = place, label
