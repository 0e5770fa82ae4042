"""What a rung leaves on record: `run.json` and `eval.json` in its stage directory, and what the numbers there mean."""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import numbers
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from groundup.errors import InputError

SCHEMA = 1
FILE = "run.json"
EVALUATION = "eval.json"
ITEMS = "eval_items.json"  # what each item of each figure there gave
GATE = "gate.json"  # what GRPO's prompts came to before its first step
PACKAGES = ("groundup", "torch", "transformers", "trl", "accelerate", "datasets", "peft", "tokenizers")


# Reading and writing -------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """The value as standard JSON can hold it: enums by value, paths and unknown objects as text, nan and inf as text.

    Hugging Face tokens are masked: a record is read by the report and the model card, and both are made to be shared.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Path):
        value = value.as_posix()
    # A lone surrogate (json reads "\ud800" without complaint) cannot be written as UTF-8.
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"\bhf_[A-Za-z0-9]{30,}", "<HUB_TOKEN>", text)


@contextlib.contextmanager
def write_aside(path: Path) -> Iterator[BinaryIO]:
    """A file that a reader, or a kill in the middle, finds as it was before or whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    with write_aside(Path(path)) as file:
        file.write(text.encode())
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    return write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict | None:
    """The mapping in the file, or None where there is no file; a file that is something else is the user's to mend."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        raise InputError(
            f"{path.name} is not readable JSON: {error}",
            where=str(path),
            fix="put back the file as it was written; if it is lost, run the rung again into a new directory",
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{path.name} holds a {type(value).__name__}, not a mapping", where=str(path))
    return value


def write(directory: str | Path, record: dict) -> Path:
    """Write `run.json`, making the directory where needed."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    return write_json(Path(directory) / FILE, {"schema": SCHEMA, **record})


def read(directory: str | Path) -> dict | None:
    """`run.json` of a stage directory, None if it has none."""
    return _known_schema(Path(directory) / FILE)


def read_evaluation(directory: str | Path) -> dict | None:
    """`eval.json` of a stage directory, None if it has not been evaluated."""
    return _known_schema(Path(directory) / EVALUATION)


def write_evaluation(directory: str | Path, evaluation: dict) -> Path:
    """Write `eval.json`, making the directory where needed, and before it the `items` of its figures into `eval_items.json`.

    They are apart because they are many, and compact: no line each.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    figures = evaluation["metrics"]
    items = {name: figure["items"] for name, figure in figures.items() if "items" in figure}
    said = {name: {key: value for key, value in figure.items() if key != "items"} for name, figure in figures.items()}
    kept = {"schema": SCHEMA, "weights_sha256": evaluation.get("weights_sha256"), "metrics": items}
    write_text(directory / ITEMS, json.dumps(plain(kept), separators=(",", ":"), allow_nan=False) + "\n")
    return write_json(directory / EVALUATION, {"schema": SCHEMA, **evaluation, "metrics": said})


def read_items(directory: str | Path) -> dict[str, dict[str, Any]]:
    """By metric, what `write_evaluation` kept of items; empty where a figure, or the directory, has none."""
    return (_known_schema(Path(directory) / ITEMS) or {}).get("metrics") or {}


def hash_items(items: Iterable[Any]) -> str:
    """sha256 of what was asked, in order: figures with the same were measured on the same items."""
    return hashlib.sha256(json.dumps(plain(list(items)), sort_keys=True).encode()).hexdigest()


def update(directory: str | Path, **fields: Any) -> dict:
    """Replace these top-level fields of an existing `run.json` and return the whole. One process at a time."""
    record = read(directory)
    if record is None:
        raise FileNotFoundError(f"no {FILE} in {directory}: write() comes before update()")
    record.update(fields)
    write(directory, record)
    return plain(record)


def _known_schema(path: Path) -> dict | None:
    record = read_json(path)
    if record is not None and record.get("schema", SCHEMA) != SCHEMA:
        raise InputError(
            f"{path.name} has schema {record['schema']}; this groundup reads schema {SCHEMA}",
            where=str(path),
            fix="use the groundup version that wrote it (its `versions` and `git_commit` name it)",
        )
    return record


