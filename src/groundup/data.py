"""Rows for the rungs: documents, conversations, preferences, prompts and problems, from own files or the Hub.

A source is a local file (see SUFFIXES), a directory or glob of such files, or an id on the Hub; a local name wins. A
row is kept, *dropped* (a needed column is empty or nothing is to be learnt; counted by reason), or *bad* (it does not
parse or holds a wrong type: InputError with file and line or, up to `max_bad_rows` a source, skipped and counted).

`dataset` keeps the order of its files, read by name. `datasets` is a mixture, shuffled by `seed`. Without weights it
holds every row once. With weights, in all entries, it is the largest set in which each source has its share of rows
and none comes twice: the scarcest source is used up, of the others a random part is taken. `max_rows` takes the first
rows of the result, and in an entry the first of that source. Rows are in memory, in every process, as Arrow tables.
"""

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
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import InMemoryTable

from groundup.chat import ROLES
from groundup.configs import DataArguments
from groundup.errors import InputError

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
OTHER_SUFFIXES = (".gz", ".csv", ".tsv", ".zip", ".zst", ".arrow", ".xml", ".html", ".md", ".pdf")  # a file, no Hub id
NOT_DATA = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "README", "MANIFEST", "")  # also in .txt; "": hidden
SPLITS = {"train", "test", "val", "valid", "validation", "dev"}  # a directory holds one of them
COLUMN_KEYS = [field.name for field in dataclasses.fields(DataArguments) if field.name.endswith("_column")]
ENTRY_KEYS = ["path", "weight", "dataset_config", "dataset_split", "dataset_revision", "max_rows", "max_bad_rows"]
ENTRY_KEYS += COLUMN_KEYS
# Other names of columns: they are suggested, and never taken silently.
ASKED = ("instruction", "input", "query", "problem", "question", "title")
REPLIED = ("response", "output", "reply", "target", "solution", "answers", "answer")
ALIASES = {"prompt": ASKED, "question": ASKED, "completion": REPLIED, "answer": REPLIED}
ALIASES |= {"text": ("content", "document", "body"), "messages": ("conversations", "conversation", "turns", "dialog")}
WHOLE, PIECE = 1_000_000, 100_000  # bytes: a .txt file longer than the first is cut into documents of the second
CHUNK = 500  # rows that are Python objects at a time; one chunk of an Arrow column holds at most 2 GB of text
ONE_OBJECT = 'write one object per line, such as {"prompt": "...", "completion": "..."}'
A_TURN = '{"role": "user", "content": "..."}'
CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


class Loaded(NamedTuple):
    """`provenance` has of each source its `name`, `sha256` (of the file; of several, of their hex digests in a row) or
    `revision` (commit on the Hub), `files`, `rows` read, `kept`, `dropped` by reason."""

    rows: datasets.Dataset
    provenance: list[dict[str, Any]]


class Drop(Exception):
    """A row with nothing in it, and the reason."""


def load_documents(args: DataArguments, which: str = "train", seed: int = 0) -> Loaded | None:
    """Rows of `text`. `which` is "train" or "eval"; None for "eval" without an `eval_dataset`.

    A .txt file is one document; above 1 MB it is cut at blank lines into documents of about 100 kB, which joined are
    the file. A list of texts is one document, blank lines between. Raises InputError, as all five, for bad input.
    """
    schema, columns = [("text",)], {"text": pa.string()}
    return _load(
        args, which, seed, "document", schema, lambda row, roles, _: {"text": _text(row, roles["text"])}, columns
    )


def load_conversations(args: DataArguments, which: str = "train", seed: int = 0) -> Loaded | None:
    """Rows of `messages`, lists of {role, content} that end with the assistant: unanswered turns are cut off.

    Of messages, prompt and completion, question and answer the first that a row has is read, renamed ones first.
    Messages may be a list of texts, said by user and assistant in turn; of a list of answers the first is taken.
    """

    def convert(row: dict, roles: dict[str, str], args: DataArguments) -> dict:
        if "messages" in roles:
            return {"messages": _chat(row, roles["messages"], "assistant", args, may_be_text=False)}
        column = roles.get("completion") or roles["answer"]
        return {"messages": _prompt(row, roles, args) + _chat({column: _answer(row.get(column))}, column, "assistant")}

    schemas = [("messages",), ("prompt", "completion"), ("question", "answer")]
    return _load(args, which, seed, "conversation", schemas, convert, {"messages": CHAT})


