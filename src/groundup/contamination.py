"""Which documents hold items of an evaluation set: overlap of 13-grams, as GPT-3 looked for it (arXiv:2005.14165, appendix C).

Text is compared as words: lower case, without punctuation, whatever stands between them. A text of an evaluation set is found in
a document when they share 13 consecutive words. A shorter one is found when all its words stand there in a row, from 8 words on:
the paper's least N, below which chance hits outnumber real ones. Still shorter ones are not looked for, and counted. A language
that is written without spaces has no words here: only whole clauses would be found.

Words are runs of bytes in one array, and the hash of any run of words is a difference of two prefix sums, so that a megabyte of
documents is checked in a score of numpy calls.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import regex
from groundup.configs import DataArguments
from groundup.errors import InputError
from groundup.jobs import in_chunks
from groundup.sources import check_keys, convert_rows, open_source, show

GRAM = 13  # words
SHORTEST = 8  # words of a text that is looked for
KEYS = ["path", "columns", "dataset_config", "dataset_split", "dataset_revision", "max_bad_rows"]
PUNCTUATION = regex.compile(r"[^\x00-\x7f\p{L}\p{M}\p{N}]+")  # beyond ASCII, whose own is BYTES' matter

# ASCII letters and digits keep their byte, in lower case, and so do the bytes of other letters; all else parts words.
BYTES = bytes([ord(chr(b).lower()) if chr(b).isalnum() else 0 for b in range(128)] + list(range(128, 256)))
CODES = np.random.default_rng(13).integers(0, 2**64 - 1, 256, dtype=np.uint64)  # of a byte, in the hash of its word
CODES[0] = 0
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
CHUNK = 1 << 20  # characters of evaluation text at a time


class Words:
    """The words of some documents, ready to be hashed as n-grams."""

    powers = inverses = np.ones(1, dtype=np.uint64)  # BASE**i and its inverse, grown as needed and kept

    def __init__(self, texts: list[str]):
        raws = [(text if text.isascii() else PUNCTUATION.sub(" ", text.lower())).encode() for text in texts]
        letters = np.frombuffer(b"\0".join([*raws, b""]).translate(BYTES), dtype=np.uint8)  # a zero ends every document
        inside = letters != 0
        starts = np.flatnonzero(inside[1:] > inside[:-1]) + 1
        if len(inside) and inside[0]:
            starts = np.concatenate([[0], starts])
        self.document = np.searchsorted(np.cumsum([len(raw) + 1 for raw in raws]), starts, side="right")
        self._grow(len(letters) + 1)
        words = np.take(CODES, letters)
        words *= self.powers[: len(letters)]
        words = np.add.reduceat(words, starts) * self.inverses[starts] if len(starts) else words[:0]
        words ^= words >> np.uint64(32)
        words *= np.uint64(BASE)  # or swapped letters of neighbouring words could cancel out
        words ^= words >> np.uint64(32)
        self.sums = np.zeros(len(words) + 1, dtype=np.uint64)
        np.cumsum(words * self.powers[: len(words)], out=self.sums[1:])

    @classmethod
    def _grow(cls, size: int) -> None:
        if len(cls.powers) < size:
            for name, base in (("powers", BASE), ("inverses", pow(BASE, -1, 2**64))):
                table = np.full(1 << size.bit_length(), base, dtype=np.uint64)
                table[0] = 1
                setattr(cls, name, np.cumprod(table, dtype=np.uint64))

    def grams(self, n: int) -> np.ndarray:
        """Hashes (uint64) of all runs of `n` words, those included that end in another document than they began in."""
        hashes = self.sums[n:] - self.sums[:-n] if len(self.sums) > n else self.sums[:0]
        hashes *= self.inverses[: len(hashes)]
        hashes ^= hashes >> np.uint64(32)
        return hashes

    def within(self, n: int, places: np.ndarray) -> np.ndarray:
        """Those of `places` in `grams(n)` whose words are all of one document."""
        return places[self.document[places] == self.document[places + n - 1]]


class Overlap(NamedTuple):
    """`hits` (documents,): how many different n-grams of evaluation sets each document holds. `pairs` (any, 2): a document, and
    an item that was found in it."""

    hits: np.ndarray
    pairs: np.ndarray


class EvaluationSets:
    """What training documents are checked against.

    Args:
        entries: of each set its `path` (as `dataset`) and the `columns` that hold its texts; a list of texts counts as several.
            Or a `path`, which is then but a name, and `items`, lists of texts.

    Raises:
        InputError: no such set or column, or no text of 8 words or more in it.
    """

    def __init__(self, entries: list[dict[str, Any]]):
        self.names: list[str] = []
        self.items: list[int] = []  # rows of each set
        self.short: list[int] = []  # rows of it that are not looked for
        grams: dict[int, list] = {}
        for number, entry in enumerate(entries, 1):
            start, found = sum(self.items), set()
            rows = 0
            found_texts = _texts(entry, f"entry {number} of `decontaminate_against`")
            if "items" in entry:
                found_texts = ((n, text) for n, item in enumerate(entry["items"]) for text in item)
            for chunk in in_chunks(found_texts, CHUNK, size_of=lambda item: len(item[1])):
                texts, items = [text for _, text in chunk], np.array([start + item for item, _ in chunk])
                rows = int(items[-1]) - start + 1
                words = Words(texts)
                lengths = np.bincount(words.document, minlength=len(texts))
                found.update(items[lengths >= SHORTEST].tolist())
                for n in {GRAM, *range(SHORTEST, GRAM)} & {GRAM, *lengths.tolist()}:
                    hashes = words.grams(n)
                    places = words.within(n, np.arange(len(hashes)))
                    if n < GRAM:
                        places = places[lengths[words.document[places]] == n]
                    found_in = items[words.document[places]]
                    grams.setdefault(n, []).append(np.rec.fromarrays([hashes[places], found_in], names="gram,item"))
            if not found:
                what = f"none of {rows} rows has a text of {SHORTEST} words or more to look for"
                raise InputError(what, entry["path"], "name the columns with the questions, or leave the set out")
            self.names.append(entry["path"])
            self.items.append(rows)
            self.short.append(rows - len(found))
        self.ends = np.cumsum(self.items)
        digest = hashlib.sha256()
        for n in sorted(grams):
            digest.update(np.unique(np.concatenate(grams[n])))
        self.sha256 = digest.hexdigest()
        self.tables = {n: _Table(np.unique(np.concatenate(parts))) for n, parts in grams.items()}

    def check(self, texts: list[str]) -> Overlap:
        """What each of `texts` shares with the sets."""
        words, found = Words(texts), []
        for n, table in self.tables.items():
            hashes = words.grams(n)
            maybe = words.within(n, np.flatnonzero(table.filter[hashes >> table.shift]))
            place = np.minimum(np.searchsorted(table.grams, hashes[maybe]), len(table.grams) - 1)
            same = table.grams[place] == hashes[maybe]
            document, place = words.document[maybe[same]], place[same]
            found.append(np.unique(np.stack([document, place, np.full(len(place), n)], axis=1), axis=0))
        found = np.concatenate([*found, np.empty((0, 3), dtype=np.int64)])
        pairs = [(document, item) for document, place, n in found.tolist() for item in self.tables[n].of(place)]
        pairs = np.array(sorted(set(pairs)), dtype=np.int64).reshape(-1, 2)
        return Overlap(np.bincount(found[:, 0], minlength=len(texts)), pairs)

    def set_of(self, items: np.ndarray) -> np.ndarray:
        """The number of the set that each item belongs to."""
        return np.searchsorted(self.ends, items, side="right")


class _Table:
    """The n-grams of one length, each with the items it is from."""

    def __init__(self, rows: np.ndarray):
        self.grams, self.starts = np.unique(rows["gram"], return_index=True)
        self.items = rows["item"]
        bits = max(16, len(self.grams).bit_length() + 4)
        self.shift = np.uint64(64 - bits)
        self.filter = np.zeros(1 << bits, dtype=bool)  # most n-grams of a document end here, without a search
        self.filter[self.grams >> self.shift] = True

    def of(self, place: int) -> list[int]:
        end = self.starts[place + 1] if place + 1 < len(self.starts) else len(self.items)
        return self.items[self.starts[place] : end].tolist()


def _texts(entry: Any, where: str) -> Iterator[tuple[int, str]]:
    """Number of the row and text, for each text of an evaluation set."""
    columns = entry.get("columns") if isinstance(entry, dict) and "path" in entry else None
    if not isinstance(columns, list) or not columns or not all(isinstance(column, str) for column in columns):
        raise InputError(
            f"no `path` or no `columns` in {show(entry)}", where, "write `{path: FILE_OR_HUB_ID, columns: [question]}`"
        )
    check_keys(entry, KEYS, where)
    settings = {"dataset_split": "test"} | {key: entry[key] for key in entry if key not in ("path", "columns")}
    args = DataArguments(dataset=entry["path"], text_column=columns[0], **settings)

    def texts(row: dict) -> list[str]:
        missing = [column for column in columns if column not in row]
        if missing:
            raise InputError(f"no column `{missing[0]}`", fix=f"in `columns` name one of its columns: {', '.join(row)}")
        values = itertools.chain.from_iterable(row[c] if isinstance(row[c], list) else [row[c]] for c in columns)
        return [str(value) for value in values if value is not None]

    counts: Counter = Counter()
    for _, found in convert_rows(open_source(args)[0], texts, args.max_bad_rows, counts):
        yield from ((counts["rows"] - 1, text) for text in found)
