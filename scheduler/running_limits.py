"""Limits at percentiles of a run that goes on: those of `percentile_limits`, of the requests that have left so far.

Whether a percentile keeps to its limit is exact, as it follows from how many samples do; the percentile itself is of a
histogram, within 2^-12 of its value.
"""

from __future__ import annotations

import numpy as np

from pimserve.loadgen.slo import LimitAtPercentile, SloSpec
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.latencies import Latencies
from pimserve.scheduler.latency_sections import AtPercentile
from pimserve.scheduler.percentile_limits import verdict
from pimserve.scheduler.percentiles import nearest_place


class RunningLimits:
    """The limits at percentiles of an SLO, of requests that come one after the other."""

    def __init__(self, slo: SloSpec) -> None:
        self._gaps = [limit for limit in slo.at_percentiles() if limit.latency == "itl"]
        self._kept = {limit: _Kept(limit) for limit in slo.at_percentiles() if limit.latency != "itl"}
        self._keys = [limit.key for limit in slo.at_percentiles()]

    def add(self, latencies: Latencies) -> None:
        """Take in requests that have left, or that the end of the run has cut off."""
        for kept in self._kept.values():
            kept.add(latencies)

    def so_far(self, itl: DurationHistogram | None) -> dict[str, AtPercentile]:
        """Each limit by its key, in their order; but of gaps between tokens, `itl`, where these are not known."""
        by_key = {limit.key: kept.so_far() for limit, kept in self._kept.items()}
        if itl is not None:
            by_key |= {limit.key: verdict(limit, itl.count, itl.percentile_s(limit.percent)) for limit in self._gaps}
        return {key: by_key[key] for key in self._keys if key in by_key}


class _Kept:
    """Of one limit: the latencies that are known, how many keep to it, and who was never served."""

    def __init__(self, limit: LimitAtPercentile) -> None:
        self._limit = limit
        self._known = DurationHistogram()
        self._within = self._unserved = 0

    def add(self, latencies: Latencies) -> None:
        latency, limit_s = latencies[self._limit.latency], self._limit.limit_s
        self._known.add(latency.known_fs)
        self._within += int((latency.known_s <= limit_s).sum())
        late = latencies.rejected | (latency.seconds > limit_s)
        self._unserved += int((late & latency.applies & ~latency.ended).sum())

    def so_far(self) -> AtPercentile:
        limit_s, n = self._limit.limit_s, self._known.count + self._unserved
        place = nearest_place(n, self._limit.percent)
        measured_s = self._known.ranked_s(place)
        if measured_s is not None:  # on the side of the limit on which the sample is
            kept = place < self._within
            measured_s = min(measured_s, limit_s) if kept else max(measured_s, float(np.nextafter(limit_s, np.inf)))
        return verdict(self._limit, n, measured_s)
