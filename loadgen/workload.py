"""The load of a run: what the user asks for (`WorkloadSpec`), and the requests that follow from it (`Workload`)."""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pimserve.arrays import IntArray
from pimserve.errors import InputError
from pimserve.loadgen.arrivals import ArrivalSpec, Stages, arrival_times, stages_of
from pimserve.loadgen.lengths import LengthsSpec
from pimserve.loadgen.presets import AZURE_CONV_2023_ARRIVAL, AZURE_CONV_2023_LENGTHS
from pimserve.loadgen.spec import MAX_REQUESTS, PS_PER_S, Spec
from pimserve.loadgen.traces import Trace, TraceSpec, load_trace, parse_trace_argument, slow_warning, ticks_warning
from pimserve.quantity import PositiveSeconds

__all__ = ["ArrivalSpec", "LengthsSpec", "TraceSpec", "Workload", "WorkloadSpec", "generate", "parse_trace_argument"]

DEFAULT_PRESET = "azure-conv-2023"
DEFAULT_REQUESTS = 2000
# Order is part of the seeding: append, never insert.
_STREAMS = ("arrivals", "input lengths", "output lengths", "stagger")


class WorkloadSpec(Spec):
    """Which requests arrive, when, and how long they are.

    Arrival times come from `arrival`, else from `trace`, else from the preset; lengths from `lengths`, else from
    `trace`, else from the preset. A part that would not be used is an error.
    """

    preset: Literal["azure-conv-2023"] | None = Field(
        None,
        description="embedded workload that supplies what `arrival` and `lengths` do not; the default without a trace; "
        "azure-conv-2023 has the published rate and length statistics of the Azure LLM 2023 conversation trace",
    )
    mode: Literal["open", "closed"] = Field(
        "open",
        description="open: arrivals do not wait for service; closed: `concurrency` requests are always in flight",
    )
    num_requests: int | None = Field(
        None,
        ge=1,
        le=MAX_REQUESTS,
        description=f"stop after this many requests (default: {DEFAULT_REQUESTS}, or all rows of a trace)",
    )
    duration_s: PositiveSeconds | None = Field(
        None, description="only requests that arrive before this time, s (open mode)"
    )
    arrival: ArrivalSpec | None = Field(None, description="arrival process (open mode)")
    lengths: LengthsSpec | None = Field(None, description="laws of input and output lengths")
    trace: TraceSpec | None = Field(None, description="recorded trace to replay")
    concurrency: int | None = Field(None, ge=1, le=MAX_REQUESTS, description="requests in flight (closed mode)")
    stagger: bool = Field(
        False,
        description="closed mode: the first `concurrency` requests start midway (e of their output tokens, e uniform "
        "in 0..output-1, count as input), so that the loop starts near its steady state",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_preset(cls, data: object) -> object:
        if not isinstance(data, dict) or data.get("preset") is not None or data.get("trace") is not None:
            return data
        no_times = data.get("arrival") is None and data.get("mode") != "closed"
        if no_times or data.get("lengths") is None:
            return {**data, "preset": DEFAULT_PRESET}
        return data

    @model_validator(mode="after")
    def _mode_fits(self) -> Self:
        if self.mode == "open":
            for key, given in (("concurrency", self.concurrency is not None), ("stagger", self.stagger)):
                if given:
                    raise ValueError(f"{key} has no effect with mode 'open'; leave it out or set mode: closed")
            return self
        if self.concurrency is None:
            raise ValueError("mode 'closed' needs concurrency (requests in flight, at least 1)")
        if self.num_requests is not None and self.num_requests < self.concurrency:
            raise ValueError(f"num_requests ({self.num_requests}) must be at least concurrency ({self.concurrency})")
        for key in ("arrival", "duration_s"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} has no effect with mode 'closed', which ends after num_requests")
        return self

    @model_validator(mode="after")
    def _sources_fit(self) -> Self:
        synthetic = self.arrival is not None and self.arrival.process != "trace"
        times_from_trace = _replays_times(self)
        if self.arrival is not None and self.arrival.process == "trace" and self.trace is None:
            raise ValueError("arrival.process 'trace' needs trace (format and path)")
        if self.trace is not None:
            if self.preset is not None:
                raise ValueError("preset has no effect beside trace; leave one of them out")
            if not times_from_trace and self.lengths is not None:
                raise ValueError("trace has no effect here: neither its arrival times nor its lengths are used")
            for key in ("time_scale", "target_rate_per_s"):
                if getattr(self.trace, key) is not None and not times_from_trace:
                    raise ValueError(f"trace.{key} has no effect: only the lengths of the trace are used")
        elif self.preset is not None and self.lengths is not None and (synthetic or self.mode == "closed"):
            raise ValueError("preset has no effect when everything that it supplies is given; leave it out")
        return self


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival; all arrays have one entry per request.

    `arrival_ps`: picoseconds of simulated time, ascending from 0 (all zeros in closed mode): the clock starts with the
    first request, so that no figure counts time before there was one. `input_tokens`, `output_tokens`: >= 1.
    `concurrency`: closed mode only. `offered_rate_per_s`: mean rate of the arrivals, (n - 1) / (last - first); None in
    closed mode or when undefined. `rows_read`: rows of the trace; `rows_dropped`: those not used, by reason.
    `warnings`: what is in the trace and not in the requests, or in the requests and perhaps not in what was recorded.
    `stages`: of a rate that steps.
    """

    arrival_ps: IntArray
    input_tokens: IntArray
    output_tokens: IntArray
    concurrency: int | None
    offered_rate_per_s: float | None
    description: str
    rows_read: int
    rows_dropped: dict[str, int]
    warnings: tuple[str, ...] = ()
    stages: Stages | None = None


def generate(spec: WorkloadSpec, seed: int) -> Workload:
    """Make the requests of `spec`; the same spec and seed give the same bytes.

    Each knob has its own random stream, so that a change of one leaves the draws of the others alone.
    Raises InputError for an unusable trace, an empty workload, or a seed below 0.
    """
    if seed < 0:
        raise InputError("seed", f"is {seed}; a whole number >= 0 is needed")
    rng = {name: np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,))) for i, name in enumerate(_STREAMS)}
    trace = load_trace(spec.trace) if spec.trace is not None else None
    arrival = _arrivals(spec, trace, rng["arrivals"])
    n = len(arrival)
    dropped = dict(trace.rows_dropped) if trace else {}
    if trace and n < len(trace.arrival_ps):
        dropped["beyond num_requests or duration_s"] = len(trace.arrival_ps) - n
    if trace and spec.lengths is None:
        inputs, outputs = np.resize(trace.input_tokens, n), np.resize(trace.output_tokens, n)
    else:
        lengths = spec.lengths or AZURE_CONV_2023_LENGTHS
        inputs = lengths.input.sample(rng["input lengths"], n)
        outputs = lengths.output.sample(rng["output lengths"], n)
    staggered = spec.concurrency or 0 if spec.stagger else 0
    if staggered:
        done = np.floor(rng["stagger"].random(staggered) * outputs[:staggered]).astype(np.int64)
        inputs[:staggered] += done
        outputs[:staggered] -= done
    span = int(arrival[-1] - arrival[0])
    return Workload(
        arrival_ps=arrival - arrival[0],
        input_tokens=inputs,
        output_tokens=outputs,
        concurrency=spec.concurrency,
        offered_rate_per_s=(n - 1) * PS_PER_S / span if span else None,
        description=_describe(spec, n),
        rows_read=trace.rows_read if trace else 0,
        rows_dropped=dropped,
        warnings=_warnings(spec, trace, arrival),
        stages=_stages(spec, arrival),
    )


def _stages(spec: WorkloadSpec, arrival: IntArray) -> Stages | None:
    if spec.arrival is None:
        return None
    first_s, last_s = int(arrival[0]) / PS_PER_S, int(arrival[-1]) / PS_PER_S
    cut = spec.duration_s is None or len(arrival) == spec.num_requests  # by the number of requests
    return stages_of(spec.arrival, first_s, last_s if cut else spec.duration_s or last_s)


def _replays_times(spec: WorkloadSpec) -> bool:
    return spec.mode == "open" and (spec.arrival is None or spec.arrival.process == "trace")


def _warnings(spec: WorkloadSpec, trace: Trace | None, arrival: IntArray) -> tuple[str, ...]:
    if trace is None:
        return ()
    if spec.trace is None or not _replays_times(spec):
        return trace.warnings
    return (*trace.warnings, *ticks_warning(arrival), *slow_warning(spec.trace, arrival))


def _arrivals(spec: WorkloadSpec, trace: Trace | None, rng: np.random.Generator) -> IntArray:
    rows = len(trace.arrival_ps) if trace else None
    if spec.mode == "closed":
        n = spec.num_requests or rows or max(DEFAULT_REQUESTS, spec.concurrency or 1)
        if n < (spec.concurrency or 1):
            raise InputError(
                "workload.concurrency", f"is {spec.concurrency}, but the trace has {n} requests; set num_requests"
            )
        return np.zeros(n, dtype=np.int64)
    if trace and _replays_times(spec):
        return _replayed(spec, trace.arrival_ps)
    n_default = None if spec.duration_s is not None else rows or DEFAULT_REQUESTS
    arrival = spec.arrival or AZURE_CONV_2023_ARRIVAL
    return arrival_times(arrival, rng, spec.num_requests or n_default, spec.duration_s)


def _replayed(spec: WorkloadSpec, times: IntArray) -> IntArray:
    if spec.num_requests is not None and spec.num_requests > len(times):
        raise InputError(
            "workload.num_requests", f"is {spec.num_requests}, but the selected trace has {len(times)} requests"
        )
    times = times[: spec.num_requests]
    if spec.duration_s is not None:
        times = times[times < spec.duration_s * PS_PER_S]
    return times


def _describe(spec: WorkloadSpec, n: int) -> str:
    parts = [f"{n} requests"]
    if spec.mode == "closed":
        parts.append(f"closed loop of {spec.concurrency}{', staggered' if spec.stagger else ''}")
    elif spec.arrival is not None:
        rate = f" {spec.arrival.rate_per_s:g}/s" if spec.arrival.rate_per_s else ""
        parts.append(f"{spec.arrival.process} arrivals{rate}")
    if spec.lengths is not None:
        parts.append(f"{spec.lengths.input.kind} input, {spec.lengths.output.kind} output")
    if spec.trace is not None:
        parts.append(f"{spec.trace.format} trace {spec.trace.path}")
    if spec.preset is not None:
        parts.append(f"preset {spec.preset}")
    return "; ".join(parts)
