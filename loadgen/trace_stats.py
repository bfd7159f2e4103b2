"""What a trace is like: arrivals, lengths, sessions, and how much of its prompts a cache would have."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pimserve.loadgen.arrival_figures import ArrivalFigures, arrival_figures
from pimserve.loadgen.length_figures import LengthFigures, length_figures, rank_correlation
from pimserve.loadgen.session_figures import SessionFigures, session_figures
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.traces import Trace, TraceSpec, find_trace, format_of, load_trace
from pimserve.loadgen.traces.figure_documents import (
    arrival_document,
    capacity_document,
    length_document,
    prefix_document,
    rounded,
)
from pimserve.loadgen.traces.prefix_reuse import PrefixReuse, prefix_reuse
from pimserve.loadgen.traces.rows import Selection

CAPACITIES = (1000, 5000, 20000)
"""Blocks of caches for which hits are told."""
_TICK_PS = 100_000  # of the digits in which dates are shown


@dataclass(frozen=True, eq=False)
class TraceStats:
    """Figures of the rows of a trace that are used; `rank_correlation`: of input and output lengths (Spearman)."""

    trace: Trace
    arrivals: ArrivalFigures
    input: LengthFigures
    output: LengthFigures
    rank_correlation: float | None
    sessions: SessionFigures | None
    prefix: PrefixReuse | None

    @property
    def first(self) -> float | str:
        """When the first row used is by the trace's own clock: seconds, or a date."""
        return self._shown(self.trace.first_ps)

    @property
    def last(self) -> float | str:
        """The same of the last."""
        return self._shown(self.trace.first_ps + int(self.trace.arrival_ps[-1]))

    def _shown(self, time_ps: int) -> float | str:
        if not self.trace.dated:
            return rounded(time_ps / PS_PER_S) or 0.0
        second, rest_ps = divmod(time_ps, PS_PER_S)
        date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
        return f"{date:%Y-%m-%d %H:%M:%S}.{rest_ps // _TICK_PS:07d}"


def trace_stats(spec: TraceSpec) -> TraceStats:
    """Read a trace and look at it.

    Raises:
        InputError: it cannot be read, or no row is left.
    """
    trace = load_trace(spec)
    blocks, sessions = trace.blocks, trace.sessions
    return TraceStats(
        trace=trace,
        arrivals=arrival_figures(trace.arrival_ps),
        input=length_figures(trace.input_tokens),
        output=length_figures(trace.output_tokens),
        rank_correlation=rank_correlation(trace.input_tokens, trace.output_tokens),
        sessions=None if sessions is None else session_figures(sessions),
        prefix=None if blocks is None else prefix_reuse(blocks, trace.block_tokens, trace.input_tokens),
    )


def stats_document(spec: TraceSpec, capacities: Sequence[int] = CAPACITIES) -> dict[str, Any]:
    """The same as plain data; of a format that describes its files itself, what these say.

    Args:
        spec: which rows of which trace.
        capacities: of caches, in blocks, for which hits are told.

    Raises:
        InputError: the trace cannot be read, or no row is left.
    """
    form = format_of(spec)
    head = {"format": form.long_name or form.name}
    if form.describe is not None:
        selection = Selection(spec.start_s, spec.end_s, spec.max_requests)
        load_trace(spec)  # refuses what cannot be replayed
        return head | form.describe(find_trace(spec.path), selection)
    stats = trace_stats(spec)
    trace = stats.trace
    arrivals = arrival_document(trace.arrival_ps, stats.first, monotone=not trace.out_of_order)
    if trace.dated:
        arrivals["last"] = stats.last
    document = head | {
        "arrivals": arrivals,
        "input": length_document(trace.input_tokens),
        "output": length_document(trace.output_tokens),
    }
    if stats.sessions is not None:
        document["sessions"] = _session_document(stats.sessions)
    if stats.prefix is not None:
        document["prefix"] = prefix_document(stats.prefix)
        document["lru_token_hit_ratio"] = capacity_document(stats.prefix, capacities)
    return document


def _session_document(sessions: SessionFigures) -> dict[str, Any]:
    turns, think_s = sessions.turns, sessions.think_s or {}
    return {
        "sessions": turns.n,
        "turns_mean": rounded(turns.mean),
        "turns_p50": turns.percentiles[50],
        "longest_session": turns.max,
        "following_turns": sessions.following,
        "think_time_mean_s": rounded(sessions.think_mean_s),
        **{f"think_time_p{percent}_s": rounded(value) for percent, value in think_s.items()},
        "durations_known": sessions.durations_known,
    }
