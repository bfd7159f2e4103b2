"""Arrival processes of the open loop: a renewal process in operational time, and a clock that maps it to seconds.

Gaps of mean 1 (all equal, exponential, Gamma) are summed to operational time; the inverse of the integrated rate
turns that into seconds. A moving rate is thus sampled exactly, without thinning (Cinlar 1975, inversion method).
Draws are consumed in order, so that more requests extend a series and never change its beginning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pimserve.arrays import FloatArray, IntArray
from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TIME_S, PS_PER_S, Spec

UnitGaps = Callable[[np.random.Generator, int], FloatArray]
Clock = Callable[[FloatArray], FloatArray]

_BLOCK = 1 << 16
_RatePoint = tuple[Annotated[float, Field(ge=0, le=MAX_TIME_S)], Annotated[float, Field(ge=0, le=1e9)]]
# Keys of each process; of a tuple exactly one is needed.
_KEYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "constant": (("rate_per_s",),),
    "poisson": (("rate_per_s",),),
    "gamma": (("rate_per_s",), ("burstiness", "cv")),
    "nhpp": (("rate_series",),),
    "trace": (),
}


class ArrivalSpec(Spec):
    """When requests arrive, independent of service (open loop)."""

    process: Literal["constant", "poisson", "gamma", "nhpp", "trace"] = Field(
        "poisson",
        description="constant: equal gaps, the first request at 0; poisson: exponential gaps; gamma: Gamma gaps; "
        "nhpp: Poisson with a moving rate; trace: the arrival times of the workload's trace",
    )
    rate_per_s: float | None = Field(None, gt=0, le=1e9, description="mean arrival rate, requests per second")
    burstiness: float | None = Field(
        None, ge=1e-4, le=1e6, description="shape of the Gamma gaps (as in vLLM): 1 is Poisson, lower is burstier"
    )
    cv: float | None = Field(
        None, ge=1e-3, le=100, description="coefficient of variation of the Gamma gaps = 1/sqrt(burstiness)"
    )
    rate_series: tuple[_RatePoint, ...] | None = Field(
        None,
        min_length=2,
        description="[[t_s, rate_per_s], ...]: piecewise linear, t_s from 0 up, two points at one time are a step; "
        "repeats after the last point. The simulated clock starts with the first arrival, of which the series may be "
        "ahead",
    )

    @model_validator(mode="after")
    def _keys_fit_process(self) -> Self:
        groups = _KEYS[self.process]
        takes = ", ".join(" or ".join(group) for group in groups) or "no other key"
        known = {key for group in groups for key in group}
        given = {key for key in ("rate_per_s", "burstiness", "cv", "rate_series") if getattr(self, key) is not None}
        if extra := sorted(given - known):
            raise ValueError(f"{', '.join(extra)} has no effect with process {self.process!r}, which takes {takes}")
        for group in groups:
            if len(given & set(group)) != 1:
                exactly = "exactly one of " if len(group) > 1 else ""
                raise ValueError(f"process {self.process!r} needs {exactly}{' and '.join(group)}")
        return self

    @model_validator(mode="after")
    def _series_is_a_rate(self) -> Self:
        if self.rate_series is None:
            return self
        times = [t for t, _ in self.rate_series]
        if times[0] or any(b < a for a, b in pairwise(times)):
            raise ValueError("rate_series must start at t_s = 0 and its t_s must increase from point to point")
        steps = [t for t, following in pairwise(times) if following == t]
        if len(set(steps)) < len(steps) or {times[0], times[-1]} & set(steps):
            raise ValueError("rate_series may have two points at one t_s (a step), neither more nor at either end")
        if not any(rate for _, rate in self.rate_series):  # a point lies beside a stretch of time
            raise ValueError("rate_series must have a rate above 0 for some time")
        return self


@dataclass(frozen=True)
class Stage:
    """Of a rate series, from one step to the next: its times in the series, and its mean rate."""

    from_s: float
    to_s: float
    rate_per_s: float


@dataclass(frozen=True)
class Stages:
    """The stages of a rate series, which repeats.

    The run's clock starts at `first_s` of the series, with the first request; `last_s` of it is when arrivals end.
    """

    stages: tuple[Stage, ...]
    first_s: float
    last_s: float

    @property
    def end_s(self) -> float:
        """When arrivals end, on the run's clock."""
        return self.last_s - self.first_s

    def at(self, times_s: FloatArray) -> IntArray:
        """(n,): in which stage those times of the run's clock lie."""
        ends = np.array([stage.to_s for stage in self.stages])
        return np.asarray(np.searchsorted(ends[:-1], np.mod(times_s + self.first_s, ends[-1]), side="right"))

    def times_s(self, begin_s: float, end_s: float) -> list[float]:
        """How much of a stretch of the run's clock each stage takes."""
        period = self.stages[-1].to_s

        def until(time: float, stage: Stage) -> float:
            cycles, within = divmod(max(0.0, time) + self.first_s, period)
            length = stage.to_s - stage.from_s
            return cycles * length + min(max(0.0, within - stage.from_s), length)

        return [max(0.0, until(end_s, stage) - until(begin_s, stage)) for stage in self.stages]