# Where it ran --------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str | None]:
    """Python's and the libraries' versions, without importing them; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> dict[str, Any]:
    """`machine`, `cpu`, `cores`, `memory_gb` (1e9 bytes) and `gpus`, which are known only once torch is loaded."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: platform's word stands
    torch = sys.modules.get("torch")
    gpus = []
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = round(psutil.virtual_memory().total / 1e9, 1)
    machine = f"{platform.system()} {platform.machine()}"
    return {"machine": machine, "cpu": cpu, "cores": os.cpu_count(), "memory_gb": memory, "gpus": gpus}


def git_commit() -> str | None:
    """Commit of the checkout that holds the current directory, where a recipe is started; not of groundup's own files.

    Ends in `-dirty` when tracked files differ from it. None outside a checkout, before a first commit, or without git.
    """

    def git(*arguments: str) -> str:
        # No optional locks: a status that only looks must not get in the way of the user's own git.
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        commit = git("rev-parse", "--verify", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


# Where it came from --------------------------------------------------------------------------------------------------


def hash_weights(directory: str | Path) -> str | None:
    """sha256 of the weights: `cat model*.safetensors | sha256sum`, or the adapter's where there is only an adapter."""
    directory = Path(directory)
    files = list(directory.glob("model*.safetensors")) or list(directory.glob("adapter_model*.safetensors"))
    return _sha256(sorted(files))


def hash_tokenizer(directory: str | Path) -> str | None:
    """sha256 of the tokenizer and its chat template: `cat tokenizer.json chat_template.jinja | sha256sum`."""
    files = [Path(directory) / name for name in ("tokenizer.json", "chat_template.jinja")]
    return _sha256([file for file in files if file.is_file()])


def hashes(directory: str | Path) -> dict[str, str | None]:
    """What tells a model from another of the same name; None for what is not in the directory, or where there is none."""
    return {"weights_sha256": hash_weights(directory), "tokenizer_sha256": hash_tokenizer(directory)}


def _sha256(files: list[Path]) -> str | None:
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest() if files else None


def is_synthetic(data: list[dict]) -> bool:
    """Whether any of a record's `data` is of toyland."""
    return any(re.search("world|toyland", str(item.get("name")), re.IGNORECASE) for item in data)


def lineage(directory: str | Path) -> list[dict[str, Any]]:
    """The directory, its parent, and so on up to where the records end.

    Each is `{rung, path, weights_sha256, tokenizer_sha256, seconds, tokens, flops, data, hub_model_id}`. The directory's own hashes
    are taken from its files; an ancestor's are those that its child wrote down when it read them. A model from the Hub, or a
    directory that is gone, is the last entry, with nothing known but its path and hashes.
    """
    known = ("seconds", "tokens", "flops", "data", "hub_model_id")
    of_link = ("path", "weights_sha256", "tokenizer_sha256")
    return [
        {"rung": record.get("rung"), **{key: link.get(key) for key in of_link}, **{key: record.get(key) for key in known}}
        for link, _, record in _ancestry(directory)
    ]


def verify(directory: str | Path, hashes: Callable[[Path], dict[str, str | None]] = hashes) -> list[str]:
    """What does not belong together in a finished stage directory, a line each; nothing when all does.

    Its files are held against its record, its tokenizer against the model's vocabulary, its evaluation against its weights, and
    each ancestor that is still there against the hashes that its child wrote down when it read it. Whoever verifies several rungs
    passes `hashes` with a memory, so that no file is read twice.
    """
    (own, directory, record), *ancestors = _ancestry(directory, hashes)
    if record.get("status") != "finished":
        return [f"{directory}: " + (f"its run is {record.get('status')}" if record else f"there is no {FILE}")]
    wrong = [f"{directory}: no {what[:-7]} there" for what in ("weights_sha256", "tokenizer_sha256") if own[what] is None]
    wrong += [f"{directory}: changed since its rung ended: {line}" for line in altered(record, own)]
    if not wrong:  # what is damaged need not be readable
        sizes = (read_json(directory / "config.json") or {}).get("vocab_size"), _vocabulary(directory)
        if None not in sizes and sizes[0] != sizes[1]:
            wrong.append(f"{directory}: the model has {sizes[0]} tokens and the tokenizer {sizes[1]}")
    measured = (read_evaluation(directory) or {}).get("weights_sha256")
    if measured not in (None, own["weights_sha256"]):
        wrong.append(f"{directory}: {EVALUATION} tells of other weights; evaluate it again")
    child = directory
    for link, here, _ in ancestors:
        if here:
            wrong += [f"{here}: changed since {child} was made from it: {line}" for line in altered(link, hashes(here))]
        child = here
    return wrong


def altered(known: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """`weights_sha256 0123456789ab -> ...` for each hash that is `known`, and `found` to be another."""
    return [
        f"{what} {known[what][:12]} -> {str(found[what])[:12]}"
        for what in ("weights_sha256", "tokenizer_sha256")
        if known.get(what) not in (None, found.get(what))
    ]


def _vocabulary(directory: Path) -> int | None:
    """How many tokens the directory's tokenizer has; None where there is no `tokenizer.json`."""
    if not (directory / "tokenizer.json").is_file():
        return None
    from tokenizers import Tokenizer  # late: records are also read by what trains nothing

    return Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab_size()


def _ancestry(directory: str | Path, hashes: Callable = hashes) -> Iterator[tuple[dict[str, Any], Path | None, dict[str, Any]]]:
    """The directory, its parent, ...: path and hashes as its child knows them, where it is now, and its record."""
    seen = set()
    here: Path | None = Path(directory)
    link: dict[str, Any] | None = {"path": here.as_posix(), **hashes(here)}
    while link and (here is None or here.resolve() not in seen):
        record = (read(here) if here else None) or {}
        yield link, here, record
        if here:
            seen.add(here.resolve())
        link = record.get("parent")
        here = find_parent(link, here) if link and here else None


def find_parent(parent: dict[str, Any], child: Path) -> Path | None:
    """The stage directory that a record's `parent` names, if it is still there."""
    path = Path(str(parent.get("path")))
    # A run that was moved or copied as a whole: beside the child, and believed only if it holds the same weights. Where it was,
    # there may be another run by now.
    beside, weights = child.resolve().parent / path.name, parent.get("weights_sha256")
    if weights and beside != path.resolve() and (beside / FILE).is_file() and hash_weights(beside) == weights:
        return beside
    return path if (path / FILE).is_file() else None


def strings(value: Any) -> Iterator[str]:
    """All texts in a value of JSON, however deep; not the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def changed(old_config: dict, new_config: dict, ignore: Iterable[str] = ()) -> list[str]:
    """Lines such as `learning_rate: 0.001 -> 0.002`, in the new configuration's order.

    `ignore` names keys that may differ, `outer.inner` for a nested one.
    """
    ignore = set(ignore)
    lines = []

    def compare(old: dict, new: dict, prefix: str) -> None:
        for key in [*new, *(key for key in old if key not in new)]:
            name = f"{prefix}{key}"
            before, after = old.get(key, _ABSENT), new.get(key, _ABSENT)
            if name in ignore or before == after:
                continue
            if isinstance(before, dict) and isinstance(after, dict):
                compare(before, after, f"{name}.")
            else:
                lines.append(f"{name}: {as_yaml(before)} -> {as_yaml(after)}")

    # Both as JSON holds them: a tuple or an enum equals what an earlier run wrote for it.
    compare(plain(old_config), plain(new_config), "")
    return lines


_ABSENT = object()


def as_yaml(value: Any) -> str:
    """The value as one would write it in a configuration file, on one line."""
    if value is _ABSENT:
        return "(not set)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
