"""How arrival rates move, and the clocks that follow: from operational time, in which the rate is 1, to seconds.

A clock is the inverse of the rate integrated from 0 on (Cinlar 1975, inversion method), so that a moving rate is
sampled exactly, without thinning.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pimserve.arrays import FloatArray
from pimserve.loadgen.elementary import cosine, log1p
from pimserve.loadgen.spec import MAX_TIME_S, Spec
from pimserve.quantity import PositiveSeconds, Quantity

Clock = Callable[[FloatArray], FloatArray]
Rate = Annotated[float, Field(ge=0, le=1e9)]
RatePoint = tuple[Annotated[float, Field(ge=0, le=MAX_TIME_S)], Rate]
Points = Sequence[tuple[float, float]]

_MOST_GROWTH = 1e6
_HALVINGS = 56  # of a period; the rest is a picosecond of a day


class StageSpec(Spec):
    """A stretch of time with one rate."""

    rate_per_s: Rate = Field(description="arrival rate, requests per second; 0 is a pause")
    duration_s: PositiveSeconds = Field(description="how long it lasts, s")


class RampSpec(Spec):
    """A rate that climbs or falls from one value to another, and stays there."""

    strategy: Literal["linear", "exponential"] = Field(
        "linear", description="linear: by the same difference every second; exponential: by the same factor"
    )
    start_rate_per_s: Rate = Field(description="rate at the start, requests per second")
    end_rate_per_s: Annotated[float, Field(gt=0, le=1e9)] = Field(description="rate at the end and after it")
    duration_s: PositiveSeconds = Field(description="how long the ramp is, s")

    @model_validator(mode="after")
    def _has_a_factor(self) -> Self:
        low, high = sorted((self.start_rate_per_s, self.end_rate_per_s))
        if self.strategy == "exponential" and high > _MOST_GROWTH * low:
            raise ValueError(f"strategy 'exponential' needs rates above 0, within a factor of {_MOST_GROWTH:g}")
        return self

    def clock(self) -> Clock:
        """From operational time to seconds."""
        start, end, length = self.start_rate_per_s, self.end_rate_per_s, self.duration_s
        if self.strategy == "linear" or start == end:
            return series_clock(((0.0, start), (length, end)), repeats=False)
        # The rate start * exp(growth * t) has the integral start / growth * (exp(growth * t) - 1).
        growth = float(log1p(np.array(end / start - 1))) / length
        area = (end - start) / growth

        def clock(operational: FloatArray) -> FloatArray:
            on_ramp = log1p(np.minimum(operational, area) * (growth / start)) / growth
            return on_ramp + np.maximum(operational - area, 0.0) / end

        return clock


class DiurnalSpec(Spec):
    """A rate that goes up and down: mean * (1 + amplitude * sin(2 pi * (t - phase_s) / period_s))."""

    period_s: PositiveSeconds = Field(86_400.0, description="length of a cycle, s")
    amplitude: float = Field(gt=0, le=1, description="share of the mean rate by which it goes up and down")
    phase_s: Annotated[float, Quantity("s", least=-MAX_TIME_S, most=MAX_TIME_S)] = Field(
        0.0, description="when the rate passes its mean on its way up, s; it peaks a quarter of a period later"
    )

    def clock(self, mean_rate_per_s: float) -> Clock:
        """From operational time to seconds; its integral has no closed inverse, and is halved down to it."""
        swing, phase = self.amplitude / (2 * np.pi), self.phase_s / self.period_s
        at_start = cosine(np.array(phase))

        def clock(operational: FloatArray) -> FloatArray:
            cycle, area = np.divmod(operational / (mean_rate_per_s * self.period_s), 1.0)
            low = np.zeros_like(area)
            for halving in range(1, _HALVINGS):
                middle = low + 0.5**halving
                before = middle - swing * (cosine(middle - phase) - at_start) <= area
                low = np.where(before, middle, low)
            return (cycle + low) * self.period_s

        return clock


def stage_points(stages: Sequence[StageSpec]) -> Points:
    """The rate series of stages: a step from each to the next."""
    ends = list(accumulate(stage.duration_s for stage in stages))
    return [
        point
        for begin, end, stage in zip([0.0, *ends], ends, stages, strict=False)
        for point in ((begin, stage.rate_per_s), (end, stage.rate_per_s))
    ]


def series_clock(points: Points, *, repeats: bool) -> Clock:
    """From operational time to seconds, of a piecewise-linear rate with steps.

    Args:
        points: (time, s; rate, requests per second), as in a rate series.
        repeats: whether the series begins again after its last point; else the last rate stays.
    """
    t, rate = np.array(points, dtype=np.float64).T
    # A step has neither a length nor an integral, so that no arrival falls on it.
    slope = np.divide(np.diff(rate), np.diff(t), out=np.zeros(len(t) - 1), where=np.diff(t) > 0)
    integral = np.concatenate(([0.0], np.cumsum(np.diff(t) * (rate[1:] + rate[:-1]) / 2)))
    if repeats:
        last, slope_at = len(slope) - 1, slope
    else:
        last, slope_at = len(slope), np.append(slope, 0.0)

    def clock(operational: FloatArray) -> FloatArray:
        cycle, rest = np.divmod(operational, integral[-1]) if repeats else (0.0, operational)
        i = np.clip(np.searchsorted(integral, rest, side="right") - 1, 0, last)
        left = rest - integral[i]
        # Root of rate*x + slope*x^2/2 = left, in the form that does not cancel and allows slope = 0.
        root = rate[i] + np.sqrt(np.maximum(rate[i] ** 2 + 2 * slope_at[i] * left, 0.0))
        x = np.divide(2 * left, root, out=np.zeros_like(left), where=root > 0)
        seconds: FloatArray = cycle * t[-1] + t[i] + x
        return seconds

    return clock
