"""Arrival processes of the open loop: a law of gaps in operational time, and a clock that maps it to seconds.

Gaps of mean 1 (`arrival_processes.py`) are summed to operational time; the inverse of the integrated rate
(`moving_rates.py`, `mmpp.py`) turns that into seconds. So any law of gaps goes with any rate that moves; burstiness is
that of operational time.
Draws are consumed in order, so that more requests extend a series and never change its beginning.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from pimserve.arrays import FloatArray, IntArray
from pimserve.errors import InputError, shortened
from pimserve.loadgen.arrival_processes import BUILT_IN_PROCESSES, KEYS, arrival_process, process_names
from pimserve.loadgen.mmpp import MmppSpec
from pimserve.loadgen.moving_rates import (
    Clock,
    DiurnalSpec,
    Points,
    RampSpec,
    RatePoint,
    StageSpec,
    series_clock,
    stage_points,
)
from pimserve.loadgen.rate_stages import Stages, stages_between_steps
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TIME_S, PS_PER_S, Spec
from pimserve.loadgen.streams import Streams

_BLOCK = 1 << 16
_TRACE = "trace"


def _list_processes(schema: dict[str, Any]) -> None:
    schema["enum"] = [*process_names(), _TRACE]


class ArrivalSpec(Spec):
    """When requests arrive, independent of service (open loop)."""

    process: str = Field(
        "poisson",
        description="constant: equal gaps, the first request at 0; poisson: exponential gaps; gamma, weibull: Gamma or "
        "Weibull gaps; mmpp: Poisson, of a rate that jumps at random; nhpp: Poisson with a moving rate; trace: the "
        "arrival times of the workload's trace. Gaps are those at a rate of 1: where it moves, time is stretched. "
        "Packages add processes (entry point `pimserve.arrivals`)",
        json_schema_extra=_list_processes,
    )
    rate_per_s: float | None = Field(None, gt=0, le=1e9, description="mean arrival rate, requests per second")
    burstiness: float | None = Field(
        None, ge=1e-4, le=1e6, description="shape of the Gamma gaps (as in vLLM): 1 is Poisson, lower is burstier"
    )
    shape: float | None = Field(
        None, ge=0.1, le=2000, description="shape of the Weibull gaps: 1 is Poisson, lower is burstier"
    )
    cv: float | None = Field(
        None,
        ge=1e-3,
        le=100,
        description="coefficient of variation of the Gamma gaps = 1/sqrt(burstiness), or of the Weibull gaps",
    )
    rate_series: tuple[RatePoint, ...] | None = Field(
        None,
        min_length=2,
        description="[[t_s, rate_per_s], ...]: piecewise linear, t_s from 0 up, two points at one time are a step; "
        "repeats after the last point. The simulated clock starts with the first arrival, of which the series may be "
        "ahead",
    )
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="stretches of time with rates of their own, one after the other; arrivals end with the last"
    )
    ramp: RampSpec | None = Field(None, description="a rate that climbs or falls, and stays where it ends")
    diurnal: DiurnalSpec | None = Field(None, description="with rate_per_s, which is then the mean of a cycle")
    mmpp: MmppSpec | None = Field(None, description="states of process mmpp, with their rates")
    normalize_duration: bool = Field(
        False,
        description="stretch all gaps so that the n-th request comes at n/rate_per_s, as vLLM's benchmark does; counts "
        "then vary less than the process would have them",
    )

    @field_validator("process")
    @classmethod
    def _is_known(cls, process: str) -> str:
        if process in {*BUILT_IN_PROCESSES, _TRACE}:
            return process
        if process not in (known := process_names()):
            raise ValueError(f"must be one of {', '.join(known)}, {_TRACE} (got {shortened(repr(process))})")
        try:
            arrival_process(process)
        except InputError as error:  # the place is known where the whole document is
            raise ValueError(error.message) from None
        return process

    @model_validator(mode="after")
    def _keys_fit_process(self) -> Self:
        groups = () if self.process == _TRACE else arrival_process(self.process).keys
        takes = ", ".join(" or ".join(group) for group in groups) or "no other key"
        known = {key for group in groups for key in group}
        given = {key for key in KEYS if getattr(self, key) is not None}
        if extra := sorted(given - known):
            raise ValueError(f"{', '.join(extra)} has no effect with process {self.process!r}, which takes {takes}")
        for group in groups:
            if len(given & set(group)) != 1:
                exactly = f"exactly one of {', '.join(group[:-1])} and " if len(group) > 1 else ""
                raise ValueError(f"process {self.process!r} needs {exactly}{group[-1]}")
        return self

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.diurnal is not None and self.rate_per_s is None:
            raise ValueError("diurnal goes with rate_per_s, the mean rate of a cycle")
        if self.process == "nhpp" and self.rate_per_s is not None and self.diurnal is None:
            raise ValueError("rate_per_s has no effect with process 'nhpp' unless diurnal moves it: use 'poisson'")
        if self.normalize_duration and (self.process == "constant" or self.rate_per_s is None or self.diurnal):
            raise ValueError("normalize_duration goes with gaps that vary around a rate_per_s that does not")
        if (self.ends_s or 0) > MAX_TIME_S:
            raise ValueError(f"stages must end before {MAX_TIME_S:g} s, where the clock ends")
        if self.stages is not None and not any(stage.rate_per_s for stage in self.stages):
            raise ValueError("stages must have a rate above 0 for some time")
        return self

    @model_validator(mode="after")
    def _series_is_a_rate(self) -> Self:
        if self.rate_series is None:
            return self
        times = [t for t, _ in self.rate_series]
        if times[0] or any(b < a for a, b in pairwise(times)):
            raise ValueError(
                "rate_series must start at t_s = 0 and its t_s must not decrease (two points at one time are a step)"
            )
        steps = [t for t, following in pairwise(times) if following == t]
        if len(set(steps)) < len(steps) or {times[0], times[-1]} & set(steps):
            raise ValueError("rate_series may have two points at one t_s (a step), neither more nor at either end")
        if not any(rate for _, rate in self.rate_series):  # a point lies beside a stretch of time
            raise ValueError("rate_series must have a rate above 0 for some time")
        return self

    @property
    def ends_s(self) -> float | None:
        """When arrivals end by themselves; None: never."""
        return None if self.stages is None else self.points[-1][0]

    @property
    def points(self) -> Points:
        """The rate as a series of points (time, s; requests per second); empty where it is none."""
        return self.rate_series or stage_points(self.stages or ())


def stages_of(spec: ArrivalSpec, first_s: float, last_s: float) -> Stages | None:
    """The stages of a rate that steps, of arrivals from `first_s` to `last_s`; None of one that does not."""
    return stages_between_steps(spec.points, first_s, last_s)


def arrival_times(spec: ArrivalSpec, streams: Streams, num_requests: int | None, duration_s: float | None) -> IntArray:
    """Arrival times in ps, ascending: the first `num_requests`, or those before `duration_s`, whichever ends first.

    Raises InputError when the series would leave the simulated clock or exceed MAX_REQUESTS, or is empty.
    """
    clock = clock_of(spec, streams)
    limit = MAX_REQUESTS + 1 if num_requests is None else num_requests
    end_s = min((end for end in (duration_s, spec.ends_s) if end is not None), default=None)
    stretch = 1.0
    if spec.normalize_duration:
        for block in _operational(spec, streams, limit):
            stretch = limit / float(block[-1])
    blocks: list[FloatArray] = []
    for block in _operational(spec, streams, limit):
        blocks.append(clock(block * stretch))
        if end_s is not None and blocks[-1][-1] >= end_s:
            break
        if blocks[-1][-1] > MAX_TIME_S:
            raise InputError("workload.arrival", f"arrivals reach beyond {MAX_TIME_S:g} s, where the clock ends")
    seconds = np.maximum.accumulate(np.concatenate(blocks))  # rounding at a knot must not turn time back
    if end_s is not None:
        seconds = seconds[seconds < end_s]
    if len(seconds) > MAX_REQUESTS:
        raise InputError(_ending(spec, duration_s), f"more than {MAX_REQUESTS} requests arrive; shorten it")
    if not len(seconds):
        raise InputError(_ending(spec, duration_s), f"no request arrives within {end_s} s; lengthen it")
    arrival_ps: IntArray = np.rint(seconds * PS_PER_S).astype(np.int64)
    return arrival_ps


def _ending(spec: ArrivalSpec, duration_s: float | None) -> str:
    """The key that ends arrivals first."""
    by_stages = spec.ends_s is not None and (duration_s is None or spec.ends_s <= duration_s)
    return "workload.arrival.stages" if by_stages else "workload.duration_s"


def _operational(spec: ArrivalSpec, streams: Streams, most: int) -> Iterator[FloatArray]:
    """Operational times of the first `most` arrivals, in blocks."""
    gaps, rng = arrival_process(spec.process).gaps(spec), streams.rng("arrivals")
    operational = -1.0 if spec.process == "constant" else 0.0
    for done in range(0, most, _BLOCK):
        block = gaps(rng, min(_BLOCK, most - done))
        block[0] += operational
        summed = np.cumsum(block)
        operational = float(summed[-1])
        yield summed


def clock_of(spec: ArrivalSpec, streams: Streams) -> Clock:
    """The clock of an arrival process: from operational time, which must ascend from call to call, to seconds."""
    if spec.mmpp is not None:
        return spec.mmpp.clock(streams.rng("arrival states"))
    if spec.ramp is not None:
        return spec.ramp.clock()
    if spec.points:
        return series_clock(spec.points, repeats=spec.stages is None)
    rate = spec.rate_per_s or 1.0
    return spec.diurnal.clock(rate) if spec.diurnal is not None else lambda operational: operational / rate
