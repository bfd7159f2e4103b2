"""A rate that moves, out of counts in bins; and the gaps that remain in the time in which that rate is 1."""

import math
from dataclasses import dataclass

import numpy as np

from pimserve.arrays import FloatArray, IntArray
from pimserve.loadgen.spec import PS_PER_S

_SIGMAS = 2  # of the dispersion of independent counts, which is sqrt(2 / (bins - 1)) of it


@dataclass(frozen=True, eq=False)
class RateFit:
    """A piecewise-linear rate: `times_s` (m,) from 0 to the span, `rates` (m,) requests/s, whose integral is n."""

    times_s: FloatArray
    rates: FloatArray

    @property
    def points(self) -> list[list[float]]:
        """As an arrival process takes them."""
        return [[float(f"{t:.9g}"), float(f"{rate:.5g}")] for t, rate in zip(self.times_s, self.rates, strict=True)]

    def operational(self, after_s: FloatArray) -> FloatArray:
        """Times (n,) from 0 to the span, in the time in which the rate is 1: the rate integrated."""
        lengths, steps = np.diff(self.times_s), np.diff(self.rates)
        areas = np.concatenate([[0.0], np.cumsum(lengths * (self.rates[1:] + self.rates[:-1]) / 2)])
        i = np.clip(np.searchsorted(self.times_s, after_s, side="right") - 1, 0, len(lengths) - 1)
        x = after_s - self.times_s[i]
        integral: FloatArray = areas[i] + self.rates[i] * x + steps[i] / lengths[i] * x * x / 2
        return integral


def fit_rate(times_ps: IntArray, bins: int, noise: float) -> RateFit | None:
    """The rate from bin to bin; None if a rate that stands still might have counts that vary as these do.

    Counts vary for two reasons: the rate moves, and gaps vary. The second is to come from the law of gaps when the
    workload is drawn, so that the rate keeps only the share of the variance that is its own.

    Args:
        times_ps: (n,) ascending.
        bins: equal parts of the span, two at least.
        noise: variance over mean of counts when the rate stands still: CV^2 of the gaps.
    """
    span_s = int(times_ps[-1] - times_ps[0]) / PS_PER_S
    counts = np.histogram((times_ps - times_ps[0]) / PS_PER_S, bins=bins, range=(0, span_s))[0]
    mean, dispersion = counts.mean(), float(counts.var() / counts.mean())
    if dispersion <= noise * (1 + _SIGMAS * math.sqrt(2 / (bins - 1))):
        return None
    own = 1 - noise / dispersion
    width_s = span_s / bins
    rates = np.maximum(mean + (counts - mean) * np.sqrt(own), 0.0) / width_s
    times_s = np.concatenate([[0.0], (np.arange(bins) + 0.5) * width_s, [span_s]])
    rates = np.concatenate([rates[:1], rates, rates[-1:]])
    area = float((np.diff(times_s) * (rates[1:] + rates[:-1]) / 2).sum())
    return RateFit(times_s, rates * (len(times_ps) / area))