def load_preferences(args: DataArguments, which: str = "train", seed: int = 0) -> Loaded | None:
    """Rows of `prompt`, `chosen`, `rejected`: lists of {role, content}, the last two of one assistant message each.

    Chosen and rejected are texts or lists of messages; what such lists share at the start is the prompt, if anything.
    """

    def convert(row: dict, roles: dict[str, str], args: DataArguments) -> dict:
        chosen, rejected = (_chat(row, roles[side], "assistant", args) for side in ("chosen", "rejected"))
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if any([turn["role"] for turn in side] != ["assistant"] for side in (chosen, rejected)):
            raise Drop("chosen and rejected differ in more than one reply")
        if chosen[0]["content"].strip() == rejected[0]["content"].strip():
            raise Drop("chosen equals rejected")
        if not prompt and len(roles) == 2:
            raise _missing(row, schemas[:2], args, "prompt")
        return {"prompt": prompt or _prompt(row, roles, args), "chosen": chosen, "rejected": rejected}

    schemas = [("prompt", "chosen", "rejected"), ("question", "chosen", "rejected"), ("chosen", "rejected")]
    return _load(args, which, seed, "preference", schemas, convert, dict.fromkeys(schemas[0], CHAT))


def load_prompts(args: DataArguments, which: str = "train", seed: int = 0) -> Loaded | None:
    """Rows of `prompt`, a list of {role, content} that ends with the user, and the source's other scalar columns.

    Read from prompt, question or messages, up to the last user's turn. A column of numbers and text becomes text.
    """

    def convert(row: dict, roles: dict[str, str], args: DataArguments) -> dict:
        left_out = {"prompt", *roles.values(), args.context_column}
        others = {name: value for name, value in row.items() if name not in left_out}
        return {"prompt": _prompt(row, roles, args), **others}

    return _load(args, which, seed, "prompt", [("prompt",), ("question",), ("messages",)], convert, {"prompt": CHAT})


def load_problems(args: DataArguments, which: str = "train", seed: int = 0) -> Loaded | None:
    """Rows of `prompt` (list of {role, content}), `answer` (text; the number 6.0 becomes "6"), `difficulty` if any.

    Read from question and answer, prompt and answer, or prompt and completion; of several answers the first.
    """

    def convert(row: dict, roles: dict[str, str], args: DataArguments) -> dict:
        column = roles.get("answer") or roles["completion"]
        problem = {"prompt": _prompt(row, roles, args), "answer": _text({column: _answer(row.get(column))}, column)}
        return problem | {name: row[name] for name in ("difficulty",) if name in row}

    schemas = [("question", "answer"), ("prompt", "answer"), ("prompt", "completion")]
    return _load(args, which, seed, "problem", schemas, convert, {"prompt": CHAT, "answer": pa.string()})


def _load(args, which: str, seed: int, noun: str, schemas: list, convert: Callable, columns: dict) -> Loaded | None:
    sources, weights = _sources(args, which)
    if not sources:
        return None
    tables, extras = [], []  # the extras of a row are what `columns` lacks; their types are known when all are read
    provenance = [_read(source, noun, schemas, convert, pa.schema(columns), tables, extras) for source in sources]
    table = pa.concat_tables(tables)
    for name in dict.fromkeys(name for row in extras for name in row):
        column = _column([row.get(name) for row in extras])
        table = table if column is None else table.append_column(name, column)
    rows, sizes = datasets.Dataset(InMemoryTable(table)), [source["kept"] for source in provenance]
    return Loaded(rows.select(_mix(sizes, weights, args.max_rows, seed)) if weights else rows, provenance)


def _sources(args: DataArguments, which: str) -> tuple[list[DataArguments], list[float | None]]:
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
            raise InputError(f"no `path` in {_shown(entry)}", where, "write `{path: FILE_OR_HUB_ID, weight: 0.5}`")
        for key, value in entry.items():
            if key not in ENTRY_KEYS:
                near = difflib.get_close_matches(str(key), ENTRY_KEYS, 1)
                fix = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(ENTRY_KEYS)}"
                raise InputError(f"unknown key `{key}`", where, fix)
            if key in ["path", *COLUMN_KEYS] and not isinstance(value, str):
                raise InputError(f"`{key}: {_shown(value)}` is no name", where, f"write `{key}: NAME`")
            if key == "weight" and not (type(value) in (int, float) and 0 < value < float("inf")):
                raise InputError(f"`weight: {_shown(value)}`", where, "write a number above 0, such as `weight: 0.5`")
        own = {"max_rows": None} | {key: entry[key] for key in entry if key not in ("path", "weight")}
        sources.append(dataclasses.replace(args, dataset=entry["path"], datasets=None, **own))
        weights.append(entry.get("weight"))
    if not sources or (None in weights and set(weights) != {None}):
        what = "some entries have a weight, others have none" if sources else "the list is empty"
        raise InputError(what, "`datasets`", "write `[{path: ..., weight: ...}, ...]`, weights in all or in none")
    return sources, weights


