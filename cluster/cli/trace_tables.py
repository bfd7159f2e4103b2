"""What a trace is like, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import table as rich
from rich.console import Group, RenderableType
from rich.text import Text

from pimserve.cluster.base.figures import ABSENT, count, figure, scaled, share, whole
from pimserve.cluster.cli.terminal import headed_table, plain_table, warning
from pimserve.loadgen.arrival_figures import ArrivalFigures
from pimserve.loadgen.length_figures import PERCENTILES
from pimserve.loadgen.session_figures import SessionFigures
from pimserve.loadgen.trace_stats import TraceStats
from pimserve.loadgen.traces import Trace, ticks_warning, together_warning
from pimserve.loadgen.traces.prefix_reuse import PrefixReuse

_FEW = 1000  # requests below which a 99th percentile is a handful of them


def stats_page(name: str, stats: TraceStats, capacities: Sequence[int]) -> RenderableType:
    """All figures of a trace; `capacities`: blocks of caches for which prefix hits are told."""
    trace = stats.trace
    parts: list[RenderableType] = [Text(f"{name}: {trace.format}, {_rows(trace)}", style="bold"), "", _arrivals(stats)]
    parts += ["", _lengths(stats)]
    if stats.sessions is not None:
        parts += ["", _sessions(stats.sessions)]
    if stats.prefix is not None:
        parts += ["", _prefixes(stats.prefix, capacities)]
    notes = [*trace.warnings, *ticks_warning(trace.arrival_ps), *together_warning(trace)]
    if stats.arrivals.n < _FEW:
        notes.append(f"p99 of {stats.arrivals.n:,} requests hangs on a few of them")
    parts += [""] * bool(notes) + [warning(f"warning: {note}") for note in notes]
    return Group(*parts)


def _rows(trace: Trace) -> str:
    used = len(trace.arrival_ps)
    dropped = "".join(f", {number:,} {reason}" for reason, number in trace.rows_dropped.items())
    return f"{used:,} requests of {trace.rows_read:,} rows read{dropped}"


def labelled(rows: Sequence[tuple[str, str, str]]) -> rich.Table:
    """Figures with their names and units."""
    drawn = plain_table(header=False)
    drawn.add_column("", no_wrap=True)
    drawn.add_column("", justify="right", no_wrap=True)
    drawn.add_column("")
    for row in rows:
        drawn.add_row(*map(Text, row))
    return drawn


def _arrivals(stats: TraceStats) -> RenderableType:
    arrivals: ArrivalFigures = stats.arrivals
    first = stats.first if isinstance(stats.first, str) else f"{stats.first:,.6f}".rstrip("0").rstrip(".") + " s"
    dispersions = [
        (f"index of dispersion, {width} s", figure(value), "variance / mean of counts; Poisson: 1")
        for width, value in arrivals.dispersion.items()
    ]
    return labelled(
        [
            ("first arrival", first, "on its own clock"),
            ("span", f"{arrivals.span_s:,.6g}", "s"),
            ("rate", figure(arrivals.rate_per_s), "requests/s"),
            ("gap, mean", scaled(arrivals.gap_mean_s, "s"), ""),
            ("gap, largest", scaled(arrivals.gap_max_s, "s"), ""),
            ("gap, CV", figure(arrivals.gap_cv), "standard deviation / mean; Poisson: 1"),
            ("gaps of zero", share(arrivals.gap_zero_fraction), ""),
            *dispersions,
        ]
    )


def _lengths(stats: TraceStats) -> RenderableType:
    both = (stats.input, stats.output)
    drawn = headed_table("tokens", "input", "output")
    drawn.add_row(*map(Text, ("n", *(count(lengths.n) for lengths in both))))
    drawn.add_row(*map(Text, ("mean", *(figure(lengths.mean) for lengths in both))))
    drawn.add_row(*map(Text, ("min", *(count(lengths.min) for lengths in both))))
    for percent in PERCENTILES:
        values = (whole(round(lengths.percentiles[percent], 1)) for lengths in both)
        drawn.add_row(*map(Text, (f"p{percent}", *values)))
    drawn.add_row(*map(Text, ("max", *(count(lengths.max) for lengths in both))))
    correlation = figure(stats.rank_correlation)
    return Group(drawn, Text(f"rank correlation of input and output (Spearman): {correlation}"))


def _sessions(sessions: SessionFigures) -> RenderableType:
    turns, think_s = sessions.turns, sessions.think_s or {}
    shown = ", ".join(f"p{percent} {scaled(value, 's')}" for percent, value in think_s.items())
    following = f"of {sessions.following:,} turns" if shown else ""
    return labelled(
        [
            ("sessions", count(turns.n), f"of {turns.sum:,} requests"),
            ("turns of a session, mean", figure(turns.mean), f"p50 {turns.percentiles[50]:g}, most {turns.max:,}"),
            ("think time, mean", scaled(sessions.think_mean_s, "s"), following),
            ("think time", shown or ABSENT, ""),
            ("durations recorded", count(sessions.durations_known), "of the requests"),
        ]
    )


def _prefixes(prefix: PrefixReuse, capacities: Sequence[int]) -> RenderableType:
    facts = labelled(
        [
            ("prompts in blocks of", count(prefix.block_tokens), "tokens"),
            ("blocks", count(prefix.total_blocks), f"{prefix.unique_blocks:,} different ones"),
            ("requests with a prefix hit", count(prefix.requests_with_hit), "with room for all blocks"),
        ]
    )
    hits = headed_table("blocks in an LRU cache", "prompt tokens hit")
    for blocks in capacities:
        hits.add_row(*map(Text, (count(blocks), share(prefix.hit_ratio(blocks)))))
    hits.add_row(*map(Text, ("room for all", share(prefix.token_hit_ratio))))
    return Group(facts, "", hits)
