"""A trace as one picture: arrivals over time, gaps, dispersion by scale, lengths, prefix hits by size of the cache."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.base.files import output_file
from pimserve.cluster.report.axes import nothing, per_cent, plain, thousands
from pimserve.errors import InputError
from pimserve.loadgen.arrival_figures import dispersion
from pimserve.loadgen.spec import PS_PER_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pimserve.loadgen.trace_stats import TraceStats

KINDS = (".png", ".svg")
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d06a1c", "#8a8a8a"
_BINS = 120  # of time
_WIDTHS = 40  # for which dispersion is drawn
_MOST_BINS = 2_000_000
_FEWEST_BINS = 10  # of which a dispersion says something
_PALEST = 0.2  # requests that would be white, so that a single one is not
_PAIR = 2**31  # more than tokens of a request
_TICKS = 6  # of a logarithmic axis
_LEAST_GAP = 1e-4  # that is shown, of the mean
_MOST_POINTS = 20_000  # of a curve
_STYLE: Any = {
    "svg.hashsalt": "pimserve",
    "text.parse_math": False,
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}


def check_picture(out: Path) -> None:
    """Raises InputError unless it ends as a picture that can be drawn does."""
    if out.suffix.lower() not in KINDS:
        raise InputError(str(out), f"must end in {' or '.join(KINDS)}")


def write_trace_picture(out: Path, title: str, stats: TraceStats) -> None:
    """Draw a trace into a file, PNG or SVG by its ending; one that is there is replaced. The same trace, the same file.

    Raises:
        InputError: it has another ending, or cannot be written.
    """
    check_picture(out)
    kind = out.suffix.lower()
    import matplotlib as mpl  # noqa: PLC0415 slow
    from matplotlib.figure import Figure  # noqa: PLC0415

    drawn = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 6.4), dpi=110, layout="constrained")
        draw_trace(figure, title, stats)
        figure.savefig(drawn, format=kind[1:], metadata={"Date": None} if kind == ".svg" else {"Software": None})
    with output_file(out, encoding=None) as file:
        file.write(drawn.getvalue())


def draw_trace(figure: Figure, title: str, stats: TraceStats) -> None:
    """Put a trace on an empty figure, a panel for each thing that there is to see."""
    panels: list[Callable[[Axes, TraceStats], None]] = [_arrivals, _gaps, _dispersions, _pairs, _lengths]
    if stats.prefix is not None and len(stats.prefix.capacities):
        panels.append(_hits)
    figure.suptitle(f"{title}: {stats.arrivals.n:,} requests in {stats.arrivals.span_s:,.0f} s", fontsize=11)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(2, 3, place)
        panel(axes, stats)
        axes.title.set_fontsize(9.5)


def _arrivals(axes: Axes, stats: TraceStats) -> None:
    axes.set(title="arrivals", xlabel="time since the first, s", ylabel="requests/s")
    span_s = stats.arrivals.span_s
    if not span_s:
        return
    width_s = span_s / _BINS
    counts, edges = np.histogram(stats.trace.arrival_ps / PS_PER_S, bins=_BINS, range=(0, span_s))
    axes.stairs(counts / width_s, edges, color=_BLUE, fill=True, alpha=0.35)
    axes.stairs(counts / width_s, edges, color=_BLUE, linewidth=0.8)
    axes.axhline(len(stats.trace.arrival_ps) / span_s, color=_GREY, linestyle="--", linewidth=1, label="mean")
    axes.set(xlim=(0, span_s), ylim=(0, None))
    axes.legend(loc="best")


def _gaps(axes: Axes, stats: TraceStats) -> None:
    axes.set(title="gaps between arrivals", xlabel="gap, s", ylabel="share of gaps no longer", xscale="log")
    mean_s = stats.arrivals.gap_mean_s
    if not mean_s:
        return
    gaps_ps = np.diff(stats.trace.arrival_ps)
    gaps_ps.sort()
    least_s, most_s = (gaps_ps[place] / PS_PER_S for place in (np.searchsorted(gaps_ps, 0, side="right"), -1))
    low_s = min(max(least_s, mean_s * _LEAST_GAP), mean_s / 100)
    x = np.geomspace(low_s, max(most_s, 5 * mean_s), 2000)
    share = np.searchsorted(gaps_ps, (x * PS_PER_S).astype(np.int64), side="right") / len(gaps_ps)
    axes.plot(x, share, color=_BLUE, label="trace")
    axes.plot(x, -np.expm1(-x / mean_s), color=_ORANGE, linestyle="--", label="exponential, same mean")
    _logarithmic(axes.xaxis, plain)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(per_cent)
    axes.legend(loc="lower right")


def _dispersions(axes: Axes, stats: TraceStats) -> None:
    axes.set(title="dispersion of counts", xlabel="width of bins, s", ylabel="variance / mean")
    span_s, mean_s = stats.arrivals.span_s, stats.arrivals.gap_mean_s
    if not mean_s or span_s / _FEWEST_BINS <= mean_s / 10:
        return
    widths_s = np.geomspace(max(mean_s / 10, span_s / _MOST_BINS), span_s / _FEWEST_BINS, _WIDTHS)
    values = [dispersion(stats.trace.arrival_ps, width_s) for width_s in widths_s]
    known = [(width, value) for width, value in zip(widths_s, values, strict=True) if value]
    axes.loglog(*zip(*known, strict=True), color=_BLUE, marker="o", markersize=2.5, linewidth=1, label="trace")
    axes.axhline(1, color=_ORANGE, linestyle="--", linewidth=1, label="Poisson")
    low, high = min(value for _, value in known), max(value for _, value in known)
    axes.set_ylim(min(0.5, low / 1.3), max(2.0, high * 1.3))
    _logarithmic(axes.xaxis, plain)
    _logarithmic(axes.yaxis, plain)
    axes.legend(loc="best")


def _pairs(axes: Axes, stats: TraceStats) -> None:
    correlation = "" if stats.rank_correlation is None else f", rank correlation {stats.rank_correlation:.2f}"
    axes.set(title=f"lengths{correlation}", xlabel="input, tokens", ylabel="output, tokens")
    from matplotlib.colors import LogNorm  # noqa: PLC0415 slow

    inputs, outputs, requests = _distinct_pairs(stats.trace.input_tokens, stats.trace.output_tokens)
    axes.hexbin(
        inputs,
        outputs,
        C=requests,
        reduce_C_function=np.sum,
        xscale="log",
        yscale="log",
        gridsize=36,
        norm=LogNorm(vmin=_PALEST),
        mincnt=1,
        cmap="Blues",
    )
    _logarithmic(axes.xaxis, thousands)
    _logarithmic(axes.yaxis, thousands)


def _distinct_pairs(inputs: IntArray, outputs: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Lengths of requests, each pair once, and how many have it, as a picture makes many arrays of what it is given."""
    pairs = inputs * _PAIR + outputs
    pairs.sort()
    begins = np.flatnonzero(np.diff(pairs, prepend=-1))
    return pairs[begins] // _PAIR, pairs[begins] % _PAIR, np.diff(begins, append=len(pairs))


