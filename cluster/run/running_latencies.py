"""Latencies of a run so far: those of the summary, of the requests that have left, and how many met the SLO."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import FloatArray, IntArray
from pimserve.loadgen.objectives import Objectives
from pimserve.scheduler.distributions import percentile
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.latencies import LATENCIES, Latencies
from pimserve.scheduler.latency_sections import AtPercentile
from pimserve.scheduler.outcomes import overall
from pimserve.scheduler.percentiles import PERCENTILES
from pimserve.scheduler.requests import Columns
from pimserve.scheduler.running_limits import RunningLimits

NAMES = (*LATENCIES, "itl")


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
        limited: whether any request has a limit.
        limits: of requests whose class has no limits of its own, s.
        gaps_fs: simulated time of which the gaps between tokens ("itl") are.
        at_percentiles: limits at percentiles of the run, by key.
    """

    latencies: dict[str, Quantiles]
    left: int
    good: int
    censored: int
    limited: bool
    limits: dict[str, float]
    gaps_fs: int
    at_percentiles: dict[str, AtPercentile]


class RunningLatencies:
    """Histograms that grow as requests leave; readable from any thread.

    Definitions are those of scheduler/latencies.py; whoever adds requests leaves out those that are not measured.

    Args:
        objectives: limits.
        frontend_ps: time of a request in front of the scheduler, which TTFT and E2E hold.
        percentiles: that the run was asked for, in per cent.
    """

    def __init__(
        self, objectives: Objectives, *, frontend_ps: int = 0, percentiles: Sequence[float] = PERCENTILES
    ) -> None:
        self.objectives = objectives
        self._percentiles = percentiles
        self._frontend_ps = frontend_ps
        self._lock = threading.Lock()
        self._histograms = {name: DurationHistogram() for name in NAMES}
        self._limits = RunningLimits(objectives.of_run)
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
        """Take in latencies of requests, by their numbers, that finished or were rejected.

        At the end of the run, `end_ps`, those as well that it has cut off.
        """
        latencies = Latencies(columns, requests, frontend_ps=self._frontend_ps, end_ps=end_ps)
        with self._lock:
            self._limits.add(latencies)
            for name in LATENCIES:
                self._histograms[name].add(latencies[name].known_fs)

    def judge(
        self, columns: Columns, requests: NDArray[np.int64], longest_gap_ps: IntArray | None = None, end_ps: int = 0
    ) -> None:
        """Count which of these met every limit; with their longest gaps (n,), where a limit is of these."""
        latencies = Latencies(
            columns, requests, frontend_ps=self._frontend_ps, end_ps=end_ps, longest_gap_ps=longest_gap_ps
        )
        met, missed, censored = np.bincount(overall(latencies, self.objectives), minlength=3).tolist()
        with self._lock:
            self._left += met + missed
            self._good += met
            self._censored += censored

    def so_far(self, percentiles: Sequence[float] = ()) -> LatenciesSoFar:
        """What is known by now; of these percentiles, or of those that the run was asked for."""
        percentiles = percentiles or self._percentiles
        with self._lock:
            latencies = {
                name: quantiles_of_histogram(histogram, percentiles) for name, histogram in self._histograms.items()
            }
            counts = (self._left, self._good, self._censored)
            limited = bool(self.objectives.names())
            limits, at_percentiles = self.objectives.of_run.limits(), self._limits.so_far(self.gaps)
            return LatenciesSoFar(latencies, *counts, limited, limits, self._gaps_fs, at_percentiles)


def quantiles_of_histogram(histogram: DurationHistogram, percentiles: Sequence[float]) -> Quantiles:
    """Of a latency of which there is a histogram."""
    by_percent = {percent: histogram.percentile_s(percent) for percent in percentiles}
    return Quantiles(histogram.count, histogram.mean_s(), by_percent)


def exact_quantiles(ordered: FloatArray, percentiles: Sequence[float]) -> Quantiles:
    """Of the latencies, s, (n,) and ascending, of a run that is over: those of the summary."""
    by_percent = {percent: percentile(ordered, percent) if len(ordered) else None for percent in percentiles}
    return Quantiles(len(ordered), float(ordered.mean()) if len(ordered) else None, by_percent)
