"""Latencies of a run so far: those of the summary, of the requests that have left, and how many met the SLO."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import FloatArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.distributions import percentile
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.latencies import LATENCIES, Latencies, Latency
from pimserve.scheduler.outcomes import overall
from pimserve.scheduler.requests import Columns
from pimserve.scheduler.slo import SloSpec

NAMES = (*LATENCIES, "itl")
_LONGEST_PS = (2**63 - 1) // FS_PER_PS  # 9,223 s; what lasted longer counts as this


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of a latency: how many samples, their mean, s, and percentiles, s, by per cent; None without samples."""

    count: int
    mean_s: float | None
    percentiles_s: dict[float, float | None]


@dataclass(frozen=True, slots=True)
class LatenciesSoFar:
    """Latencies of a run at a moment, by name, and its SLO.

    Args:
        latencies: by name, as in `NAMES`.
        left: requests of which it is known whether they met all limits.
        good: of these that met them.
        censored: of which it is not known, for the run ended before.
        limits: in force, s.
        gaps_fs: simulated time of which the gaps between tokens ("itl") are.
    """

    latencies: dict[str, Quantiles]
    left: int
    good: int
    censored: int
    limits: dict[str, float]
    gaps_fs: int


class RunningLatencies:
    """Histograms that grow as requests leave; readable from any thread.

    Definitions are those of scheduler/latencies.py; whoever adds requests leaves out those that are not measured.

    Args:
        slo: limits.
        frontend_ps: time of a request in front of the scheduler, which TTFT and E2E hold.
    """

    def __init__(self, slo: SloSpec, *, frontend_ps: int = 0) -> None:
        self.slo = slo
        self._frontend_ps = frontend_ps
        self._lock = threading.Lock()
        self._histograms = {name: DurationHistogram() for name in NAMES}
        self._left = self._good = self._censored = 0
        self._gaps_fs = 0

    @property
    def gaps(self) -> DurationHistogram:
        """The gaps between tokens, as last taken over."""
        return self._histograms["itl"]

    def set_gaps(self, gaps: Iterable[DurationHistogram], now_fs: int) -> None:
        """Take over the gaps between tokens so far, of all replicas."""
        merged = DurationHistogram.merged(gaps)
        with self._lock:
            self._histograms["itl"], self._gaps_fs = merged, now_fs

    def add(self, columns: Columns, requests: NDArray[np.int64], end_ps: int = 0) -> None:
        """Take in requests, by their numbers, that finished or were rejected.

        At the end of the run, `end_ps`, those as well that it has cut off.
        """
        latencies = Latencies(columns, requests, frontend_ps=self._frontend_ps, end_ps=end_ps)
        met, missed, censored = np.bincount(overall(latencies, self.slo), minlength=3).tolist()
        with self._lock:
            self._left += met + missed
            self._good += met
            self._censored += censored
            for name in LATENCIES:
                self._add(name, latencies[name])

    def so_far(self, percentiles: Sequence[float]) -> LatenciesSoFar:
        """What is known by now."""
        with self._lock:
            latencies = {
                name: quantiles_of_histogram(histogram, percentiles) for name, histogram in self._histograms.items()
            }
            counts = (self._left, self._good, self._censored)
            return LatenciesSoFar(latencies, *counts, self.slo.limits(), self._gaps_fs)

    def _add(self, name: str, latency: Latency) -> None:
        known = latency.known
        if known.any():
            lasted_fs = np.minimum(latency.lasted_ps[known], _LONGEST_PS) * FS_PER_PS
            self._histograms[name].add(lasted_fs // latency.gaps[known], np.ones(len(lasted_fs), np.int64))


def quantiles_of_histogram(histogram: DurationHistogram, percentiles: Sequence[float]) -> Quantiles:
    """Of a latency of which there is a histogram."""
    by_percent = {percent: histogram.percentile_s(percent) for percent in percentiles}
    return Quantiles(histogram.count, histogram.mean_s(), by_percent)


def exact_quantiles(ordered: FloatArray, percentiles: Sequence[float]) -> Quantiles:
    """Of the latencies, s, (n,) and ascending, of a run that is over: those of the summary."""
    by_percent = {percent: percentile(ordered, percent) if len(ordered) else None for percent in percentiles}
    return Quantiles(len(ordered), float(ordered.mean()) if len(ordered) else None, by_percent)
