"""Rows for the rungs: documents, conversations, preferences, prompts and problems, from own files or the Hub.

A source is a local file, a directory or glob of such files, or an id on the Hub (`groundup.sources` reads them). A
row is kept, *dropped* (a needed column is empty or nothing is to be learnt; counted by reason), or *bad* (it does not
parse or holds a wrong type: InputError with file and line or, up to `max_bad_rows` a source, skipped and counted).

`dataset` keeps the order of its files, read by name. `datasets` is a mixture, shuffled by `seed`. Without weights it
holds every row once. With weights, in all entries, it is the largest set in which each source has its share of rows
and none comes twice: the scarcest source is used up, of the others a random part is taken. `max_rows` takes the first
rows of the result, and in an entry the first of that source. Rows are in memory, in every process, as Arrow tables.
"""

import bisect
import difflib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
from datasets.table import InMemoryTable
from groundup.chat import ROLES
from groundup.configs import DataArguments
from groundup.errors import InputError
from groundup.sources import CHUNK, Drop, convert_rows, list_sources, mix, open_source, show
from groundup.words import funnel

# Other names of columns: they are suggested, and never taken silently.
ASKED = ("instruction", "input", "query", "problem", "question", "title")
REPLIED = ("response", "output", "reply", "target", "solution", "answers", "answer")
ALIASES = {"prompt": ASKED, "question": ASKED, "completion": REPLIED, "answer": REPLIED}
ALIASES |= {"text": ("content", "document", "body"), "messages": ("conversations", "conversation", "turns", "dialog")}
A_TURN = '{"role": "user", "content": "..."}'
Unfit = Callable[[dict[str, Any]], str | None]
CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


class Loaded(NamedTuple):
    """`provenance` has of each source its `name`, `sha256` (of the file; of several, of their hex digests in a row) or
    `revision` (commit on the Hub), `files`, `rows` read, `kept`, `dropped` by reason, `used` (how many are in `rows`).
    """

    rows: datasets.Dataset
    provenance: list[dict[str, Any]]


def load_documents(args: DataArguments, which: str = "train", seed: int = 0) -> Loaded | None:
    """Rows of `text`. `which` is "train" or "eval"; None for "eval" without an `eval_dataset`.

    A .txt file is one document; above 1 MB it is cut at blank lines into documents of about 100 kB, which joined are
    the file. A list of texts is one document, blank lines between. Raises InputError, as all five, for bad input.
    """
    return _load(args, which, seed, "document", [("text",)], _document, {"text": pa.string()})


def _document(row: dict, roles: dict[str, str], args: DataArguments) -> dict:
    return {"text": _text(row, roles["text"])}


def stream_documents(rows: Iterator[tuple[str, Any]], args: DataArguments, dropped: Counter) -> Iterator[tuple[str, str]]:
    """Place and text of each document among `rows` (`groundup.sources`), in flat memory; `dropped` as in `convert_rows`."""
    for place, row in _convert(rows, args, "document", [("text",)], _document, dropped):
        yield place, row["text"]


def load_conversations(args: DataArguments, which: str = "train", seed: int = 0, unfit: Unfit | None = None) -> Loaded | None:
    """Rows of `messages`, lists of {role, content} that end with the assistant: unanswered turns are cut off.

    Of messages, prompt and completion, question and answer the first that a row has is read, renamed ones first.
    Messages may be a list of texts, said by user and assistant in turn; of a list of answers the first is taken. `unfit` as for
    preferences.
    """

    def convert(row: dict, roles: dict[str, str], args: DataArguments) -> dict:
        if "messages" in roles:
            return {"messages": _chat(row, roles["messages"], "assistant", args, may_be_text=False)}
        column = roles.get("completion") or roles["answer"]
        return {"messages": _prompt(row, roles, args) + _chat({column: _answer(row.get(column))}, column, "assistant")}

    schemas = [("messages",), ("prompt", "completion"), ("question", "answer")]
    return _load(args, which, seed, "conversation", schemas, convert, {"messages": CHAT}, unfit)


