"""Distributions of samples: mean, nearest-rank percentiles and count."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pimserve.scheduler.batch_means import nearest_place
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.latencies import Latency
from pimserve.scheduler.summary_sections import Distribution, OfRequests

PERCENTILES = (50, 90, 99)


def percentile(ordered: NDArray[np.float64], percent: float) -> float:
    """Nearest-rank percentile of an ascending array of one element or more."""
    return float(ordered[nearest_place(len(ordered), percent)])


def distribution(values: NDArray[np.float64]) -> Distribution:
    """Of exact samples."""
    ordered = np.sort(values)
    n = len(ordered)
    p50, p90, p99 = (percentile(ordered, percent) if n else None for percent in PERCENTILES)
    return Distribution(mean=float(ordered.mean()) if n else None, p50=p50, p90=p90, p99=p99, n=n)


def of_requests(latency: Latency) -> OfRequests:
    """Over the requests whose latency is known, and how many more there would be without the run's end."""
    return OfRequests(**dict(distribution(latency.known_s)), censored=int(latency.censored.sum()))


def of_histograms(histograms: Iterable[DurationHistogram]) -> Distribution:
    """Of all samples of some histograms."""
    merged = DurationHistogram.merged(histograms)
    p50, p90, p99 = (merged.percentile_s(percent) for percent in PERCENTILES)
    return Distribution(mean=merged.mean_s(), p50=p50, p90=p90, p99=p99, n=merged.count)