def _mix(sizes: list[int], weights: list[float | None], limit: int | None, seed: int) -> list[int]:
    """The mixture of the module's docstring, as row numbers through all sources; no source is rounded to nothing."""
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


def _read(args: DataArguments, noun, schemas, convert, schema: pa.Schema, tables: list, extras: list) -> dict:
    """Append a source's rows to tables and extras, and give its provenance."""
    rows, origin = _open(args)
    kept, dropped = 0, Counter()
    converted = itertools.islice(_convert(rows, args, noun, schemas, convert, dropped), args.max_rows)
    while chunk := list(itertools.islice(converted, CHUNK)):
        tables.append(pa.Table.from_pylist(chunk, schema=schema))
        extras.extend({name: value for name, value in row.items() if name not in schema.names} for row in chunk)
        kept += len(chunk)
    if not kept:
        left, funnel = dropped.total(), f"{dropped.total():,} rows read"
        for reason, count in dropped.items():
            left -= count
            funnel += f" -> {left:,} ({reason}: {count:,})"
        raise InputError(f"no {noun} is left: {funnel}", args.dataset, _missing({}, schemas, args, noun).fix)
    return {"name": args.dataset, **origin, "rows": kept + dropped.total(), "kept": kept, "dropped": dict(dropped)}


def _convert(rows, args: DataArguments, noun, schemas, convert, dropped: Counter) -> Iterator[dict]:
    roles = {}
    for place, row in rows:
        try:
            row = _parse(row) if isinstance(row, bytes) else row
            if not isinstance(row, dict):
                raise InputError(f"{_shown(row)} where an object should be", fix=ONE_OBJECT)
            roles = _find(row, schemas, args) or roles  # a row that lacks a column is dropped, if one before had it
            if not roles:
                raise _missing(row, schemas, args, noun)
            yield convert(row, roles, args)
        except Drop as reason:
            dropped[str(reason)] += 1
        except InputError as error:
            dropped["did not parse"] += 1
            if dropped["did not parse"] > args.max_bad_rows:
                more = f" (more bad rows than `max_bad_rows: {args.max_bad_rows}`)" if args.max_bad_rows else ""
                raise InputError(error.what + more, place, error.fix) from None


