"""Runs as Prometheus' client library collects them, which writes them in any of its formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pimserve.cluster.metrics.families import MERGED_ABOVE
from pimserve.cluster.metrics.family import Family
from pimserve.cluster.metrics.run_metrics import RunMetrics

_MERGED = (
    f" Merged: engine=all holds all engines of a role, as there are more than {MERGED_ABOVE};"
    " --metrics-per-engine keeps them apart."
)


class RunCollector(Collector):
    """Collects runs as they are when it is asked.

    Args:
        families: in their order; those without samples are left out.
        runs: gives the metrics of all runs, with these families; called once for each scrape.
    """

    def __init__(self, families: Sequence[Family], runs: Callable[[], Iterable[RunMetrics]]) -> None:
        self._families = families
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        """The families, one after the other, all of them of one moment of each run."""
        runs = list(self._runs())
        merged = any(run.layout.merged for run in runs)
        for family in self._families:
            metric = _empty(family, merged=merged)
            for run in runs:
                for series in range(len(run.layout.keys[family.name])):
                    _add(metric, run, family.name, series)
            if metric.samples:
                yield metric


def registry(families: Sequence[Family], runs: Callable[[], Iterable[RunMetrics]]) -> CollectorRegistry:
    """A registry of these runs alone: nothing of the process that exposes them."""
    private = CollectorRegistry()
    private.register(RunCollector(families, runs))
    return private


def _empty(family: Family, *, merged: bool) -> Metric:
    """A family without samples; `merged`: some of those to come are of merged histograms, as its help says."""
    if family.kind == "counter":
        return CounterMetricFamily(family.name, family.help, labels=family.labels)
    if family.kind == "gauge":
        return GaugeMetricFamily(family.name, family.help, labels=family.labels)
    if family.kind == "info":
        return InfoMetricFamily(family.name.removesuffix("_info"), family.help, labels=family.labels)
    return HistogramMetricFamily(family.name, family.help + _MERGED * merged, labels=family.labels)


def _add(metric: Metric, run: RunMetrics, name: str, series: int) -> None:
    """Add what a series, by its number in the family of that name, has in a run, unless that is not a number."""
    labels = run.layout.keys[name][series]
    if isinstance(metric, HistogramMetricFamily):
        cumulative = run.counts[name][series].cumsum().tolist()
        buckets = list(zip(run.layout.edges[name], cumulative, strict=True))
        metric.add_metric(labels, buckets, run.sums[name][series])
    elif isinstance(metric, InfoMetricFamily):
        metric.add_metric(labels, {})
    elif isinstance(metric, CounterMetricFamily | GaugeMetricFamily):
        value = run.values[name][series]
        if not math.isnan(value):
            metric.add_metric(labels, value)
