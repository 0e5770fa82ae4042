"""Which pieces of text share a row: documents into rows of one length, almost none of them cut and almost nothing wasted."""

from collections.abc import Generator, Iterator, Sequence

import numpy as np

PIECES, TOKENS = 2**14, 2**25  # held to choose from: enough to fill rows well, and at most 128 MB of uint32
WASTE = 0.01  # share of padding that is put up with before documents are cut to fill rows


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of at most `capacity` tokens, as lists of indices into `lengths`; a row holds its longest piece first.

    Best-fit decreasing: from the longest piece on, each goes into the row that it leaves the least room in (Ding et al. 2024,
    arXiv:2404.10830, algorithm 1). O(n log n) for n pieces.

    Args:
        lengths: (n,), each from 1 to `capacity`.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room that is left
    rooms = 0  # bit r is set where open_rows[r] holds any: a search among thousands of rooms is then one shift
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            rooms ^= 0 if open_rows[room] else 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(piece)
        if room := room - length:
            open_rows[room].append(row)
            rooms |= 1 << room
    return rows


class Packer:
    """Documents, one after another, into rows of `length` tokens; a row is a list of arrays, each a document or a piece of one.

    A document longer than a row is cut into whole rows and a rest. Some thousand pieces are held and packed together; rows that
    hold too little go back and wait for others. Pieces that waited in vain are cut, so that no set of documents wastes more than
    WASTE and part of the last row.

    `rows` and `padding` (tokens) count what was given out, `split` the documents that were cut.
    """

    def __init__(self, length: int):
        self.length = length
        self.rows = self.padding = self.split = 0
        self._pieces: list[tuple[np.ndarray, bool]] = []  # and whether it is a whole document
        self._held = 0  # tokens in them

    def add(self, document: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Take a document, and give out the rows that are full."""
        whole = len(document) <= self.length
        self.split += not whole
        rest = len(document) % self.length
        for start in range(0, len(document) - rest, self.length):
            yield self._row([document[start : start + self.length]])
        if rest:
            self._pieces.append((document[-rest:].copy(), whole))  # a view would keep all of the document
            self._held += rest
        if len(self._pieces) >= PIECES or self._held >= TOKENS:
            yield from self._pack()

    def finish(self) -> Iterator[list[np.ndarray]]:
        """Give out the rest."""
        yield from self._pack(last=True)

    def _pack(self, last: bool = False) -> Iterator[list[np.ndarray]]:
        rows = [[self._pieces[i] for i in row] for row in best_fit([len(piece) for piece, _ in self._pieces], self.length)]
        left = []
        for row in sorted(rows, key=self._room):
            if self.padding + self._room(row) <= WASTE * (self.rows + 1) * self.length:
                yield self._row([piece for piece, _ in row])
            else:
                left += row
        if last or len(left) > PIECES // 2:
            left = yield from self._cut(left)
        if last and left:
            yield self._row([piece for piece, _ in left])
            left = []
        self._pieces, self._held = left, sum(len(piece) for piece, _ in left)

    def _cut(self, pieces: list[tuple[np.ndarray, bool]]) -> Generator[list[np.ndarray], None, list]:
        """Give out pieces one after another, cut where a row ends; return what fills no row."""
        row, room = [], self.length
        for piece, whole in pieces:
            if len(piece) > room > 0:
                self.split += whole
                row.append((piece[:room], False))
                piece, whole, room = piece[room:], False, 0
            if not room:
                yield self._row([part for part, _ in row])
                row, room = [], self.length
            row.append((piece, whole))
            room -= len(piece)
        return row

    def _room(self, row: list[tuple[np.ndarray, bool]]) -> int:
        return self.length - sum(len(piece) for piece, _ in row)

    def _row(self, pieces: list[np.ndarray]) -> list[np.ndarray]:
        self.rows += 1
        self.padding += self.length - sum(map(len, pieces))
        return pieces
