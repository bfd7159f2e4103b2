"""How near latencies come to their limit while a run goes on, as an autoscaler that goes by the SLO sees it."""

from __future__ import annotations

from typing import Any

from pimserve.arrays import IntArray
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.loadgen.slo import LimitAtPercentile
from pimserve.scheduler.latencies import Latencies
from pimserve.scheduler.percentiles import nearest_place
from pimserve.scheduler.requests import FINISHED, RequestTable

SLO_LATENCIES = {"ttft": "first_token_ps", "tpot": "finish_ps", "e2e": "finish_ps"}  # and when they are known


class SloMetric:
    """A percentile of a latency over its limit, of requests of which it became known since it was asked last.

    Args:
        limit: at a percentile of one of `SLO_LATENCIES`.
        frontend_ps: time of a request in front of the scheduler.
    """

    def __init__(self, limit: LimitAtPercentile, frontend_ps: int) -> None:
        self._limit = limit
        self._frontend_ps = frontend_ps
        self._samples: list[tuple[int, int]] = []  # (when it is known, ps; latency, fs)

    def heard(self, table: RequestTable, began: IntArray, left: IntArray) -> None:
        """These requests have their first token, and those have left, at times that may be ahead."""
        name = self._limit.latency
        requests = began if name == "ttft" else left[table["status"][left] == FINISHED]
        latency = Latencies(table.columns, requests, frontend_ps=self._frontend_ps, end_ps=0)[name]
        known_ps = table[SLO_LATENCIES[name]][requests][latency.known]
        self._samples += zip(known_ps.tolist(), latency.known_fs.tolist(), strict=True)

    def over_limit(self, now_fs: int) -> float | None:
        """The percentile (nearest rank) over its limit, of what was not known when it was asked last; None: nobody."""
        now_ps = now_fs // FS_PER_PS
        known = sorted(latency for at_ps, latency in self._samples if at_ps <= now_ps)
        self._samples = [sample for sample in self._samples if sample[0] > now_ps]
        if not known:
            return None
        place = nearest_place(len(known), self._limit.percent)
        return known[place] / (self._limit.limit_s * FS_PER_S)

    def state(self) -> list[tuple[int, int]]:
        """What is known, as JSON can hold it."""
        return self._samples

    def restore(self, state: list[Any]) -> None:
        """Go on from `state`."""
        self._samples = [(at_ps, latency) for at_ps, latency in state]
