"""Where rows come from: local files and datasets of the Hub, opened row by row, and the mixture of several sources.

A source is a local file (see SUFFIXES), a directory or glob of such files, or an id on the Hub; a local name wins.
"""

import contextlib
import dataclasses
import difflib
import glob
import gzip
import hashlib
import itertools
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from groundup.configs import DataArguments
from groundup.errors import InputError

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
OTHER_SUFFIXES = (".gz", ".csv", ".tsv", ".zip", ".zst", ".arrow", ".xml", ".html", ".md", ".pdf")  # a file, no Hub id
NOT_DATA = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "README", "MANIFEST", "")  # also in .txt; "": hidden
SPLITS = {"train", "test", "val", "valid", "validation", "dev"}  # a directory holds one of them
COLUMN_KEYS = [field.name for field in dataclasses.fields(DataArguments) if field.name.endswith("_column")]
ENTRY_KEYS = ["path", "weight", "dataset_config", "dataset_split", "dataset_revision", "max_rows", "max_bad_rows"]
ENTRY_KEYS += ["max_dropped_share", *COLUMN_KEYS]
WHOLE, PIECE = 1_000_000, 100_000  # bytes: a .txt file longer than the first is cut into documents of the second
CHUNK = 500  # rows that are Python objects at a time; one chunk of an Arrow column holds at most 2 GB of text
LONGEST = 1 << 27  # bytes of a line: what has no end within 128 MB is no text, and would fill the memory
ONE_OBJECT = 'write one object per line, such as {"prompt": "...", "completion": "..."}'


def list_sources(args: DataArguments, which: str) -> tuple[list[DataArguments], list[float | None]]:
    """What to read, as arguments with one `dataset` each; and the weights of a mixture, empty when it is none."""
    if which == "eval":
        own = {"dataset": args.eval_dataset, "dataset_split": args.eval_split, "max_rows": args.max_eval_rows}
        return [dataclasses.replace(args, datasets=None, **own)] if args.eval_dataset else [], []
    if args.datasets is None:
        return [args], []
    sources, weights = [], []
    for n, entry in enumerate(args.datasets, 1):
        where = f"entry {n} of `datasets`"
        if not isinstance(entry, dict) or "path" not in entry:
            raise InputError(f"no `path` in {show(entry)}", where, "write `{path: FILE_OR_HUB_ID, weight: 0.5}`")
        check_keys(entry, ENTRY_KEYS, where)
        for key, value in entry.items():
            if key in ["path", *COLUMN_KEYS] and not isinstance(value, str):
                raise InputError(f"`{key}: {show(value)}` is no name", where, f"write `{key}: NAME`")
            if key == "weight" and not (type(value) in (int, float) and 0 < value < float("inf")):
                raise InputError(f"`weight: {show(value)}`", where, "write a number above 0, such as `weight: 0.5`")
        own = {"max_rows": None} | {key: entry[key] for key in entry if key not in ("path", "weight")}
        sources.append(dataclasses.replace(args, dataset=entry["path"], datasets=None, **own))
        weights.append(entry.get("weight"))
    if not sources or (None in weights and set(weights) != {None}):
        what = "some entries have a weight, others have none" if sources else "the list is empty"
        raise InputError(what, "`datasets`", "write `[{path: ..., weight: ...}, ...]`, weights in all or in none")
    return sources, weights


def check_keys(entry: dict[str, Any], known: list[str], where: str) -> None:
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            fix = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
            raise InputError(f"unknown key `{key}`", where, fix)


def mix(sizes: list[int], weights: list[float | None], limit: int | None, seed: int) -> list[int]:
    """The mixture that `groundup.data` describes, as row numbers through all sources; none is rounded to nothing."""
    generator, order, start, counts = random.Random(seed), [], 0, sizes
    if None not in weights:
        total = min(size / weight for size, weight in zip(sizes, weights, strict=True))
        total = min(total, (limit or sum(sizes)) / sum(weights))
        counts = [min(size, max(1, round(total * weight))) for size, weight in zip(sizes, weights, strict=True)]
    for size, count in zip(sizes, counts, strict=True):
        order += generator.sample(range(start, start + size), count)
        start += size
    generator.shuffle(order)
    return order[:limit]


