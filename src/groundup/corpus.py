"""A corpus that memory need not hold: sources that are dealt to parts, and the documents of a part, read as often as needed.

The rows of every source are dealt to the parts, whole files where a source has as many, else row by row. A part is always read in
the same order, so that a document is known by its number in it. `scan` reads a part once and keeps 23 bytes of each document:

- hash: 64 bits of its text;
- group: the hash of the first of the documents that a row is cut into, and of the name of a .txt among others. A group is held
  out whole or not at all.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from groundup.cleaning import clean, cut
from groundup.configs import DataArguments, PrepareArguments
from groundup.contamination import EvaluationSets
from groundup.data import stream_documents
from groundup.errors import InputError
from groundup.jobs import in_chunks
from groundup.record import write_aside, write_json
from groundup.sources import as_input_error, find_files, list_sources, open_hub, read_files
from xxhash import xxh3_64_intdigest

NOTE = np.dtype([("hash", "<u8"), ("group", "<u8"), ("size", "<u4"), ("source", "<u2"), ("dropped", "u1")])  # size in bytes
CHUNK = 1 << 20  # bytes of text that are checked for contamination at once
EXAMPLES = 3  # of each reason to drop a document


@dataclasses.dataclass
class Source:
    """A source as it was when the preparation began."""

    args: DataArguments  # with one `dataset`
    weight: float | None
    held_out: bool
    files: list[dict[str, Any]]  # `sha256`, `path`, `size`, `changed` (ns); none for a dataset of the Hub
    revision: str | None = None

    def check(self) -> None:
        """Raises InputError: a file is gone or another one."""
        for file in self.files:
            path = Path(file["path"])
            if not path.is_file():
                raise InputError("the file has vanished", str(path), "put it back; it was there when the preparation began")
            if (path.stat().st_size, path.stat().st_mtime_ns) != (file["size"], file["changed"]):
                raise changed(str(path))

    def rows(self, part: int, parts: int) -> Iterator[tuple[str, Any]]:
        """The rows of a part, each with its place."""
        self.check()
        whole = self.args.max_rows is None  # the first rows of a source are known only by counting through its files
        if self.files:
            whole = whole and len(self.files) >= parts
            files = deal(self.files, parts)[part] if whole else self.files
            rows = read_files([Path(file["path"]) for file in files], self.args.text_column)
        else:
            rows, whole = self._stream(part, parts, whole)
        rows = itertools.islice(rows, self.args.max_rows)
        return rows if whole else itertools.islice(rows, part, None, parts)

    def _stream(self, part: int, parts: int, whole: bool) -> tuple[Iterator[tuple[str, Any]], bool]:
        args = dataclasses.replace(self.args, dataset_revision=self.revision)
        builder = open_hub(args)
        with as_input_error(args):
            stream = builder.as_streaming_dataset(split=args.dataset_split)
            whole = whole and stream.num_shards >= parts
            stream = stream.shard(parts, part) if whole and parts > 1 else stream

        def rows() -> Iterator[tuple[str, Any]]:
            with as_input_error(args):
                yield from ((f"{args.dataset}, row {n}", row) for n, row in enumerate(stream, 1))

        return rows(), whole


class Document(NamedTuple):
    source: int
    place: str
    text: str
    size: int  # bytes
    hash: int
    group: int


def changed(where: str) -> InputError:
    return InputError("changed since the preparation began", where, "put the old one back, or give another `output_dir`")


def deal(files: list[dict], parts: int) -> list[list[dict]]:
    """The files of each part by name, about as many bytes in each."""
    dealt: list[list[dict]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for file in sorted(files, key=lambda file: (-file["size"], file["path"])):
        least = sizes.index(min(sizes))
        dealt[least].append(file)
        sizes[least] += file["size"]
    return [sorted(files, key=lambda file: file["path"]) for files in dealt]


def list_corpus(args: DataArguments) -> list[Source]:
    """The sources of both splits with what tells their content: sha256 of each file, or the commit on the Hub."""
    if args.datasets is not None and args.max_rows is not None:
        raise InputError("`max_rows` of a mixture", "max_rows", "write it into the entries of `datasets`: it counts the rows read")
    sources = []
    for which in ("train", "eval"):
        entries, weights = list_sources(args, which)
        for entry, weight in itertools.zip_longest(entries, weights):
            files = [
                {"sha256": sha256, "path": str(path.absolute()), "size": path.stat().st_size, "changed": path.stat().st_mtime_ns}
                for sha256, path in find_files(entry.dataset).items()
            ]
            revision = None if files else open_hub(entry).hash
            sources.append(Source(entry, weight, which == "eval", files, revision))
    return sources


def hash_text(raw: bytes) -> int:
    """64 bits, at 3 GB/s: among a billion documents it takes one for the duplicate of another with a chance of 3 %."""
    return xxh3_64_intdigest(raw)


def read_documents(
    sources: list[Source], args: PrepareArguments, part: int, parts: int, counts: list[Counter] | None = None
) -> Iterator[Document]:
    """The documents of a part, cleaned and cut. `counts` of each source gets `rows` and, by reason, what is no document."""
    counts = counts or [Counter() for _ in sources]
    for number, source in enumerate(sources):
        count, many = counts[number], len(source.files) > 1
        for place, text in stream_documents(source.rows(part, parts), source.args, count):
            if len(text) > args.longest and args.too_long == "drop":
                count["too long"] += 1
                continue
            group = hash_text(place.encode()) if many and place.lower().endswith((".txt", ".txt.gz")) else None
            for piece in cut(text, args.longest):  # and then cleaned: a copy of the whole could be 400 MB
                piece, raw = clean(piece)
                if len(piece) < args.shortest or not piece.strip():
                    count["too short"] += 1
                    continue
                own = hash_text(raw)
                group = own if group is None else group
                yield Document(number, place, piece, len(raw), own, group)


def scan(
    sources: list[Source],
    args: PrepareArguments,
    part: int,
    directory: Path,
    filters: list[tuple[str, Callable]],
    sets: EvaluationSets | None,
) -> dict[str, Any]:
    """Read a part once, and note what is in it: `scan-<part>.notes` and, when it is whole, `scan-<part>.json`.

    Raises:
        InputError: what cannot be read, and where it stands.
    """
    counts: list[Counter] = [Counter() for _ in sources]
    seen: dict[str, Any] = {"documents": 0, "bytes": 0, "examples": {}, "contaminated": 0}
    items, by_set = set(), np.zeros(len(sets.names) if sets else 0, dtype=np.int64)
    path = directory / f"scan-{part:05d}.notes"
    with write_aside(path) as file:
        for chunk in in_chunks(read_documents(sources, args, part, args.shards, counts), CHUNK):
            reasons = [next((why for name, judge in filters if (why := verdict(name, judge, d.text))), None) for d in chunk]
            to_check = [n for n, d in enumerate(chunk) if reasons[n] is None and not sources[d.source].held_out]
            if sets and to_check:
                overlap = sets.check([chunk[n].text for n in to_check])
                hit = np.flatnonzero(overlap.hits >= args.contaminated_from)
                pairs = overlap.pairs[np.isin(overlap.pairs[:, 0], hit)]
                items.update(pairs[:, 1].tolist())
                sets_hit = np.unique(np.stack([pairs[:, 0], sets.set_of(pairs[:, 1])], axis=1), axis=0)
                by_set += np.bincount(sets_hit[:, 1], minlength=len(by_set))
                seen["contaminated"] += len(hit)
                for n in hit.tolist() if args.contaminated == "drop" else ():
                    reasons[to_check[n]] = "contaminated"
            for document, reason in zip(chunk, reasons, strict=True):
                seen["documents"] += 1
                seen["bytes"] += document.size
                if reason:
                    counts[document.source][reason] += 1
                    if len(shown := seen["examples"].setdefault(reason, [])) < EXAMPLES:
                        shown.append({"place": document.place, "text": document.text[:200]})
            rows = [(d.hash, d.group, d.size, d.source, r is not None) for d, r in zip(chunk, reasons, strict=True)]
            file.write(np.array(rows, dtype=NOTE).tobytes())
    seen |= {"counts": counts, "contaminated_by_set": by_set.tolist(), "items": sorted(items)}
    write_json(path.with_suffix(".json"), seen)
    return seen


def read_notes(directory: Path, part: int) -> np.ndarray:
    """What `scan` noted of a part, (documents,) of NOTE, mapped."""
    path = directory / f"scan-{part:05d}.notes"
    return np.memmap(path, NOTE, "r") if path.stat().st_size else np.empty(0, NOTE)


def verdict(name: str, judge: Callable, text: str) -> str | None:
    """Why a filter of datatrove drops a document, None when it keeps it."""
    from datatrove.data import Document as Judged

    kept = judge(Judged(text=text, id=""))
    kept, reason = kept if isinstance(kept, tuple) else (kept, None)
    return None if kept else f"{name}: {reason}" if reason else name
