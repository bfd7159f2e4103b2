"""A histogram of durations with a relative resolution of 2**-12, filled from numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.plan import FS_PER_S
from pimserve.scheduler.exact import exact_dot, exact_sum
from pimserve.scheduler.percentiles import nearest_place

_FRACTION_BITS = 11  # buckets per octave: 2**11, so a bucket's middle is within 2**-12 of all that it holds
_LOWEST = 10  # of durations of up to 2**10 fs only none at all occurs, as a time in a queue; the first bin has it
_OCTAVES = 64 - _LOWEST
_SHIFT = 52 - _FRACTION_BITS
_FIRST = (1023 + _LOWEST) << _FRACTION_BITS
BINS = _OCTAVES << _FRACTION_BITS


@lru_cache(maxsize=8)
def _bucket_of(bounds_s: tuple[float, ...]) -> NDArray[np.int64]:
    """For each bin, which of the buckets between the bounds its middle lies in."""
    middles = ((np.arange(BINS) + _FIRST) << _SHIFT) + (1 << (_SHIFT - 1))
    return np.searchsorted(np.asarray(bounds_s) * FS_PER_S, middles.view(np.float64))


def bins_of(duration_fs: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) the bin of each duration, (n,)."""
    bits = np.maximum(duration_fs, 1 << _LOWEST).astype(np.float64).view(np.int64)
    return (bits >> _SHIFT) - _FIRST


class DurationHistogram:
    """Durations in fs, each with an integer weight."""

    def __init__(self) -> None:
        self._counts = np.zeros(BINS, np.int64)
        self._low, self._high = len(self._counts), 0  # buckets outside of these are empty: mostly, all but few octaves
        self._sum_fs = 0

    def add(self, duration_fs: NDArray[np.int64], weight: NDArray[np.int64] | None = None) -> None:
        """Add durations (n,) with weights (n,), or once each."""
        if not len(duration_fs):
            return
        bucket = bins_of(duration_fs)
        low = int(bucket.min())
        counts = np.bincount(bucket - low, weights=weight).astype(np.int64)
        self._counts[low : low + len(counts)] += counts
        self._low, self._high = min(self._low, low), max(self._high, low + len(counts))
        self._sum_fs += exact_sum(duration_fs) if weight is None else exact_dot(duration_fs, weight)

    @classmethod
    def merged(cls, parts: Iterable[DurationHistogram]) -> DurationHistogram:
        """The histogram of all durations of `parts`."""
        whole = cls()
        for part in parts:
            whole._counts[part._low : part._high] += part._counts[part._low : part._high]
            whole._low, whole._high = min(whole._low, part._low), max(whole._high, part._high)
            whole._sum_fs += part._sum_fs
        return whole

    def state(self) -> dict[str, Any]:
        """What it holds, as JSON can hold it."""
        filled = self._low + np.flatnonzero(self._used)
        return {"buckets": filled.tolist(), "counts": self._counts[filled].tolist(), "sum_fs": self._sum_fs}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> DurationHistogram:
        """One that holds what `state` says."""
        histogram = cls()
        histogram.restore(state)
        return histogram

    def restore(self, state: dict[str, Any]) -> None:
        """Hold what `state` says."""
        self._used[:] = 0
        self._counts[np.array(state["buckets"], np.int64)] = state["counts"]
        self._low = min(state["buckets"], default=len(self._counts))
        self._high = max(state["buckets"], default=-1) + 1
        self._sum_fs = state["sum_fs"]

    @property
    def sum_s(self) -> float:
        """Weighted sum, s."""
        return self._sum_fs / FS_PER_S

    def counts(self, bounds_s: Sequence[float]) -> NDArray[np.int64]:
        """(n + 1,) weight in each of the buckets that n ascending upper bounds, s, make; the last one is above all.

        A duration within 2**-12 of a bound may be counted on its other side.
        """
        bucket = _bucket_of(tuple(bounds_s))[self._low : self._high]
        return np.asarray(np.bincount(bucket, self._used, minlength=len(bounds_s) + 1), np.int64)

    @property
    def count(self) -> int:
        """Total weight."""
        return int(self._used.sum())

    def mean_s(self) -> float | None:
        """Weighted mean, s; None when empty."""
        return self._sum_fs / self.count / FS_PER_S if self.count else None

    def percentile_s(self, percent: float) -> float | None:
        """Nearest-rank percentile, s, to the middle of its bucket; None when empty."""
        return self.ranked_s(nearest_place(self.count, percent))

    def ranked_s(self, place: int) -> float | None:
        """The duration at that place, from 0, in ascending order, s, to the middle of its bucket; None: beyond all."""
        if place >= self.count:
            return None
        bucket = self._bin_at(place)
        if not bucket:
            return 0.0
        edges = np.array([bucket + _FIRST, bucket + _FIRST + 1], np.int64) << _SHIFT
        low, high = edges.view(np.float64)
        return float((low + high) / 2 / FS_PER_S)

    def bin_of_percentile(self, percent: float) -> int:
        """The bin that holds the nearest-rank percentile; there must be samples."""
        return self._bin_at(nearest_place(self.count, percent))

    def _bin_at(self, place: int) -> int:
        return self._low + int(np.searchsorted(np.cumsum(self._used), place + 1))

    @property
    def _used(self) -> NDArray[np.int64]:
        """The buckets that are not empty, and those between them."""
        return self._counts[self._low : self._high]

    def share_up_to(self, place: int, width: int) -> float:
        """Of what is in the block of so many bins that holds bin `place`, the share that is in it or below."""
        begin = place - place % width
        return float(self._counts[begin : place + 1].sum() / self._counts[begin : begin + width].sum())
