"""Figures of arrival times: rate, gaps, and how much counts vary at each scale of time."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pimserve.arrays import IntArray
from pimserve.loadgen.spec import PS_PER_S

WIDTHS_S = (1, 10, 60)
"""Widths of bins for which dispersion is told, s."""


@dataclass(frozen=True)
class ArrivalFigures:
    """Of n arrivals; None where there are too few of them, or all come at once.

    `rate_per_s`: gaps by span. `gap_cv`: standard deviation (of the population) over mean. `gap_zero_fraction`: of gaps
    between arrivals at one time. `dispersion`: by width of the bins (s), as `dispersion` has it.
    """

    n: int
    span_s: float
    rate_per_s: float | None
    gap_mean_s: float | None
    gap_cv: float | None
    gap_max_s: float | None
    gap_zero_fraction: float | None
    dispersion: Mapping[int, float | None]


def arrival_figures(times_ps: IntArray) -> ArrivalFigures:
    """Figures of arrivals, (n,) ascending times, one at least."""
    gaps_ps = np.diff(times_ps)
    span_ps = int(times_ps[-1] - times_ps[0])
    there = len(gaps_ps) > 0
    return ArrivalFigures(
        n=len(times_ps),
        span_s=span_ps / PS_PER_S,
        rate_per_s=len(gaps_ps) * PS_PER_S / span_ps if span_ps else None,
        gap_mean_s=span_ps / len(gaps_ps) / PS_PER_S if there else None,
        gap_cv=float(gaps_ps.std() / gaps_ps.mean()) if span_ps else None,
        gap_max_s=int(gaps_ps.max()) / PS_PER_S if there else None,
        gap_zero_fraction=float((gaps_ps == 0).mean()) if there else None,
        dispersion={width_s: dispersion(times_ps, width_s) for width_s in WIDTHS_S},
    )


def bin_counts(times_ps: IntArray, width_s: float) -> IntArray:
    """Arrivals in each bin of that width that lies wholly within the span, the first from the first arrival on.

    Bins have their beginning, the last one also its end (as numpy's histogram has it).
    """
    after_ps, width_ps = times_ps - times_ps[0], round(width_s * PS_PER_S)
    whole = int(after_ps[-1] // width_ps)
    inside = after_ps[: np.searchsorted(after_ps, whole * width_ps, side="right")]
    counts: IntArray = np.bincount(np.minimum(inside // width_ps, max(whole - 1, 0)), minlength=whole)[:whole]
    return counts


def dispersion(times_ps: IntArray, width_s: float) -> float | None:
    """Index of dispersion: variance over mean of the counts in bins; 1 of a Poisson process at any width.

    None where no bin is whole.
    """
    counts = bin_counts(times_ps, width_s)
    return float(counts.var() / counts.mean()) if counts.any() else None
