"""In which order the rows of a data set are read: a pure function of the seed and the position, with no list and no state."""

import numpy as np

ROUNDS = 8
_1, _2, _3 = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 numbers, one to one (splitmix64: Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195)."""
    return finalise(x + _1)


def finalise(x: np.ndarray) -> np.ndarray:
    """The last three lines of splitmix64, which leave 0 at 0."""
    x = (x ^ (x >> np.uint64(30))) * _2
    x = (x ^ (x >> np.uint64(27))) * _3
    return x ^ (x >> np.uint64(31))


class Order:
    """`order[position]` is a row. Positions are endless: p is in epoch p // rows, and each epoch holds every row once.

    An epoch is a keyed permutation, found for any position in constant time and memory: a Feistel network (Luby & Rackoff 1988,
    doi:10.1137/0217022) on the numbers of the next even count of bits, applied again to what falls beyond the rows (cycle walking:
    Black & Rogaway 2002, doi:10.1007/3-540-45760-7_9). The key is (seed, epoch).
    """

    def __init__(self, rows: int, seed: int):
        self.rows, self.seed = rows, seed
        self._half = np.uint64(max(1, ((rows - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)

    def __getitem__(self, positions: int | np.ndarray) -> int | np.ndarray:
        """Rows of one position, or of an array of them of any shape."""
        flat = np.atleast_1d(np.asarray(positions, dtype=np.uint64))
        epochs, numbers = np.divmod(flat, np.uint64(self.rows))
        with np.errstate(over="ignore"):
            keys = mix(mix(np.full_like(flat, self.seed)) ^ epochs)
            numbers = self._permute(numbers, keys)
            while (beyond := numbers >= np.uint64(self.rows)).any():
                numbers[beyond] = self._permute(numbers[beyond], keys[beyond])
        return int(numbers[0]) if np.ndim(positions) == 0 else numbers.astype(np.int64)

    def _permute(self, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        left, right = numbers >> self._half, numbers & self._mask
        for number in range(ROUNDS):
            left, right = right, left ^ (mix(keys + np.uint64(number) * _2 ^ right) & self._mask)
        return left << self._half | right
