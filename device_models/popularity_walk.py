"""Popularities of experts that drift: their logarithms walk at random, a step at the end of every interval.

After n intervals the log of an expert's weight has moved by sigma times the sum of n standard normals. Those of step n
come from a stream of their own, keyed by seed and n, and are added up from the first: whoever asks gets the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pimserve.arrays import FloatArray
from pimserve.device_models.plan import FS_PER_PS

MOST_SKEW = 1e12  # between experts' weights: products of top_k of them must stay within floating point
_DRIFT = 6  # tag of random streams


@dataclass(frozen=True, slots=True)
class Drift:
    """How fast popularities drift: `sigma` is the standard deviation of a log popularity's step, one every interval."""

    interval_ps: int
    sigma: float

    @property
    def interval_fs(self) -> int:
        """The interval in fs."""
        return self.interval_ps * FS_PER_PS

    def weights(self, first: FloatArray, seed: int, epoch: int) -> FloatArray:
        """(rows, experts): weights after `epoch` intervals, given the first ones; 0 stays 0.

        None is less than 1 / MOST_SKEW of the greatest in its row.
        """
        moved = self.sigma * _walk(seed, *first.shape).at(epoch)
        with np.errstate(divide="ignore"):
            log = np.log(first) + moved
        log -= log.max(axis=1, keepdims=True)
        return np.where(first > 0, np.exp(np.maximum(log, -np.log(MOST_SKEW))), 0.0)


class _Walk:
    """The sum of the first n steps, (rows, experts), added up from where it was left, or from the beginning."""

    def __init__(self, seed: int, rows: int, experts: int) -> None:
        self._seed = seed
        self._last = 0, np.zeros((rows, experts))

    def at(self, n: int) -> FloatArray:
        """After n steps."""
        at, total = self._last
        if at > n:
            at, total = 0, np.zeros_like(total)
        for step in range(at + 1, n + 1):
            total = total + np.random.default_rng([self._seed, _DRIFT, step]).standard_normal(total.shape)
        self._last = n, total
        return total


@lru_cache(maxsize=16)
def _walk(seed: int, rows: int, experts: int) -> _Walk:
    return _Walk(seed, rows, experts)
