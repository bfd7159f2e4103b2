"""Distributions of samples: mean, nearest-rank percentiles and count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.interval_sections import HalfWidths
from pimserve.scheduler.latencies import Latency
from pimserve.scheduler.latency_sections import Distribution, OfRequests
from pimserve.scheduler.percentiles import PERCENTILES, nearest_place, percentile_name, short_of_samples


def percentile(ordered: NDArray[np.float64], percent: float) -> float:
    """Nearest-rank percentile of an ascending array of one element or more."""
    return float(ordered[nearest_place(len(ordered), percent)])


def distribution(values: NDArray[np.float64], percentiles: Sequence[float] = PERCENTILES) -> Distribution:
    """Of exact samples.

    Args:
        values: (n,).
        percentiles: that are asked for, in per cent.
    """
    ordered = np.sort(values)
    n = len(ordered)
    mean = float(ordered.mean()) if n else None
    return _distribution(mean, n, percentiles, lambda percent: percentile(ordered, percent) if n else None)


def of_requests(latency: Latency, percentiles: Sequence[float] = PERCENTILES) -> OfRequests:
    """Over the requests whose latency is known, and how many more there would be without the run's end."""
    known = distribution(latency.known_s, percentiles)
    return OfRequests(**known.set_parts(), censored=int(latency.censored.sum()))


def of_histogram(histogram: DurationHistogram, percentiles: Sequence[float] = PERCENTILES) -> Distribution:
    """Of the samples of a histogram."""
    return _distribution(histogram.mean_s(), histogram.count, percentiles, histogram.percentile_s)


def half_widths(
    mean: float | None, percentiles: Sequence[float], of_percentile: Callable[[float], float | None]
) -> HalfWidths:
    """Half the widths of the intervals of a distribution that has these percentiles."""
    return HalfWidths(mean=mean, **_by_name(percentiles, of_percentile))


def _distribution(
    mean: float | None, n: int, percentiles: Sequence[float], at: Callable[[float], float | None]
) -> Distribution:
    fields = _by_name(percentiles, at)
    if few := short_of_samples(n, sorted({*PERCENTILES, *percentiles})):
        fields["few_samples"] = few
    return Distribution(mean=mean, n=n, **fields)


def _by_name(percentiles: Sequence[float], at: Callable[[float], float | None]) -> dict[str, Any]:
    """Fields of a section: the percentiles that all have, and the map of others that are asked for."""
    fields: dict[str, Any] = {percentile_name(percent): at(percent) for percent in PERCENTILES}
    if tuple(percentiles) != PERCENTILES:
        fields["percentiles"] = {percentile_name(percent): at(percent) for percent in percentiles}
    return fields