def _lengths(axes: Axes, stats: TraceStats) -> None:
    axes.set(title="lengths", xlabel="tokens", ylabel="share of requests no longer", xscale="log")
    for name, tokens, colour in (
        ("input", stats.trace.input_tokens, _BLUE),
        ("output", stats.trace.output_tokens, _ORANGE),
    ):
        ordered = np.sort(tokens)
        shown = _thinned(np.arange(len(ordered)))
        axes.plot(ordered[shown], (shown + 1) / len(ordered), drawstyle="steps-post", color=colour, label=name)
    _logarithmic(axes.xaxis, thousands)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(per_cent)
    axes.legend(loc="lower right")


def _hits(axes: Axes, stats: TraceStats) -> None:
    prefix = stats.prefix
    assert prefix is not None
    title = f"prefix hits, blocks of {prefix.block_tokens} tokens"
    axes.set(title=title, xlabel="blocks in an LRU cache", ylabel="share of prompt tokens", xscale="log")
    shown = _thinned(np.arange(len(prefix.capacities)))
    share = prefix.tokens[shown] / prefix.total_tokens
    axes.plot(prefix.capacities[shown], share, drawstyle="steps-post", color=_BLUE, label="LRU")
    axes.axhline(prefix.token_hit_ratio, color=_GREY, linestyle="--", linewidth=1, label="room for all")
    axes.set_ylim(0, None)
    _logarithmic(axes.xaxis, thousands)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.legend(loc="best")


def _logarithmic(axis: Any, label: Callable[[float, object], str]) -> None:  # noqa: ANN401 of matplotlib
    """Names for the decades of an axis, and for them only, not all where there are many."""
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    axis.set_major_locator(LogLocator(numticks=_TICKS))
    axis.set_major_formatter(label)
    axis.set_minor_formatter(nothing)


def _thinned(places: Any) -> Any:  # noqa: ANN401 arrays of numpy
    """Some of them, evenly, the last too."""
    if len(places) <= _MOST_POINTS:
        return places
    return places[np.unique(np.linspace(0, len(places) - 1, _MOST_POINTS).astype(np.int64))]
