"""Rows of unlike length in two arrays (CSR)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pimserve.arrays import BoolArray, IntArray


@dataclass(frozen=True)
class Ragged:
    """For each of n rows some numbers: row i has `values[offsets[i]:offsets[i + 1]]`.

    `offsets`: (n + 1,), ascending from 0. `values`: (offsets[n],).
    """

    offsets: IntArray
    values: IntArray

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> "Ragged":
        """The rows of that."""
        kept = list(rows)
        values = np.fromiter((value for row in kept for value in row), np.int64)
        return cls(_offsets(np.array([len(row) for row in kept], np.int64)), values)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> IntArray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> IntArray:
        """(n,) of each row."""
        return np.diff(self.offsets)

    def take(self, rows: IntArray) -> "Ragged":
        """Those rows, in that order."""
        lengths = self.lengths[rows]
        offsets = _offsets(lengths)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(offsets, self.values[places])

    def where(self, kept: BoolArray) -> "Ragged":
        """The same rows with only those of their values."""
        row_of = np.repeat(np.arange(len(self)), self.lengths)
        return Ragged(_offsets(np.bincount(row_of[kept], minlength=len(self))), self.values[kept])


def _offsets(lengths: IntArray) -> IntArray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
