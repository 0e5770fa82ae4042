"""Tokens on disk: a directory of memory-mapped shards, written once and read at any row.

For each shard of each split `<split>-<shard>-of-<shards>` with the suffixes

- `.bin`: the tokens, little-endian uint16 or uint32;
- `.segments` (packing "best_fit"): where a document, a piece of one, or padding starts; sorted uint64, in tokens from the start;
- `.json`: the index, written last, so that a shard without it is none.

`manifest.json` sums them up, and is written when all are there: a directory without it is not finished. Packing "wrapped" puts
documents one after another, `<|endoftext|>` behind each, and rows are cut when they are read, at any length; the documents of a row
see each other, as in GPT-2. "best_fit" packs whole documents into rows of one length, cuts only what is longer than a row, and
reads each segment with positions of its own. Every token is accounted for: tokens_in = tokens - padding + dropped.
"""

import bisect
import fcntl
import hashlib
import itertools
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from groundup.errors import InputError
from groundup.packing import Packer
from groundup.record import read_json, write_json
from groundup.tokenizer import end_of_text_id
from transformers import PreTrainedTokenizerBase

SCHEMA = 1
MANIFEST = "manifest.json"
PASSES = "passes"  # what recipes/prepare.py keeps in the directory until it is finished
PACKINGS = ("wrapped", "best_fit")
SPLIT_NAMES = re.compile(r"(\w+)-(\d{5})-of-(\d{5})\.json")
BUFFER = 2**23  # bytes written at once
SUMMED = ("documents", "bytes", "tokens_in", "tokens", "rows", "padding", "split_documents")
AGREEING = ("dtype", "packing", "length", "tokenizer_sha256", "pad_token_id")
IGNORE = -100  # label of a token that is not predicted


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what turns text into ids; chat template and names of special roles do not count."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def token_dtype(size: int) -> str:
    """The narrowest numbers that hold every id of a vocabulary of so many tokens.

    Raises:
        InputError: not even uint32 does.
    """
    if size > 2**32:
        raise InputError(f"a vocabulary of {size:,} tokens", fix="use one of at most 2^32 tokens, which is what a shard can hold")
    return "uint16" if size <= 2**16 else "uint32"