def open_source(args: DataArguments) -> tuple[Iterator[tuple[str, Any]], dict[str, Any]]:
    """Pairs of a place, such as file and line, and the row there, a line of JSON as bytes; and where all come from."""
    if files := find_files(args.dataset):
        return read_files(files.values(), args.text_column), describe_files(files)
    builder = open_hub(args)
    with as_input_error(args):
        builder.download_and_prepare()
        rows = builder.as_dataset(split=args.dataset_split)
    return ((f"{args.dataset}, row {n}", row) for n, row in enumerate(rows, 1)), {"revision": builder.hash, "files": 0}


def find_files(name: str) -> dict[str, Path]:
    """Of a local source the sha256 and path of each file, equal files once; empty when it can only be an id on the Hub."""
    files: dict[str, Path] = {}
    for path in _local_files(name):
        if path.stat().st_size == 0:
            raise InputError("the file is empty", str(path), "put rows into it, or remove it")
        with open(path, "rb") as file:
            files.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), path)
    return files


def describe_files(files: Iterable[str]) -> dict[str, Any]:
    """What a record says of files with these sha256."""
    files = list(files)
    return {"sha256": files[0] if len(files) == 1 else hashlib.sha256("".join(files).encode()).hexdigest(), "files": len(files)}


def read_files(paths: Iterable[Path], text_column: str) -> Iterator[tuple[str, Any]]:
    """The rows of local files, one after another; a .txt that is not UTF-8 gives an InputError in place of a row."""
    return itertools.chain.from_iterable(_file_rows(path, text_column) for path in paths)


class Drop(Exception):
    """A row with nothing in it, and the reason."""


def convert_rows(
    rows: Iterable[tuple[str, Any]], convert: Callable[[dict], Any], max_bad_rows: int, counts: Counter
) -> Iterator[tuple[str, Any]]:
    """Place and what `convert` makes of each row; `counts` gets `rows`, and by reason those that it drops or that are bad.

    Raises:
        InputError: more bad rows than `max_bad_rows`.
    """
    for place, row in rows:
        counts["rows"] += 1
        try:
            row = parse(row) if isinstance(row, bytes) else row
            if isinstance(row, InputError):
                raise row
            if not isinstance(row, dict):
                raise InputError(f"{show(row)} where an object should be", fix=ONE_OBJECT)
            yield place, convert(row)
        except Drop as reason:
            counts[str(reason)] += 1
        except InputError as error:
            counts["did not parse"] += 1
            if counts["did not parse"] > max_bad_rows:
                more = f" (more bad rows than `max_bad_rows: {max_bad_rows}`)" if max_bad_rows else ""
                raise InputError(error.what + more, error.where or place, error.fix) from None


HUB_ERRORS = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)


def open_hub(args: DataArguments) -> datasets.DatasetBuilder:
    """The builder of a dataset of the Hub, because only the builder knows which commit it resolved (as `hash`)."""
    with as_input_error(args):
        return datasets.load_dataset_builder(args.dataset, args.dataset_config, revision=args.dataset_revision)


@contextlib.contextmanager
def as_input_error(args: DataArguments) -> Iterator[None]:
    """What the Hub, the network or `datasets` has to say against a dataset, as InputError."""
    try:
        yield
    except HUB_ERRORS as error:
        reason = str(error).partition("\n")[0]
        what = f"no local file or directory `{args.dataset}`, and none from the Hub: {reason}"
        where = f"config {args.dataset_config}, split {args.dataset_split}, revision {args.dataset_revision}"
        raise InputError(what, where, "check the path; or the id `user/name`, the split and the network") from error