def stages_of(spec: ArrivalSpec, first_s: float, last_s: float) -> Stages | None:
    """The stages of a rate that steps, of arrivals from `first_s` to `last_s`; None of one that does not."""
    series = spec.rate_series or ()
    steps = [i for i, ((t, _), (u, _)) in enumerate(pairwise(series)) if t == u]
    if not steps:
        return None
    stages = []
    for first, last in pairwise([-1, *steps, len(series) - 1]):
        points = series[first + 1 : last + 1]
        area = sum((u - t) * (a + b) / 2 for (t, a), (u, b) in pairwise(points))
        stages.append(Stage(points[0][0], points[-1][0], area / (points[-1][0] - points[0][0])))
    return Stages(tuple(stages), first_s, last_s)


def _gamma(shape: float) -> UnitGaps:
    return lambda rng, n: rng.standard_gamma(shape, n) / shape


def _series_clock(points: tuple[tuple[float, float], ...]) -> Clock:
    """Inverse of the integral of a piecewise-linear rate, with steps, that repeats after its last point."""
    t, rate = np.array(points, dtype=np.float64).T
    # A step has neither a length nor an integral, so that no arrival falls on it.
    slope = np.divide(np.diff(rate), np.diff(t), out=np.zeros(len(t) - 1), where=np.diff(t) > 0)
    integral = np.concatenate(([0.0], np.cumsum(np.diff(t) * (rate[1:] + rate[:-1]) / 2)))

    def clock(operational: FloatArray) -> FloatArray:
        cycle, rest = np.divmod(operational, integral[-1])
        i = np.clip(np.searchsorted(integral, rest, side="right") - 1, 0, len(slope) - 1)
        left = rest - integral[i]
        # Root of rate*x + slope*x^2/2 = left, in the form that does not cancel and allows slope = 0.
        root = rate[i] + np.sqrt(np.maximum(rate[i] ** 2 + 2 * slope[i] * left, 0.0))
        x = np.divide(2 * left, root, out=np.zeros_like(left), where=root > 0)
        seconds: FloatArray = cycle * t[-1] + t[i] + x
        return seconds

    return clock


def _constant(spec: ArrivalSpec) -> tuple[UnitGaps, Clock]:
    return lambda _, n: np.ones(n), lambda s: (s - 1) / _rate(spec)


def _poisson(spec: ArrivalSpec) -> tuple[UnitGaps, Clock]:
    return lambda rng, n: rng.standard_exponential(n), lambda s: s / _rate(spec)


def _gamma_renewal(spec: ArrivalSpec) -> tuple[UnitGaps, Clock]:
    shape = spec.burstiness if spec.burstiness is not None else (spec.cv or 1.0) ** -2
    return _gamma(shape), lambda s: s / _rate(spec)


def _nhpp(spec: ArrivalSpec) -> tuple[UnitGaps, Clock]:
    return lambda rng, n: rng.standard_exponential(n), _series_clock(spec.rate_series or ())


def _rate(spec: ArrivalSpec) -> float:
    return spec.rate_per_s or 1.0


ARRIVAL_PROCESSES: dict[str, Callable[[ArrivalSpec], tuple[UnitGaps, Clock]]] = {
    "constant": _constant,
    "poisson": _poisson,
    "gamma": _gamma_renewal,
    "nhpp": _nhpp,
}
"""Name -> (gaps of mean 1, clock from operational time to seconds)."""


def arrival_times(
    spec: ArrivalSpec, rng: np.random.Generator, num_requests: int | None, duration_s: float | None
) -> IntArray:
    """Arrival times in ps, ascending: the first `num_requests`, or those before `duration_s`, whichever ends first.

    Raises InputError when the series would leave the simulated clock or exceed MAX_REQUESTS, or is empty.
    """
    gaps, clock = ARRIVAL_PROCESSES[spec.process](spec)
    limit = MAX_REQUESTS + 1 if num_requests is None else num_requests
    blocks: list[FloatArray] = []
    count, operational = 0, 0.0
    while count < limit:
        block = gaps(rng, min(_BLOCK, limit - count))
        block[0] += operational
        summed = np.cumsum(block)
        operational = float(summed[-1])
        blocks.append(clock(summed))
        count += len(block)
        if duration_s is not None and blocks[-1][-1] >= duration_s:
            break
        if blocks[-1][-1] > MAX_TIME_S:
            raise InputError("workload.arrival", f"arrivals reach beyond {MAX_TIME_S:g} s, where the clock ends")
    seconds = np.maximum.accumulate(np.concatenate(blocks))  # rounding at a knot must not turn time back
    if duration_s is not None:
        seconds = seconds[seconds < duration_s]
    if len(seconds) > MAX_REQUESTS:
        raise InputError("workload.duration_s", f"more than {MAX_REQUESTS} requests arrive; shorten it")
    if not len(seconds):
        raise InputError("workload.duration_s", f"no request arrives within {duration_s} s; lengthen it")
    arrival_ps: IntArray = np.rint(seconds * PS_PER_S).astype(np.int64)
    return arrival_ps
