"""Which rows of a data file are dead: one bit a row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.unsignedinteger]


class DeadRows:
    """The rows of one data file that position deletes name. Grows as needed."""

    def __init__(self) -> None:
        self.count = 0
        self._bits = np.zeros(0, np.uint8)

    def add(self, rows: Rows) -> None:
        """Mark rows dead that are alive."""
        if not len(rows):
            return
        needed = (int(rows.max()) >> 3) + 1
        if needed > len(self._bits):
            self._bits = np.concatenate([self._bits, np.zeros(max(needed, 2 * len(self._bits)) - len(self._bits), np.uint8)])
        bit = (128 >> (rows & 7)).astype(np.uint8)
        np.bitwise_or.at(self._bits, (rows >> 3).astype(np.int64), bit)
        self.count += len(rows)

    def recount(self) -> None:
        """Correct ``count`` after rows were marked that were dead already."""
        self.count = int(np.bitwise_count(self._bits).sum())

    def alive(self, rows: int) -> npt.NDArray[np.bool_]:
        """bool[rows]: whether each row is alive."""
        dead = np.unpackbits(self._bits, count=rows).astype(np.bool_)
        return ~dead