def _local_files(name: str) -> list[Path]:
    """The files that a name stands for, sorted; none when it can only be an id on the Hub."""
    path = Path(name).expanduser()
    found = [path] if path.is_file() else [Path(p) for p in glob.glob(str(path), recursive=True)]
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.name.split(".")[0].upper() not in NOT_DATA]
    usable = sorted(p for p in found if p.name.lower().endswith(SUFFIXES) and p.is_file())
    splits = SPLITS.intersection(re.split("[^a-z]", " ".join(p.name.lower() for p in usable)))
    if path.is_dir() and len(splits) > 1:  # or the run would train on what it is evaluated on
        raise InputError(f"a directory with {' and '.join(sorted(splits))} files", name, f"name one: `{usable[0]}`")
    if usable:
        return usable
    if found or path.exists():
        raise InputError("no file of a kind that can be read", name, f"supported: {', '.join(SUFFIXES)}")
    a_file = name.lower().endswith(SUFFIXES + OTHER_SUFFIXES) or "*" in name
    if not (a_file or name.startswith((".", "/", "~")) or name.count("/") > 1):
        return []
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    lost = path.absolute().relative_to(folder).parts[0]
    near = difflib.get_close_matches(lost, [p.name for p in folder.iterdir()])
    fix = f"did you mean {' or '.join(f'`{p}`' for p in near)}?" if near else "check the path"
    raise InputError(f"no such file: `{lost}` is not in {folder}", name, fix)


def _file_rows(path: Path, text_column: str) -> Iterator[tuple[str, Any]]:
    name = path.name.lower().removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            batches = (batch.to_pylist() for batch in pq.ParquetFile(path).iter_batches(CHUNK))
            yield from ((f"{path}, row {n}", row) for n, row in enumerate(itertools.chain.from_iterable(batches), 1))
            return
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            if name.endswith(".txt"):
                documents = _documents(_lines(file, path), path)
                yield from ((str(path), d if isinstance(d, InputError) else {text_column: d}) for d in documents)
            elif name.endswith(".json") and file.peek(1024).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"["):
                yield from ((f"{path}, row {n}", row) for n, row in enumerate(parse(file.read(), str(path)), 1))
            else:
                yield from ((f"{path}, line {n}", line) for n, line in enumerate(_lines(file, path), 1) if line.strip())
    except (gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowException) as error:
        raise InputError(f"the file is damaged: {error}", str(path), "copy it again") from error
    except FileNotFoundError:
        raise InputError("the file has vanished", str(path), "put it back; it was there when the sources were listed") from None


def _lines(file: Any, path: Path) -> Iterator[bytes]:
    for n in itertools.count(1):
        line = file.readline(LONGEST)
        if len(line) == LONGEST:
            raise InputError(f"a line longer than {LONGEST >> 20} MB", f"{path}, line {n}", "is it text? cut it into lines")
        if not line:
            return
        yield line


def _documents(lines: Iterable[bytes], path: Path) -> Iterator[str | InputError]:
    pieces, piece, size, total, first = [], [], 0, 0, 1  # a piece is the number of its first line, and its lines
    for n, line in enumerate(lines, 1):
        piece.append(line)
        size, total = size + len(line), total + len(line)
        if size >= PIECE and (not line.strip() or size >= WHOLE):
            pieces.append((first, piece))
            piece, size, first = [], 0, n + 1
        if total > WHOLE:
            yield from (_document(*part, path) for part in pieces)
            pieces = []
    if pieces or piece:
        pieces.append((first, piece))
        yield _document(pieces[0][0], [line for _, part in pieces for line in part], path)


def _document(first: int, lines: list[bytes], path: Path) -> str | InputError:
    try:
        return "".join(_decode(line, f"{path}, line {n}") for n, line in enumerate(lines, first))
    except InputError as error:  # a value, so that a reader who is allowed to can go on with the next document
        return error


def _decode(line: bytes, where: str = "") -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        other = "UTF-16: iconv -f utf-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else "Latin-1: iconv -f latin1"
        raise InputError(what, where, f"save it as UTF-8; from {other} -t utf-8 OLD > NEW") from None


def parse(line: bytes, where: str = "") -> Any:
    """The JSON of a line, or InputError."""
    text = _decode(line, where).rstrip()  # an error at the end of the line is then in the line
    try:
        value = json.loads(text)
        if re.search(r"\\u[dD]", text):  # perhaps half a surrogate pair, which neither Arrow nor a tokenizer takes
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        if "\0" in text:
            fix = "a crash or a full disk leaves such lines: copy the file again, or take the line out"
            raise InputError(f"a NUL byte at column {text.index(chr(0)) + 1}", where, fix) from None
        raise InputError(f"not JSON: {str(error).replace('line 1 ', '')}", where, ONE_OBJECT) from None


def show(value: Any) -> str:
    """A value as a message can quote it: JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