def load_preferences(args: DataArguments, which: str = "train", seed: int = 0, unfit: Unfit | None = None) -> Loaded | None:
    """Rows of `prompt`, `chosen`, `rejected`: lists of {role, content}, the last two of one assistant message each.

    Chosen and rejected are texts or lists of messages; what such lists share at the start is the prompt, if anything. `unfit`
    gives the reason to drop a row that has come so far, if there is one (`groundup.tokenizer.unfit_pair` and its like).
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
    return _load(args, which, seed, "preference", schemas, convert, dict.fromkeys(schemas[0], CHAT), unfit)


def load_prompts(args: DataArguments, which: str = "train", seed: int = 0, unfit: Unfit | None = None) -> Loaded | None:
    """Rows of `prompt`, a list of {role, content} that ends with the user, and the source's other scalar columns.

    Read from prompt, question or messages, up to the last user's turn. A column of numbers and text becomes text.
    """

    def convert(row: dict, roles: dict[str, str], args: DataArguments) -> dict:
        left_out = {"prompt", *roles.values(), args.context_column}
        others = {name: value for name, value in row.items() if name not in left_out}
        return {"prompt": _prompt(row, roles, args), **others}

    schemas = [("prompt",), ("question",), ("messages",)]
    return _load(args, which, seed, "prompt", schemas, convert, {"prompt": CHAT}, unfit)


def load_problems(args: DataArguments, which: str = "train", seed: int = 0, unfit: Unfit | None = None) -> Loaded | None:
    """Rows of `prompt` (list of {role, content}), `answer` (text; the number 6.0 becomes "6"), `difficulty` if any.

    Read from question and answer, prompt and answer, or prompt and completion; of several answers the first.
    """

    def convert(row: dict, roles: dict[str, str], args: DataArguments) -> dict:
        column = roles.get("answer") or roles["completion"]
        problem = {"prompt": _prompt(row, roles, args), "answer": _text({column: _answer(row.get(column))}, column)}
        return problem | {name: row[name] for name in ("difficulty",) if name in row}

    schemas = [("question", "answer"), ("prompt", "answer"), ("prompt", "completion")]
    return _load(args, which, seed, "problem", schemas, convert, {"prompt": CHAT, "answer": pa.string()}, unfit)


def add_rehearsal(problems: Loaded, prompts: Loaded, share: float, seed: int = 0) -> Loaded:
    """Problems and, as `share` of the result, prompts whose `answer` is None: a verifier has nothing to say of them."""
    count = min(len(prompts.rows), round(len(problems.rows) * share / (1 - share)))
    chosen = prompts.rows.shuffle(seed=seed).select(range(count)).select_columns(["prompt"])
    chosen = chosen.add_column("answer", [None] * count, feature=datasets.Value("string"))
    used = [{**entry, "used": count} for entry in prompts.provenance]
    return Loaded(datasets.concatenate_datasets([problems.rows, chosen]), problems.provenance + used)


def _load(args, which: str, seed: int, noun: str, schemas, convert: Callable, columns: dict, unfit=None) -> Loaded | None:
    sources, weights = list_sources(args, which)
    if not sources:
        return None

    def fitting(row: dict, roles: dict[str, str], args: DataArguments) -> dict:
        converted = convert(row, roles, args)
        if reason := unfit(converted):
            raise Drop(reason)
        return converted

    tables, extras = [], []  # the extras of a row are what `columns` lacks; their types are known when all are read
    provenance = [
        _read(source, noun, schemas, fitting if unfit else convert, pa.schema(columns), tables, extras) for source in sources
    ]
    table = pa.concat_tables(tables)
    for name in dict.fromkeys(name for row in extras for name in row):
        column = _column([row.get(name) for row in extras])
        table = table if column is None else table.append_column(name, column)
    rows, sizes = datasets.Dataset(InMemoryTable(table)), [source["kept"] for source in provenance]
    if not weights:
        return Loaded(rows, [source | {"used": source["kept"]} for source in provenance])
    chosen, ends = mix(sizes, weights, args.max_rows, seed), list(itertools.accumulate(sizes))
    used = Counter(bisect.bisect(ends, row) for row in chosen)  # by number of the source
    return Loaded(rows.select(chosen), [source | {"used": used[n]} for n, source in enumerate(provenance)])


def _read(args: DataArguments, noun, schemas, convert, schema: pa.Schema, tables: list, extras: list) -> dict:
    """Append a source's rows to tables and extras, and give its provenance."""
    rows, origin = open_source(args)
    kept, dropped = 0, Counter()
    converted = (row for _, row in itertools.islice(_convert(rows, args, noun, schemas, convert, dropped), args.max_rows))
    while chunk := list(itertools.islice(converted, CHUNK)):
        tables.append(pa.Table.from_pylist(chunk, schema=schema))
        extras.extend({name: value for name, value in row.items() if name not in schema.names} for row in chunk)
        kept += len(chunk)
    read = dropped.pop("rows", 0)
    lost = funnel(read, "rows read", dropped)
    if not kept:
        unfit = [reason for reason in dropped if not reason.startswith(("empty", "did not parse"))]
        fix = "mend the rows, or the setting that is named" if unfit else _missing({}, schemas, args, noun).fix
        raise InputError(f"no {noun} is left: {lost}", args.dataset, fix)
    if read - kept - dropped["did not parse"] > args.max_dropped_share * read:  # what does not parse has a limit of its own
        fix = f"mend the rows, or write a larger `max_dropped_share` (it is {args.max_dropped_share:g})"
        raise InputError(f"too few {noun}s are left: {lost}", args.dataset, fix)
    return {"name": args.dataset, **origin, "rows": read, "kept": kept, "dropped": dict(dropped)}


def _convert(rows, args: DataArguments, noun, schemas, convert, dropped: Counter) -> Iterator[tuple[str, dict]]:
    roles = {}

    def with_roles(row: dict) -> dict:
        nonlocal roles
        roles = _find(row, schemas, args) or roles  # a row that lacks a column is dropped, if one before had it
        if not roles:
            raise _missing(row, schemas, args, noun)
        return convert(row, roles, args)

    return convert_rows(rows, with_roles, args.max_bad_rows, dropped)


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
        raise InputError(f"`{column}` is {show(value)}, not a list", fix=f"write a list of {A_TURN}")
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
            raise InputError(f"`{column}` holds {show(turn)}", fix=fix)
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
        raise InputError(f"`{column}` is {show(value)}, not text", fix=f'write text: {{"{column}": "..."}}')
    if value is None or not value.strip("\0\ufeff \r\n\t"):
        raise Drop(f"empty {column}")
    value = value.replace("\0", "")
    return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value
