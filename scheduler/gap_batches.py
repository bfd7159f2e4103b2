"""Gaps between tokens by stretches of a replica's steps, for the confidence intervals of inter-token latency.

A percentile of pooled gaps is uncertain by how much the share of gaps below it varies from stretch to stretch. So each
stretch counts its gaps in bins of 1/64 octave, of which a few octaves are ever touched.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pimserve.arrays import FloatArray, IntArray
from pimserve.scheduler.histogram import BINS, DurationHistogram, bins_of

_NARROW = 5  # 2**5 bins of `DurationHistogram` are one here
_FS_PER_NS = 10**6
NS_PER_S = 10**9


class GapBatches:
    """Counts of gaps, (bins, stretches), and their sums by stretch, whole ns each."""

    def __init__(self, stretches: int) -> None:
        self._stretches = stretches
        self._counts = np.zeros((BINS >> _NARROW, stretches), np.int64)
        self._sums_ns = np.zeros(stretches, np.int64)
        self._low, self._high = len(self._counts), 0  # bins outside of these are empty

    def add(self, stretch: IntArray, duration_fs: IntArray, weight: IntArray) -> None:
        """Take gaps, (n,) each: their stretch, ascending; how long they are; and how many there are, or fewer."""
        if not len(stretch):
            return
        bins = bins_of(duration_fs) >> _NARROW
        low, high = int(bins.min()), int(bins.max()) + 1
        place = (bins - low) * self._stretches + stretch
        counts = np.bincount(place, weight, (high - low) * self._stretches).astype(np.int64)
        self._counts[low:high] += counts.reshape(high - low, self._stretches)
        self._low, self._high = min(self._low, low), max(self._high, high)
        begins = np.flatnonzero(np.diff(stretch, prepend=-1))
        self._sums_ns[stretch[begins]] += np.add.reduceat(duration_fs // _FS_PER_NS * weight, begins)

    def join(self) -> None:
        """Pairs of stretches become one."""
        half = self._stretches // 2
        for sums in (self._counts[self._low : self._high], self._sums_ns):
            sums[..., :half], sums[..., half:] = sums[..., ::2] + sums[..., 1::2], 0

    def totals(self) -> tuple[IntArray, IntArray]:
        """(k,) how many gaps each stretch has, and their sum, ns; without empty ones."""
        n = self._counts[self._low : self._high].sum(axis=0)
        return n[n > 0], self._sums_ns[n > 0]

    def up_to(self, place: int, whole: DurationHistogram) -> FloatArray:
        """(k,) how many gaps of each stretch are in that bin of the histogram or below; without empty stretches.

        Args:
            place: the bin.
            whole: histogram of all gaps of the run, which says where in a bin of this class they lie.
        """
        wide = place >> _NARROW
        share = whole.share_up_to(place, 1 << _NARROW)
        filled = self._counts[self._low : self._high].sum(axis=0) > 0
        below: IntArray = self._counts[self._low : wide].sum(axis=0)
        return np.asarray(below[filled] + share * self._counts[wide, filled])

    def state(self) -> dict[str, Any]:
        """What it holds, as JSON can hold it."""
        filled = self._low * self._stretches + np.flatnonzero(self._counts[self._low : self._high])
        return {
            "bins": filled.tolist(),
            "counts": self._counts.reshape(-1)[filled].tolist(),
            "sums_ns": self._sums_ns.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Hold what `state` says."""
        self._counts[self._low : self._high] = 0
        self._counts.reshape(-1)[np.array(state["bins"], np.int64)] = state["counts"]
        self._sums_ns[:] = state["sums_ns"]
        rows = [place // self._stretches for place in state["bins"]]
        self._low, self._high = min(rows, default=len(self._counts)), max(rows, default=-1) + 1
