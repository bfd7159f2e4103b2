"""Metrics of parts of the requests: those that arrived in each stage of a rate that steps, and those of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.cluster.metrics.run_metrics import RunMetrics
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.latencies import Latencies
from pimserve.scheduler.outcomes import ALL, MET, MISSED, Outcomes
from pimserve.scheduler.requests import FINISHED, REJECTED, Columns

_LATENCIES = {
    "ttft": "time_to_first_token_seconds",
    "tpot": "time_per_output_token_seconds",
    "e2e": "e2e_request_latency_seconds",
    "queue": "request_queue_time_seconds",
}


class PartMetrics:
    """Counts requests by the part to which they belong.

    Args:
        metrics: to fill.
        part: of what the parts are, as names of families have it: stage or class.
        part_of: of requests, by their numbers (n,): the number of their part (n,), from 0; -1: of none.
    """

    def __init__(
        self, metrics: RunMetrics, part: str, part_of: Callable[[Columns, NDArray[np.int64]], IntArray]
    ) -> None:
        self._metrics = metrics
        self._family = f"pimserve_{part}"
        self._part_of = part_of

    def add(
        self, columns: Columns, requests: NDArray[np.int64], latencies: Latencies, outcomes: dict[str, Outcomes]
    ) -> None:
        """Take in measured requests, by their numbers, that have left, or that the end of the run has cut off."""
        part = self._part_of(columns, requests)
        has_one = part >= 0
        self._count("requests_total", part, columns["status"][requests], (FINISHED, REJECTED))
        if outcomes:
            self._count("slo_requests_total", part, outcomes[ALL], (MET, MISSED))
        for name, family in _LATENCIES.items():
            latency = latencies[name]
            counted = latency.known & has_one
            self._metrics.observe(f"{self._family}_{family}", part[counted], latency.seconds[counted])

    def _count(self, name: str, part: IntArray, values: NDArray[Any], of: tuple[int, ...]) -> None:
        """Add how often each of these values is there, by part."""
        counts = self._metrics.values[f"{self._family}_{name}"]
        for place, value in enumerate(of):
            mine = part[(values == value) & (part >= 0)]
            counts[place :: len(of)] += np.bincount(mine, minlength=len(counts) // len(of))


def part_metrics(metrics: RunMetrics) -> Iterator[PartMetrics]:
    """Of all parts that have series in a run."""
    stages, names = metrics.layout.stages, metrics.layout.classes
    if stages is not None:
        yield PartMetrics(metrics, "stage", lambda columns, rows: stages.at(columns["arrival_ps"][rows] / PS_PER_S))
    if names:
        yield PartMetrics(metrics, "class", lambda columns, rows: columns["class_id"][rows].astype(np.int64) - 1)