def on_disk(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")


class ShardWriter:
    """Writes one shard of one split, in flat memory; a context manager.

    Left normally, it finishes the shard; left by an exception, or killed, it leaves none. An earlier shard of that name is replaced
    when the new one is whole, and then the directory's manifest, which no longer describes it, is removed.

    Args:
        length: tokens a row, for packing "best_fit".
        shard: number of this shard, from 0, of `shards` in the split.

    Raises:
        InputError: an unknown packing, "best_fit" without `length` or padding token, an id beyond the vocabulary, or another
            process that is writing this shard.
    """

    def __init__(
        self,
        directory: str | Path,
        split: str,
        tokenizer: PreTrainedTokenizerBase,
        packing: str = "wrapped",
        length: int | None = None,
        shard: int = 0,
        shards: int = 1,
    ):
        if packing not in PACKINGS:
            raise InputError(f"`packing: {packing}` is unknown", fix=f"write one of: {', '.join(PACKINGS)}")
        if packing == "best_fit":
            if not length or length < 2:
                raise InputError(f"packing `best_fit` into rows of {length} tokens", fix="write `max_length: 1024`")
            if tokenizer.pad_token_id is None:
                raise InputError("packing `best_fit` pads rows, and the tokenizer has no padding token", tokenizer.name_or_path)
        self._packer = Packer(length) if packing == "best_fit" else None
        self.directory, self.name = Path(directory), shard_name(split, shard, shards)
        self.vocabulary, self.separator, self.dtype = len(tokenizer), end_of_text_id(tokenizer), token_dtype(len(tokenizer))
        self.counts: dict[str, Any] = {
            "schema": SCHEMA,
            "split": split,
            "shard": shard,
            "shards": shards,
            "dtype": self.dtype,
            "packing": packing,
            "length": self._packer and length,
            "tokenizer_sha256": tokenizer_hash(tokenizer),
            "pad_token_id": self._packer and tokenizer.pad_token_id,
            **dict.fromkeys(SUMMED, 0),
            "rows": None,
            "dropped": {},
        }
        self._digest = hashlib.sha256()

    def __enter__(self) -> "ShardWriter":
        self.directory.mkdir(parents=True, exist_ok=True)
        suffixes = (".bin", ".segments") if self._packer else (".bin",)
        self._paths = [self.directory / f"{self.name}{suffix}" for suffix in suffixes]
        self._files = [open(unfinished(path), "ab", BUFFER) for path in self._paths]  # noqa: SIM115
        try:
            fcntl.flock(self._files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            where = str(unfinished(self._paths[0]))
            raise InputError("another process is writing this shard", where, "wait for it, or give each its own shard") from None
        for file in self._files:
            file.truncate(0)  # what a killed process left
        return self

    def __exit__(self, kind, error, trace) -> None:
        left = self._paths
        try:
            if kind is None:
                self._finish()
                left = []
        finally:
            for path in left:
                unfinished(path).unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        for file in self._files:
            file.close()

    def add(self, ids: list[int] | np.ndarray, size: int) -> None:
        """One document, without separator; `size` is the bytes of its text."""
        ids = np.asarray(ids, dtype=np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            what = f"a token from {ids.min()} to {ids.max()} in a vocabulary of {self.vocabulary}"
            raise InputError(what, str(self.directory / self.name), "prepare with the tokenizer that gave the ids")
        tokens = np.append(ids, self.separator).astype(on_disk(self.dtype))
        self.counts["documents"] += 1
        self.counts["bytes"] += size
        self.counts["tokens_in"] += len(tokens)
        if self._packer is None:
            self._write(tokens)
        else:
            for row in self._packer.add(tokens):
                self._write_row(row)

    def drop(self, reason: str, documents: int = 1, tokens: int = 0) -> None:
        """Count documents that are left out, and their tokens where they are known."""
        entry = self.counts["dropped"].setdefault(reason, {"documents": 0, "tokens": 0})
        entry["documents"] += documents
        entry["tokens"] += tokens
        self.counts["tokens_in"] += tokens

    def _write_row(self, pieces: list[np.ndarray]) -> None:
        room = self.counts["length"] - sum(map(len, pieces))
        if room:
            pieces = [*pieces, np.full(room, self.counts["pad_token_id"], on_disk(self.dtype))]
        for piece in pieces:
            self._files[1].write(self.counts["tokens"].to_bytes(8, "little"))
            self._write(piece)

    def _write(self, tokens: np.ndarray) -> None:
        self._digest.update(tokens)
        self._files[0].write(tokens)
        self.counts["tokens"] += len(tokens)

    def _finish(self) -> None:
        counts, packer = self.counts, self._packer
        if packer:
            for row in packer.finish():
                self._write_row(row)
            counts.update(rows=packer.rows, padding=packer.padding, split_documents=packer.split)
        dropped = sum(entry["tokens"] for entry in counts["dropped"].values())
        assert counts["tokens_in"] == counts["tokens"] - counts["padding"] + dropped, counts
        counts["sha256"] = self._digest.hexdigest()
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        index = self.directory / f"{self.name}.json"
        for stale in (self.directory / MANIFEST, index, self.directory / f"{self.name}.segments"):
            stale.unlink(missing_ok=True)
        for path in self._paths:
            os.replace(unfinished(path), path)
        write_json(index, counts)


def unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def shard_name(split: str, shard: int, shards: int) -> str:
    return f"{split}-{shard:05d}-of-{shards:05d}"


def is_prepared(directory: str | Path | None) -> bool:
    """Whether this is a directory of shards, finished or not; raw text and ids on the Hub are none."""
    path = Path(directory or "")
    begun = (path / MANIFEST, path / PASSES)
    return bool(directory) and (any(mark.exists() for mark in begun) or any(path.glob("*-?????-of-?????.bin*")))


def write_manifest(directory: str | Path, tokenizer: PreTrainedTokenizerBase, sources: list[dict], **extra: Any) -> dict:
    """Sum up the shards of a directory; from then on it is finished.

    Args:
        sources: where the documents came from (`data.Loaded.provenance`).
        extra: further entries of the manifest.

    Raises:
        InputError: a shard is missing or another process's, or shards were made with different settings.
    """
    directory, found = Path(directory), {}
    for path in sorted(directory.glob("*.json")):
        if match := SPLIT_NAMES.fullmatch(path.name):
            found.setdefault(match[1], []).append(check_shard(directory, path.stem))
    if not found:
        raise InputError("no shard is finished", str(directory), "prepare it first")
    first, splits = next(iter(found.values()))[0], {}
    if first["tokenizer_sha256"] != tokenizer_hash(tokenizer):
        raise InputError("the shards were made with another tokenizer", str(directory), "prepare them again, with one tokenizer")
    for split, shards in found.items():
        numbers = {shard["shards"] for shard in shards}
        if len(numbers) > 1:
            what = f"`{split}` is in {' and in '.join(str(n) for n in sorted(numbers))} shards"
            raise InputError(what, str(directory), "remove those of the earlier preparation")
        missing = set(range(numbers.pop())) - {shard["shard"] for shard in shards}
        if missing:
            names = ", ".join(shard_name(split, shard, shards[0]["shards"]) for shard in sorted(missing)[:5])
            raise InputError(f"{len(missing)} shards are missing: {names}", str(directory), "prepare them, then write the manifest")
        for shard in shards:
            for key in AGREEING:
                if shard[key] != first[key]:
                    what = f"shards differ in `{key}`: {first[key]} and {shard[key]}"
                    where = str(directory / shard_name(split, shard["shard"], shard["shards"]))
                    raise InputError(what, where, "prepare it again with the settings of the others")
        dropped: dict[str, Counter] = {}
        for reason, entry in ((reason, entry) for shard in shards for reason, entry in shard["dropped"].items()):
            dropped.setdefault(reason, Counter()).update(entry)
        sums = {key: sum(shard[key] for shard in shards) if shards[0][key] is not None else None for key in SUMMED}
        splits[split] = {"shards": len(shards), **sums, "dropped": dropped, "sha256": joint_hash(shards)}
    settings = {key: first[key] for key in AGREEING}
    manifest = {"schema": SCHEMA, **settings, "vocab_size": len(tokenizer), "splits": splits, "sources": sources, **extra}
    write_json(directory / MANIFEST, manifest)
    return read_json(directory / MANIFEST)


def joint_hash(shards: list[dict]) -> str:
    return hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()


def check_shard(directory: Path, name: str) -> dict:
    """The index of a shard whose files are there and as long as it says.

    Raises:
        InputError: names the file that is not.
    """
    index = read_json(directory / f"{name}.json")
    if index is None:
        raise InputError("a shard has vanished", str(directory / f"{name}.json"), "copy it again, or prepare it again")
    sizes = {".bin": index["tokens"] * np.dtype(index["dtype"]).itemsize}
    if index["packing"] == "best_fit":
        sizes[".segments"] = None
    for suffix, size in sizes.items():
        path = directory / f"{name}{suffix}"
        if not path.is_file():
            raise InputError("a shard has vanished", str(path), "copy it again, or prepare it again")
        found = path.stat().st_size
        if found != size and (size is not None or found % 8 or found < 8 * index["rows"]):
            what = f"a shard is damaged: {found:,} bytes" + (f" where {size:,} were written" if size is not None else "")
            raise InputError(what, str(path), "copy it again, or prepare it again")
    return index


def read_manifest(directory: str | Path) -> dict:
    """The manifest of a finished directory.

    Raises:
        InputError: there is none.
    """
    directory = Path(directory)
    manifest = read_json(directory / MANIFEST)
    if manifest is None:
        done = sum(bool(SPLIT_NAMES.fullmatch(path.name)) for path in directory.glob("*.json"))
        what = (
            f"not prepared to the end: {done} finished shards and no {MANIFEST}" if is_prepared(directory) else "no prepared tokens"
        )
        raise InputError(what, str(directory), "run recipes/prepare.py to its end, or name another directory")
    if manifest.get("schema") != SCHEMA:
        raise InputError(
            f"schema {manifest.get('schema')}; this groundup reads {SCHEMA}", str(directory / MANIFEST), "prepare it again"
        )
    return manifest


class TokenShards(torch.utils.data.Dataset):
    """Rows of `length` tokens of one split. A row is `input_ids` and `labels`, (length,) int64, and with packing "best_fit"
    `position_ids`, which start at 0 in each segment; there the first token of a segment and padding have the label -100.

    Files are mapped when a row of theirs is first read, so that it costs the same however many there are, also in workers.

    Args:
        tokenizer: what the tokens must have been made with.
        length: tokens a row; that of the packing where it is not given.

    Raises:
        InputError: an unfinished directory, no such split, a vanished or damaged shard, another tokenizer or length, or no row.
    """

    def __init__(
        self,
        directory: str | Path,
        split: str = "train",
        tokenizer: PreTrainedTokenizerBase | None = None,
        length: int | None = None,
    ):
        self.directory, self.manifest = Path(directory), read_manifest(directory)
        if split not in self.manifest["splits"]:
            fix = f"it has: {', '.join(self.manifest['splits'])}"
            raise InputError(f"no split `{split}`", str(directory), fix)
        self.counts, packed = self.manifest["splits"][split], self.manifest["length"]
        if tokenizer is not None and tokenizer_hash(tokenizer) != self.manifest["tokenizer_sha256"]:
            sizes = f"{self.manifest['vocab_size']} tokens there, {len(tokenizer)} here"
            fix = "give `tokenizer_path` the tokenizer of the preparation, or prepare with this one"
            raise InputError(f"the tokens were made with another tokenizer ({sizes})", str(directory), fix)
        if packed is None and length is None:
            raise InputError("rows of what length?", str(directory), "write `max_length: 1024`")
        if packed is not None and length not in (None, packed):
            fix = f"write `max_length: {packed}`, or prepare it again for {length}"
            raise InputError(f"packed into rows of {packed} tokens, read as rows of {length}", str(directory), fix)
        self.length = packed or length
        self.packed = packed is not None
        self.names = [shard_name(split, shard, self.counts["shards"]) for shard in range(self.counts["shards"])]
        indices = [check_shard(self.directory, name) for name in self.names]
        if joint_hash(indices) != self.counts["sha256"]:
            raise InputError("the shards are not those of the manifest", str(directory / MANIFEST), "prepare it again")
        self._ends = list(itertools.accumulate(index["tokens"] // self.length for index in indices))
        self.left_over = self.counts["tokens"] - len(self) * self.length  # tokens behind the last whole row of a shard
        if not len(self):
            what = f"{self.counts['documents']} documents hold {self.counts['tokens']} tokens, fewer than one row of {self.length}"
            raise InputError(what, f"{directory}, split {split}", "give more text, or a smaller `max_length`")
        self._maps: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text a token, separators counted and padding not."""
        return self.counts["bytes"] / (self.counts["tokens"] - self.counts["padding"])

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}

    def _map(self, shard: int) -> tuple[np.ndarray, np.ndarray | None]:
        if shard not in self._maps:
            path = self.directory / self.names[shard]
            tokens = np.memmap(f"{path}.bin", on_disk(self.manifest["dtype"]), "r")
            self._maps[shard] = tokens, np.memmap(f"{path}.segments", "<u8", "r") if self.packed else None
        return self._maps[shard]

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        shard = bisect.bisect(self._ends, row)
        tokens, segments = self._map(shard)
        start = (row - (self._ends[shard - 1] if shard else 0)) * self.length
        ids = tokens[start : start + self.length].astype(np.int64)
        item = {"input_ids": ids, "labels": ids.copy()}
        if segments is not None:
            first, behind = np.searchsorted(segments, np.array([start, start + self.length], "<u8"))
            starts = segments[first:behind].astype(np.int64) - start
            item["position_ids"] = np.arange(self.length) - np.repeat(starts, np.diff(starts, append=self.length))
            item["labels"][starts] = IGNORE
            if ids[starts[-1]] == self.manifest["pad_token_id"]:
                item["labels"][starts[-1] :] = IGNORE
        return {name: torch.from_numpy(values) for name, values in item.items()}
