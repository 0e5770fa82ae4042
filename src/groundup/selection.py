"""What becomes of each document of a corpus, decided from the notes of all its parts at once (`groundup.corpus.scan`).

Of equal documents one stays, that of the source named first; of near duplicates, too, where they are known. Of each source its
share stays: as in `groundup.data` a mixture is the largest set in which each source has its share and nothing comes twice, but
shares are of bytes of text, which is what a model is trained on. Which documents a mixture leaves out, and which are held out of
the rest, is decided by a hash of the document and the seed, so that the number of parts changes nothing.

Memory: a few hundred MB and a byte a document; the notes are files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from groundup.corpus import Source, hash_text, read_notes
from groundup.errors import InputError
from groundup.order import finalise
from groundup.record import write_aside
from groundup.words import funnel

TRAIN, HELD_OUT, DROPPED = 0, 1, 2
AT_ONCE = 1 << 22  # hashes that are sorted in memory
BLOCK = 1 << 20  # documents looked at in one go
BINS = 1 << 16


class Choice:
    """The notes of all parts, and what is decided so far: one byte a document, saved in `choice-<part>.bytes`."""

    def __init__(self, directory: Path, parts: int, sources: list[Source], seed: int):
        self.sources, self.seed = sources, seed
        self.held_out = np.array([source.held_out for source in sources])
        self.paths = [directory / f"choice-{part:05d}.bytes" for part in range(parts)]
        self.notes = [read_notes(directory, part) for part in range(parts)]
        self.made = [np.empty(len(notes), np.uint8) for notes in self.notes]
        for _, _, notes, made in self.blocks():
            made[:] = np.where(notes["dropped"] == 1, DROPPED, np.where(self.held_out[notes["source"]], HELD_OUT, TRAIN))

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Part, first document, notes and choices of a block, all parts through."""
        for part, (notes, made) in enumerate(zip(self.notes, self.made, strict=True)):
            for start in range(0, len(notes), BLOCK):
                yield part, start, np.asarray(notes[start : start + BLOCK]), made[start : start + BLOCK]

    def save(self) -> None:
        for made, path in zip(self.made, self.paths, strict=True):
            with write_aside(path) as file:
                file.write(made)

    def count(self) -> np.ndarray:
        """Documents and bytes, (sources, 3 choices, 2)."""
        counts = np.zeros((len(self.sources) * 3, 2), dtype=np.int64)
        for _, _, notes, made in self.blocks():
            cell = notes["source"].astype(np.int64) * 3 + made
            counts[:, 0] += np.bincount(cell, minlength=len(counts))
            counts[:, 1] += np.bincount(cell, weights=notes["size"], minlength=len(counts)).astype(np.int64)
        return counts.reshape(-1, 3, 2)

    def rank(self, part: int, places: np.ndarray, sources: np.ndarray) -> np.ndarray:
        """Numbers that sort documents by who stays: held-out sources first, then sources as named, then parts as read."""
        behind = (~self.held_out[sources]).astype(np.uint64) << np.uint64(63)
        return behind | (sources.astype(np.uint64) << np.uint64(48)) | np.uint64(part << 32) | places.astype(np.uint64)

    def drop(self, ranks: np.ndarray) -> np.ndarray:
        """Drop these documents; how many of each source."""
        parts, places = (ranks >> np.uint64(32)) & np.uint64(0xFFFF), ranks & np.uint64(0xFFFFFFFF)
        for part in np.unique(parts):
            self.made[int(part)][places[parts == part]] = DROPPED
        sources = (ranks >> np.uint64(48)) & np.uint64(0x7FFF)
        return np.bincount(sources.astype(np.int64), minlength=len(self.sources))

    def drop_duplicates(self) -> np.ndarray:
        """Of equal documents all but the first; how many of each source. Sorted in memory by ranges of the hash."""
        alive = sum(int((made != DROPPED).sum()) for _, _, _, made in self.blocks())
        ranges, dropped = -(-alive // AT_ONCE) or 1, np.zeros(len(self.sources), dtype=np.int64)
        for number in range(ranges):
            hashes, ranks = [], []
            for part, start, notes, made in self.blocks():
                mine = ((notes["hash"] >> np.uint64(32)) * np.uint64(ranges)) >> np.uint64(32) == number
                places = np.flatnonzero(mine & (made != DROPPED))
                hashes.append(notes["hash"][places])
                ranks.append(self.rank(part, start + places, notes["source"][places]))
            dropped += self.drop(behind_first(np.concatenate(hashes), np.concatenate(ranks)))
        return dropped

    def drop_near_duplicates(self, clusters: list[np.ndarray]) -> np.ndarray:
        """Of each cluster all but the first, but nothing of a held-out source; how many of each source.

        Args:
            clusters: of each part (any, 2): number among the documents that `scan` did not drop, and cluster.
        """
        names, ranks = [], []
        for part, (notes, made, found) in enumerate(zip(self.notes, self.made, clusters, strict=True)):
            places = np.flatnonzero(notes["dropped"] == 0)[found[:, 0]]
            alive = made[places] != DROPPED
            names.append(found[alive, 1].astype(np.uint64))
            ranks.append(self.rank(part, places[alive], notes["source"][places[alive]]))
        behind = behind_first(np.concatenate(names), np.concatenate(ranks))
        return self.drop(behind[behind >> np.uint64(63) == 1])

    def mix(self) -> np.ndarray:
        """Leave out what is beyond a source's share; how many of each source."""
        dropped = np.zeros(len(self.sources), dtype=np.int64)
        weights = np.array([source.weight or 0.0 for source in self.sources])
        if not weights.any():
            return dropped
        sizes = self.count()[:, TRAIN, 1].astype(float)
        lacking = [source.args.dataset for source, w, size in zip(self.sources, weights, sizes, strict=True) if w and not size]
        if lacking:
            raise InputError(
                f"nothing is left of `{lacking[0]}`", "`datasets`", "see what was dropped; or leave it out of the mixture"
            )
        weighted = np.flatnonzero(weights)
        total = min(sizes[n] / weights[n] for n in weighted)
        for source in weighted:
            if sizes[source] > total * weights[source] * (1 + 1e-9):
                last = self._last_key(int(source), total * weights[source])
                for _, _, notes, made in self.blocks():
                    over = (notes["source"] == source) & (made == TRAIN) & (mixed(notes["hash"], self.seed, "mixture") > last)
                    made[over] = DROPPED
                    dropped[source] += over.sum()
        return dropped

    def _last_key(self, source: int, target: float) -> np.uint64:
        """The key up to which the documents of a source hold `target` bytes; at least that of one document."""

        def keys() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for _, _, notes, made in self.blocks():
                mine = (notes["source"] == source) & (made == TRAIN)
                yield mixed(notes["hash"][mine], self.seed, "mixture"), notes["size"][mine]

        shift = np.uint64(64 - BINS.bit_length() + 1)
        sizes = sum(np.bincount((k >> shift).astype(np.int64), weights=size, minlength=BINS) for k, size in keys())
        sums = np.cumsum(sizes)
        bin_ = int(np.searchsorted(sums, target))
        inside = [(k[(k >> shift) == bin_], size[(k >> shift) == bin_]) for k, size in keys()]
        found, size = (np.concatenate(column) for column in zip(*inside, strict=True))
        order = np.argsort(found)
        before = sums[bin_ - 1] if bin_ else 0.0
        count = int(np.searchsorted(before + np.cumsum(size[order]), target, side="right"))
        return found[order[count - 1]] if count else found[order[0]] if not before else np.uint64(bin_ << int(shift)) - np.uint64(1)

    def hold_out(self, documents: int | None) -> None:
        """Hold out the groups with the lowest keys, as many as `documents` has room for; none when a source is held out already.

        Raises:
            InputError: as many as half of all, or every group is larger.
        """
        left = int(self.count()[:, TRAIN, 0].sum())
        asked = documents is not None
        if documents is None:
            documents = 0 if self.held_out.any() or left < 2 else min(1000, max(1, left // 200))
        if documents * 2 > left:
            what = f"`held_out_documents: {documents}` of {left} documents"
            raise InputError(what, fix="write a smaller number, or 0 for no held-out split; or give more text")
        keys, sizes = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
        for _, _, notes, made in self.blocks():  # the lowest keys so far, more than are needed, and how often each stands there
            more, times = np.unique(mixed(notes["group"][made == TRAIN], self.seed, "held out"), return_counts=True)
            keys, which = np.unique(np.concatenate([keys, more]), return_inverse=True)
            sizes = np.bincount(which, weights=np.concatenate([sizes, times])).astype(np.int64)
            keys, sizes = keys[: 2 * documents + 1000], sizes[: 2 * documents + 1000]
        chosen, room = [], documents
        for key, size in zip(keys.tolist(), sizes.tolist(), strict=True):
            if size <= room:
                chosen.append(key)
                room -= size
        if asked and documents and not chosen:
            what = f"`held_out_documents: {documents}`, and every row that could be held out is cut into more"
            raise InputError(what, fix="write a larger number; or 0, and name held-out text as `eval_dataset`")
        for _, _, notes, made in self.blocks():
            held_out = np.isin(mixed(notes["group"], self.seed, "held out"), np.array(chosen, dtype=np.uint64))
            made[(made == TRAIN) & held_out] = HELD_OUT


def mixed(keys: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Pseudo-random numbers from hashes (uint64), others for each seed and purpose."""
    return finalise(keys ^ np.uint64(hash_text(f"{purpose} {seed}".encode())))


def behind_first(names: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The ranks that are not the lowest of their name."""
    order = np.lexsort((ranks, names))
    return ranks[order][1:][names[order][1:] == names[order][:-1]]


def choose(
    directory: Path, parts: int, sources: list[Source], seed: int, held_out: int | None, clusters: list[np.ndarray] | None
) -> dict[str, Any]:
    """All decisions in their order; of each source `duplicate`, `near duplicate` and `beyond its share` (documents), `used` and
    `held_out` (documents and bytes).

    Raises:
        InputError: nothing is left to train on, and as `Choice.mix` and `Choice.hold_out`.
    """
    choice = Choice(directory, parts, sources, seed)
    read = sum(len(notes) for notes in choice.notes)
    dropped = {"dropped": choice.count()[:, DROPPED, 0], "duplicate": choice.drop_duplicates()}
    if clusters is not None:
        dropped["near duplicate"] = choice.drop_near_duplicates(clusters)
    if not choice.count()[:, TRAIN, 0].sum():
        steps = {reason: int(counts.sum()) for reason, counts in dropped.items()}
        raise InputError(f"no document is left: {funnel(read, 'documents', steps)}", fix="see what is dropped, and why")
    dropped["beyond its share"] = choice.mix()
    choice.hold_out(held_out)
    counts = choice.count()
    choice.save()
    return {
        "dropped": {reason: numbers.tolist() for reason, numbers in dropped.items() if reason != "dropped"},
        "used": counts[:, TRAIN].tolist(),
        "held_out": counts[:, HELD_OUT].tolist(),
    }
