"""Exposes any number of runs to Prometheus, as a collector of the official client library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from pimserve.cluster.metrics.families import FAMILIES, Family
from pimserve.cluster.metrics.state import RunMetrics


class RunCollector(Collector):
    """Families of all runs that `runs` gives, each scrape of one moment of each run.

    Args:
        runs: gives their metrics.
    """

    def __init__(self, runs: Callable[[], Sequence[RunMetrics]]) -> None:
        self._runs = runs

    def describe(self) -> Iterable[Metric]:
        """Nothing: families come and go with runs."""
        return []

    def collect(self) -> Iterable[Metric]:
        """All families that have series."""
        runs = self._runs()
        for family in FAMILIES:
            metric = metric_of(family)
            for run in runs:
                metric.samples += samples_of(family, run)
            if metric.samples:
                yield metric


def metric_of(family: Family) -> Metric:
    """The family without samples."""
    if family.kind == "counter":
        return CounterMetricFamily(family.name, family.help, labels=family.labels)
    if family.kind == "gauge":
        return GaugeMetricFamily(family.name, family.help, labels=family.labels)
    if family.kind == "info":
        return InfoMetricFamily(family.name.removesuffix("_info"), family.help, labels=family.labels)
    return HistogramMetricFamily(family.name, family.help, labels=family.labels)


def samples_of(family: Family, run: RunMetrics, timestamp: float | None = None) -> list[Sample]:
    """Samples of a run.

    Args:
        family: of which.
        run: the run.
        timestamp: of all of them, s since 1970; None for now, as scrapes want it.
    """
    labels = run.layout.labels[family.name]
    if family.kind != "histogram":
        values = run.values[family.name].tolist()
        return [Sample(family.name, each, value, timestamp) for each, value in zip(labels, values, strict=True)]
    found = []
    rows = zip(labels, run.counts[family.name].tolist(), run.sums[family.name].tolist(), strict=True)
    edges = run.layout.edges[family.name]
    for each, counts, total in rows:
        for edge, count in zip(edges, accumulate(counts), strict=True):
            found.append(Sample(f"{family.name}_bucket", {**each, "le": edge}, count, timestamp))
        found.append(Sample(f"{family.name}_count", each, sum(counts), timestamp))
        found.append(Sample(f"{family.name}_sum", each, total, timestamp))
    return found
