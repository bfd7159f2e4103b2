"""Latencies of a run so far: those of the summary, of the requests that have left, and how many met the SLO."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.outcomes import ALL, CENSORED, MET, MISSED, outcomes
from pimserve.scheduler.requests import NEVER, REJECTED
from pimserve.scheduler.slo import SloSpec

_OF_REQUESTS = ("ttft", "tpot", "e2e", "queue")
NAMES = (*_OF_REQUESTS, "itl")
_LONGEST_PS = (2**63 - 1) // FS_PER_PS  # 9,223 s; what lasted longer counts as this
Columns = Mapping[str, NDArray[Any]]


class RunningLatencies:
    """Histograms that grow as requests leave; readable from any thread.

    Definitions are those of scheduler/metrics.py; whoever adds requests leaves out those that are not measured.

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

    def set_gaps(self, gaps: Iterable[DurationHistogram]) -> None:
        """Take over the gaps between tokens so far, of all replicas."""
        merged = DurationHistogram.merged(gaps)
        with self._lock:
            self._histograms["itl"] = merged

    def add(self, columns: Columns, requests: NDArray[np.int64], end_ps: int = 0) -> None:
        """Take in requests, by their numbers, that finished or were rejected.

        At the end of the run, `end_ps`, those as well that it has cut off.
        """
        times = (columns[f"{name}_ps"][requests] for name in ("arrival", "first_scheduled", "first_token", "finish"))
        arrival, scheduled, first, finish = times
        gaps = columns["output_tokens"][requests].astype(np.int64) - 1
        admitted, started, done = scheduled != NEVER, first != NEVER, finish != NEVER
        several = done & (gaps > 0)
        ttft, e2e = first - arrival + self._frontend_ps, finish - arrival + self._frontend_ps
        found = outcomes(columns, requests, self.slo, frontend_ps=self._frontend_ps, end_ps=end_ps)
        judged = found.get(
            ALL, np.where(done, MET, np.where(columns["status"][requests] == REJECTED, MISSED, CENSORED))
        )
        met, missed, censored = np.bincount(judged, minlength=3).tolist()
        with self._lock:
            self._left += met + missed
            self._good += met
            self._censored += censored
            self._add("ttft", _fs(ttft[started]))
            self._add("tpot", _fs((finish - first)[several]) // gaps[several])
            self._add("e2e", _fs(e2e[done]))
            self._add("queue", _fs((scheduled - arrival)[admitted]))

    def document(self, percentiles: tuple[float, ...]) -> dict[str, Any]:
        """Per latency: count, mean and percentiles, s; and of the SLO: of how many it is known, how many met it."""
        with self._lock:
            latencies = {
                name: {
                    "count": histogram.count,
                    "mean_s": histogram.mean_s(),
                    "percentiles": {percent: histogram.percentile_s(percent) for percent in percentiles},
                }
                for name, histogram in self._histograms.items()
            }
            slo = {"left": self._left, "good": self._good, "censored": self._censored, "limits": self.slo.limits()}
            return {"latencies": latencies, **slo}

    def _add(self, name: str, durations_fs: NDArray[np.int64]) -> None:
        if len(durations_fs):
            self._histograms[name].add(durations_fs, np.ones(len(durations_fs), np.int64))


def _fs(duration_ps: NDArray[np.int64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.minimum(duration_ps, _LONGEST_PS) * FS_PER_PS
    return found