def _open(args: DataArguments) -> tuple[Iterator[tuple[str, Any]], dict[str, Any]]:
    """Pairs of a place, such as file and line, and the row there, a line of JSON as bytes; and where all come from."""
    paths, files = _local_files(args.dataset), {}
    for path in paths:
        if path.stat().st_size == 0:
            raise InputError("the file is empty", str(path), "put rows into it, or remove it")
        with open(path, "rb") as file:
            files.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), path)  # equal files are read once
    if files:
        sha256 = next(iter(files)) if len(files) == 1 else hashlib.sha256("".join(files).encode()).hexdigest()
        rows = itertools.chain.from_iterable(_file_rows(path, args.text_column) for path in files.values())
        return rows, {"sha256": sha256, "files": len(files)}
    try:  # the three steps of datasets.load_dataset, because only the builder knows which commit it resolved
        builder = datasets.load_dataset_builder(args.dataset, args.dataset_config, revision=args.dataset_revision)
        builder.download_and_prepare()
        rows = builder.as_dataset(split=args.dataset_split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).partition("\n")[0]
        what = f"no local file or directory `{args.dataset}`, and none from the Hub: {reason}"
        where = f"config {args.dataset_config}, split {args.dataset_split}, revision {args.dataset_revision}"
        raise InputError(what, where, "check the path; or the id `user/name`, the split and the network") from error
    return ((f"{args.dataset}, row {n}", row) for n, row in enumerate(rows, 1)), {"revision": builder.hash, "files": 0}


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
            lines = file.readlines() if name.endswith(".json") else file
            if name.endswith(".txt"):
                yield from ((str(path), {text_column: document}) for document in _documents(file, path))
            elif name.endswith(".json") and (whole := b"".join(lines)).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"["):
                yield from ((f"{path}, row {n}", row) for n, row in enumerate(_parse(whole, str(path)), 1))
            else:
                yield from ((f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip())
    except (gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowException) as error:
        raise InputError(f"the file is damaged: {error}", str(path), "copy it again") from error


def _documents(lines: Iterable[bytes], path: Path) -> Iterator[str]:
    pieces, piece, size, total = [], [], 0, 0
    for n, line in enumerate(lines, 1):
        piece.append(_decode(line, f"{path}, line {n}"))
        size, total = size + len(line), total + len(line)
        if size >= PIECE and (not line.strip() or size >= WHOLE):
            pieces.append("".join(piece))
            piece, size = [], 0
        if total > WHOLE:
            yield from pieces
            pieces = []
    if pieces or piece:
        yield "".join(pieces + piece)


def _decode(line: bytes, where: str = "") -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise InputError(what, where, "save it as UTF-8; from Latin-1: iconv -f latin1 -t utf-8 OLD > NEW") from None


def _parse(line: bytes, where: str = "") -> Any:
    text = _decode(line, where).rstrip()  # an error at the end of the line is then in the line
    try:
        value = json.loads(text)
        if re.search(r"\\u[dD]", text):  # perhaps half a surrogate pair, which neither Arrow nor a tokenizer takes
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {str(error).replace('line 1 ', '')}", where, ONE_OBJECT) from None


def _find(row: dict, schemas: list[tuple], args: DataArguments) -> dict[str, str]:
    """The column of each role of the first schema that a row has, renamed ones first; empty when it has none."""
    found = [{role: getattr(args, f"{role}_column") for role in schema} for schema in schemas]
    found = [columns for columns in found if row.keys() >= set(columns.values())]
    return min(found, key=lambda columns: list(columns) == list(columns.values()), default={})


def _missing(row: dict, schemas: list[tuple], args: DataArguments, noun: str) -> InputError:
    needed, hint, best = [], f"; if it has another name, write `{schemas[0][0]}_column: NAME`", (0.0, 0)
    for schema in schemas:
        names, guesses = {role: getattr(args, f"{role}_column") for role in schema}, {}
        for role, name in names.items():
            free = [column for column in row if column not in guesses.values()]
            near = difflib.get_close_matches(name, free, 1, 0.7) + [n for n in ALIASES.get(role, ()) if n in free]
            guesses |= {role: near[0]} if near else {}
        settings = [f"`{role}_column: {column}`" for role, column in guesses.items() if column != names[role]]
        if settings and best < (score := (len(guesses) / len(schema), -len(settings))):
            hint, best = f"; did you mean {' and '.join(settings)}?", score
        needed.append(" and ".join(f"`{name}`" for name in names.values()))
    found = ", ".join(f"`{column}`" for column in row)
    return InputError(f"no {noun} in the columns {found}", fix=f"needed: {', or '.join(needed)}{hint}")


def _column(values: list) -> pa.Array | None:
    """An Arrow column, or None where it would be empty, or hold lists, objects, dates or bytes."""
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds or not kinds <= {str, int, float, bool}:
        return None
    try:
        return pa.array(values, pa.float64() if kinds == {int, float} else None)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # text and numbers, or a number beyond 64 bits
        return pa.array([None if value is None else str(value) for value in map(_answer, values)], pa.string())


def _prompt(row: dict, roles: dict[str, str], args: DataArguments) -> list[dict]:
    return _chat(row, roles.get("prompt") or roles.get("question") or roles["messages"], "user", args)


def _chat(row: dict, column: str, last: str, args: DataArguments | None = None, may_be_text=True) -> list[dict]:
    """Messages up to the last of role `last`, from a list of {role, content}, of texts said in turn, or from one text;
    the context, if `args` name its column and the row has one, goes before the first thing that the user says."""
    value, context = row.get(column), args and args.context_column
    if isinstance(value, str) and not may_be_text:
        raise InputError(f"`{column}` is {_shown(value)}, not a list", fix=f"write a list of {A_TURN}")
    if not isinstance(value, list):
        value = [{"role": last, "content": value}]
    if context and context not in row:
        raise InputError(f"no column `{context}`", fix=f"`context_column` is one of: {', '.join(row)}")
    chat, end, asked = [], 0, False
    for n, turn in enumerate(value, 1):
        if isinstance(turn, str):
            turn = {"role": ("assistant", "user")[n % 2], "content": turn}
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or "content" not in turn:
            fix = f"write {A_TURN}, the role one of {', '.join(ROLES)}"
            raise InputError(f"`{column}` holds {_shown(turn)}", fix=fix)
        role, content = turn["role"], _text({column: turn["content"]}, column)
        if role == "user" and not asked and context and row[context]:
            content = f"{_text(row, context)}\n\n{content}"
        asked, end = asked or role == "user", n if role == last else end
        chat.append({"role": role, "content": content})
    if not end:
        raise Drop(f"no {last} message" if value else f"empty {column}")
    return chat[:end]


def _answer(value: Any) -> Any:
    """The first of several answers; a number as text, except that NaN is none."""
    if isinstance(value, list) and value and not isinstance(value[0], dict):
        value = value[0]
    if type(value) in (int, float):
        return str(value).removesuffix(".0") if value == value else None
    return value


def _text(row: dict, column: str) -> str:
    value = row.get(column)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n\n".join(value)
    if not isinstance(value, str | None):
        raise InputError(f"`{column}` is {_shown(value)}, not text", fix=f'write text: {{"{column}": "..."}}')
    if value is None or not value.strip("\0\ufeff \r\n\t"):
        raise Drop(f"empty {column}")
    return value.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
