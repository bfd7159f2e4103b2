"""The requests of a run (`Workload`), as they follow from what the user asks for (`WorkloadSpec`)."""

import math
from dataclasses import dataclass

import numpy as np

from pimserve.arrays import IntArray
from pimserve.errors import InputError
from pimserve.loadgen.arrivals import ArrivalSpec, arrival_times, stages_of
from pimserve.loadgen.length_pairs import LengthsSpec
from pimserve.loadgen.prefix import Prompts
from pimserve.loadgen.prefix_blocks import PrefixBlocks, PromptPrefixes, TracePrefixes
from pimserve.loadgen.presets import AZURE_CONV_2023_ARRIVAL, AZURE_CONV_2023_LENGTHS
from pimserve.loadgen.rate_stages import Stages
from pimserve.loadgen.request_classes import (
    ClassIds,
    ClassSpec,
    Rows,
    all_have_lengths,
    class_ids,
    declared_tokens,
    describe,
    trace_tokens,
    with_own_lengths,
)
from pimserve.loadgen.session_starts import RecordedSessions, begun_at
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.streams import Streams
from pimserve.loadgen.think_times import think_times
from pimserve.loadgen.traces import (
    Trace,
    TraceSpec,
    load_trace,
    parse_trace_argument,
    slow_warning,
    ticks_warning,
    together_warning,
)
from pimserve.loadgen.turns import NOT_YET_PS, Turns, by_arrival
from pimserve.loadgen.workload_spec import DEFAULT_REQUESTS, WorkloadSpec

__all__ = ["ArrivalSpec", "LengthsSpec", "TraceSpec", "Workload", "WorkloadSpec", "generate", "parse_trace_argument"]

_NO_SESSIONS = "sessions of the trace are not replayed: its lengths alone are used"


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival; all arrays have one entry per request.

    `arrival_ps`: picoseconds of simulated time, ascending from 0 (all zeros in closed mode): the clock starts with the
    first request, so that no figure counts time before there was one. `input_tokens`, `output_tokens`: >= 1.
    `concurrency`: closed mode only. `offered_rate_per_s`: mean rate of the arrivals, (n - 1) / (last - first); None in
    closed mode or when undefined. `rows_read`: rows of the trace; `rows_dropped`: those not used, by reason.
    `warnings`: what is in the trace and not in the requests, or in the requests and perhaps not in what was recorded.
    `stages`: of a rate that steps. `prefixes`: what they begin with, in blocks for a prefix cache; None where nothing
    is known to be shared. `turns`: which requests wait for others to end; those with parents are behind all others, and
    their arrival is `NOT_YET_PS`. `think_ps`: in closed mode, before each request but the first ones.
    `max_concurrency`: requests in flight at most, in open mode. `max_active_sessions`: sessions of `turns` that are
    active at most, each of which has one request without parents; `starts_planned`: these arrive at their times, and
    else whenever a session may begin.
    `classes`: of requests, if any; `class_ids`: the class of each, by its number in these from 1 up.
    `max_tokens`: most tokens of its output that each declares, 0 of those that do not; None: none does.
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
    prefixes: PrefixBlocks | None = None
    turns: Turns | None = None
    think_ps: IntArray | None = None
    max_concurrency: int | None = None
    max_active_sessions: int | None = None
    starts_planned: bool = True
    classes: tuple[ClassSpec, ...] = ()
    class_ids: ClassIds | None = None
    max_tokens: IntArray | None = None

    @property
    def closed(self) -> bool:
        """Whether nobody arrives at a time of its own."""
        return self.concurrency is not None or not self.starts_planned


def generate(spec: WorkloadSpec, seed: int) -> Workload:
    """Make the requests of `spec`; the same spec and seed give the same bytes.

    Each knob has its own random stream, so that a change of one leaves the draws of the others alone.
    Raises InputError for an unusable trace, an empty workload, or a seed below 0.
    """
    if seed < 0:
        raise InputError("seed", f"is {seed}; a whole number >= 0 is needed")
    streams = Streams(seed)
    classes = spec.classes or ()
    trace = _trace(spec, streams)
    arrival = _arrivals(spec, trace, streams)
    turns = None if spec.sessions is None else spec.sessions.sample(streams, len(arrival))
    first, n = len(arrival), len(arrival) if turns is None else len(turns)
    dropped = dict(trace.rows_dropped) if trace else {}
    if trace and first < len(trace.arrival_ps) and not (spec.lengths and spec.lengths.from_trace):
        dropped["beyond num_requests or duration_s"] = len(trace.arrival_ps) - first
    inputs, outputs, prompts = _lengths(spec, trace, streams, arrival, n)
    order = None
    if (recorded := _recorded_turns(spec, trace, n)) is not None:
        order, turns = recorded
        first = n - int(turns.followers.sum())
        arrival = arrival[order[:first]]
        if spec.lengths is None:
            inputs, outputs = inputs[order], outputs[order]
    ids = class_ids(classes, Rows(n, turns, trace.labels if trace else None, order), streams) if classes else None
    if ids is not None:
        inputs, outputs = with_own_lengths(classes, ids, (inputs, outputs), streams, spec.prefix)
    prefixes = _prefixes(spec, trace, prompts, inputs, order, ids)
    think = spec.think_time_s
    declared, emitted = declared_tokens(spec.max_tokens, classes, ids, outputs)
    done = _done(spec, streams, emitted)
    inputs, outputs = inputs + done, outputs - done
    if spec.sessions is not None and turns is not None:
        contexts = spec.sessions.contexts(turns, inputs, emitted)
        inputs = spec.sessions.prompts(contexts)
        prefixes = prefixes or spec.sessions.prefixes(turns, contexts, emitted)
    span = int(arrival[-1] - arrival[0]) if turns is None else 0
    return Workload(
        arrival_ps=np.concatenate([arrival - arrival[0], np.full(n - first, NOT_YET_PS)]),
        input_tokens=inputs,
        output_tokens=outputs,
        concurrency=spec.concurrency,
        offered_rate_per_s=(n - 1) * PS_PER_S / span if span else None,
        description=_describe(spec, trace, n),
        rows_read=trace.rows_read if trace else 0,
        rows_dropped=dropped,
        warnings=_warnings(spec, trace, arrival),
        stages=_stages(spec, arrival),
        prefixes=prefixes,
        turns=turns,
        think_ps=None if think is None else think_times(think, streams.rng("think times"), n),
        max_concurrency=spec.max_concurrency,
        max_active_sessions=None if spec.sessions is None else spec.sessions.max_active,
        starts_planned=not spec.closed_sessions,
        classes=classes,
        class_ids=ids,
        max_tokens=None if declared is None else np.maximum(declared - done, 0),
    )


def _trace(spec: WorkloadSpec, streams: Streams) -> Trace | None:
    """The trace, if there is one, with sessions that begin when `arrival` says."""
    if spec.trace is None:
        return None
    trace = load_trace(spec.trace, streams, labels=any(each.labels for each in spec.classes or ()))
    if trace.turns is None or not _begins_sessions(spec, trace):
        return trace
    sessions = RecordedSessions.of(trace.turns)
    return begun_at(trace, trace.turns, sessions, _starts(spec, sessions, streams), spec.num_requests)


def _places(spec: WorkloadSpec, arrival: IntArray, n: int) -> IntArray:
    """(n,): the number of each request among those that arrive in its stage; of all, where there are no stages."""
    places = np.arange(n)
    stages = _stages(spec, arrival)
    if stages is None or len(arrival) < n:  # turns of sessions are sent when others have ended
        return places
    stage = stages.at((arrival - arrival[0]) / PS_PER_S)
    begins = np.flatnonzero(np.diff(stage, prepend=stage[0] - 1))
    return np.asarray(places - np.repeat(begins, np.diff(begins, append=n)))


def _lengths(
    spec: WorkloadSpec, trace: Trace | None, streams: Streams, arrival: IntArray, n: int
) -> tuple[IntArray, IntArray, Prompts | None]:
    """Input and output lengths, and which prompts the inputs are."""
    if trace and spec.lengths is None:
        return np.resize(trace.input_tokens, n), np.resize(trace.output_tokens, n), None
    lengths, prefix = spec.lengths or AZURE_CONV_2023_LENGTHS, spec.prefix
    if prefix is None:
        return *lengths.sample(streams, n, trace, None), None
    prompts = prefix.sample(streams, _places(spec, arrival, n))
    again = prompts.prompt if prefix.prompts_per_group is not None else None
    own, outputs = prefix.lengths(lengths).sample(streams, n, trace, again)
    return prefix.system_tokens + prefix.shared_tokens + own, outputs, prompts


def _done(spec: WorkloadSpec, streams: Streams, outputs: IntArray) -> IntArray:
    """(n,) tokens of outputs that are there already, as the first requests may start midway."""
    done = np.zeros_like(outputs)
    if not spec.stagger:
        return done
    first = outputs[: spec.concurrency]
    done[: len(first)] = np.floor(streams.rng("stagger").random(len(first)) * first)
    return done


def _prefixes(
    spec: WorkloadSpec,
    trace: Trace | None,
    prompts: Prompts | None,
    inputs: IntArray,
    order: IntArray | None,
    ids: ClassIds | None,
) -> PrefixBlocks | None:
    """What prompts begin with that do not gather what sessions say: such inputs, before `stagger` adds outputs to them.

    Those of a trace are known while requests are its rows, each at most once.
    """
    if prompts is not None:
        return PromptPrefixes(prompts, inputs)
    if trace is None or trace.blocks is None or spec.lengths is not None or all_have_lengths(spec.classes):
        return None
    if spec.sessions is not None or len(inputs) > len(trace.blocks):
        return None
    rows = np.arange(len(inputs)) if order is None else order
    tokens = inputs if ids is None else trace_tokens(spec.classes or (), ids, inputs)
    return TracePrefixes(trace.blocks.take(rows), trace.block_tokens, tokens)


def stages_ahead(spec: WorkloadSpec, seed: int) -> Stages | None:
    """The stages of a workload of which nothing but the first arrival is drawn: they end when it says so, or never."""
    if spec.arrival is None or stages_of(spec.arrival, 0.0, math.inf) is None:
        return None
    first = arrival_times(spec.arrival, Streams(seed), 1, spec.duration_s)
    return stages_of(spec.arrival, int(first[0]) / PS_PER_S, _ends_s(spec.arrival, spec.duration_s, math.inf))


def _stages(spec: WorkloadSpec, arrival: IntArray) -> Stages | None:
    if spec.arrival is None:
        return None
    first_s, last_s = int(arrival[0]) / PS_PER_S, int(arrival[-1]) / PS_PER_S
    last_s += 4 * math.ulp(last_s)  # behind the last one, whatever becomes of times in floating point
    cut_off = len(arrival) == spec.num_requests
    return stages_of(spec.arrival, first_s, last_s if cut_off else _ends_s(spec.arrival, spec.duration_s, last_s))


def _ends_s(arrival: ArrivalSpec, duration_s: float | None, otherwise_s: float) -> float:
    return min((end for end in (duration_s, arrival.ends_s) if end is not None), default=otherwise_s)


def _in_turns(spec: WorkloadSpec, trace: Trace) -> bool:
    """Whether requests wait for each other as those of the trace did."""
    return _begins_sessions(spec, trace) or (trace.turns is not None and spec.sessions is None and spec.replays_times)


def _begins_sessions(spec: WorkloadSpec, trace: Trace) -> bool:
    """Whether `arrival` says when sessions of the trace begin, which are else as they were recorded."""
    synthetic = spec.mode == "open" and not spec.replays_times
    return synthetic and trace.turns is not None and spec.sessions is None and spec.lengths is None


def _starts(spec: WorkloadSpec, sessions: RecordedSessions, streams: Streams) -> IntArray:
    """When recorded sessions begin, ps."""
    arrival = spec.arrival or AZURE_CONV_2023_ARRIVAL
    count = len(sessions) if spec.duration_s is None and arrival.ends_s is None else None
    if spec.num_requests is not None:
        count = sessions.with_requests(spec.num_requests)
    return arrival_times(arrival, streams, count, spec.duration_s)


def _recorded_turns(spec: WorkloadSpec, trace: Trace | None, n: int) -> tuple[IntArray, Turns] | None:
    """Turns of the first `n` requests of a trace that is replayed, and the order that the workload has of these."""
    if trace is None or trace.turns is None or not _in_turns(spec, trace):
        return None
    if spec.max_concurrency is not None:
        message = "is of requests that come on their own; leave it out, or set workload.trace.timing to absolute"
        raise InputError("workload.max_concurrency", message)
    turns = trace.turns.taken(np.arange(n))
    order = by_arrival(trace.arrival_ps[:n], turns)
    return order, turns.taken(order)


def _warnings(spec: WorkloadSpec, trace: Trace | None, arrival: IntArray) -> tuple[str, ...]:
    if trace is None or spec.trace is None:
        return ()
    said = trace.warnings
    if not spec.replays_times:
        return said if trace.turns is None or _in_turns(spec, trace) else (*said, _NO_SESSIONS)
    said = (*said, *together_warning(trace))
    if _in_turns(spec, trace):
        return said
    return (*said, *ticks_warning(arrival), *slow_warning(spec.trace, trace, arrival))


def _arrivals(spec: WorkloadSpec, trace: Trace | None, streams: Streams) -> IntArray:
    rows = len(trace.arrival_ps) if trace else None
    if spec.mode == "closed":
        n = spec.num_requests or rows or max(DEFAULT_REQUESTS, spec.concurrency or 1)
        if n < (spec.concurrency or 1):
            raise InputError(
                "workload.concurrency", f"is {spec.concurrency}, but the trace has {n} requests; set num_requests"
            )
        return np.zeros(n, dtype=np.int64)
    if spec.sessions is not None and spec.closed_sessions:
        return np.zeros(spec.sessions.num_sessions, dtype=np.int64)
    if trace and _begins_sessions(spec, trace):
        return trace.arrival_ps
    if trace and spec.replays_times:
        return _replayed(spec, trace.arrival_ps)
    arrival = spec.arrival or AZURE_CONV_2023_ARRIVAL
    if spec.sessions is not None:
        return arrival_times(arrival, streams, spec.sessions.num_sessions, spec.duration_s)
    n_default = rows or DEFAULT_REQUESTS if spec.duration_s is None and arrival.ends_s is None else None
    return arrival_times(arrival, streams, spec.num_requests or n_default, spec.duration_s)


def _replayed(spec: WorkloadSpec, times: IntArray) -> IntArray:
    if spec.num_requests is not None and spec.num_requests > len(times):
        raise InputError(
            "workload.num_requests", f"is {spec.num_requests}, but the selected trace has {len(times)} requests"
        )
    times = times[: spec.num_requests if spec.sessions is None else spec.sessions.num_sessions]
    if spec.duration_s is not None:
        times = times[times < spec.duration_s * PS_PER_S]
    return times


def _describe(spec: WorkloadSpec, trace: Trace | None, n: int) -> str:
    parts = [f"{n} requests"]
    if spec.mode == "closed":
        parts.append(f"closed loop of {spec.concurrency}{', staggered' if spec.stagger else ''}")
        if spec.think_time_s is not None:
            parts.append("users that think")
    elif spec.arrival is not None:
        rate = f" {spec.arrival.rate_per_s:g}/s" if spec.arrival.rate_per_s else ""
        parts.append(f"{spec.arrival.process} arrivals{rate}")
    if spec.sessions is not None:
        parts.append(spec.sessions.describe())
    if spec.max_concurrency is not None:
        parts.append(f"at most {spec.max_concurrency} in flight")
    if spec.lengths is not None:
        parts.append(spec.lengths.describe())
    if spec.prefix is not None:
        parts.append(spec.prefix.describe())
    if spec.classes is not None:
        parts.append(describe(spec.classes))
    if spec.trace is not None and trace is not None:
        parts.append(f"{trace.format} trace {spec.trace.path}")
        if _in_turns(spec, trace):
            parts.append(f"turns of recorded sessions, {spec.trace.timing}")
    if spec.preset is not None:
        parts.append(f"preset {spec.preset}")
    return "; ".join(parts)
