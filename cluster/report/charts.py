"""Curves over time, distributions and bars, drawn on a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pimserve.arrays import FloatArray
from pimserve.cluster.base.figures import scaled
from pimserve.cluster.report.axes import Draw, few_ticks, legend, per_cent, seconds, seconds_axis, style, thousands
from pimserve.cluster.report.series import Binned, cdf
from pimserve.cluster.report.svg import COLOURS, DASHES, GRID, MARKERS, PAPER, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FEW = 1e-9


@dataclass(frozen=True)
class Line:
    """A curve. Args: label: in the legend; x, y: (n,); low, high: (n,) borders of a band around it; steps: whether y
    holds over bins, of which x has the edges.
    """

    label: str
    x: FloatArray
    y: FloatArray
    low: FloatArray | None = None
    high: FloatArray | None = None
    steps: bool = False

    @classmethod
    def of_bins(cls, label: str, edges: FloatArray, y: FloatArray) -> Line:
        """What holds over bins."""
        return cls(label, edges, np.append(y, y[-1:]), steps=True)

    @classmethod
    def of_gauge(cls, label: str, binned: Binned, *, band: bool = True) -> Line:
        """A mean with the least and most in each bin."""
        low, high = (np.append(y, y[-1:]) if band else None for y in (binned.low, binned.high))
        return cls(label, binned.edges, np.append(binned.mean, binned.mean[-1:]), low, high, steps=True)


def over_time(
    lines: Sequence[Line],
    label: str,
    end_s: float,
    *,
    measured: tuple[float, float] | None = None,
    moments: Sequence[float] = (),
    share: bool = False,
) -> Draw:
    """Curves over simulated time.

    Args:
        lines: the curves.
        label: of the vertical axis.
        end_s: end of the time axis.
        measured: window of which figures are taken; what is outside is shaded.
        moments: times to mark.
        share: whether values are shares, shown in per cent.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        size, unit = (1.0, "s") if end_s < 7200 else (3600.0, "h")
        for begin, end in _outside(measured, end_s):
            axes.axvspan(begin / size, end / size, color=GRID, alpha=0.7, linewidth=0)
        for index, line in enumerate(lines):
            how = style(index)
            x = line.x / size
            if line.low is not None and line.high is not None:
                step: Any = "post" if line.steps else None
                axes.fill_between(
                    x,
                    line.low,
                    line.high,
                    step=step,
                    color=how["color"],
                    alpha=0.28 if len(lines) == 1 else 0.18,
                    linewidth=0,
                    label="least to most",
                )
            drawn = "steps-post" if line.steps else "default"
            axes.plot(x, line.y, label=line.label, drawstyle=drawn, linewidth=1.1, **how)
        for moment in moments:
            axes.axvline(moment / size, color=TEXT, linestyle=DASHES[2], linewidth=1.0)
        axes.set(xlabel=f"simulated time, {unit}", ylabel=label, xlim=(0, end_s / size))
        axes.set_ylim(bottom=0, top=None if axes.get_ylim()[1] > 0 and _any(lines) else 1)
        if share:
            axes.yaxis.set_major_formatter(per_cent)
        else:
            axes.yaxis.set_major_formatter(thousands)
        if len(lines) > 1 or any(line.low is not None for line in lines):
            legend(figure, axes)

    return draw


def distributions(
    samples: Sequence[tuple[str, FloatArray]], label: str, limit: float | None, points: Sequence[float] = (50, 90, 99)
) -> Draw:
    """Cumulative distributions of latencies, on a logarithmic axis where they differ much.

    Args:
        samples: label and (n,) ascending samples in s of each curve.
        label: of the axis.
        limit: the SLO, s.
        points: percentiles that a single curve marks.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        positive = np.concatenate([ordered[ordered > 0] for _, ordered in samples] or [np.zeros(0)])
        reach = [positive.min(), positive.max()] if len(positive) else [1.0]
        reach += [limit] if limit else []
        logarithmic = max(reach) > 8 * min(reach)
        if logarithmic:
            axes.set_xscale("log")
        for index, (name, ordered) in enumerate(samples):
            x, y = cdf(ordered)
            shown = x > 0 if logarithmic else np.ones(len(x), bool)
            start = float(y[~shown].max()) if (~shown).any() else 0.0
            left = min(reach) * 0.8 if logarithmic else 0.0
            x, y = np.concatenate([[left], x[shown]]), np.concatenate([[start], y[shown]])
            axes.plot(x, y, drawstyle="steps-post", label=name if len(samples) > 1 else "", **style(index))
            if len(samples) == 1:
                _mark_percentiles(axes, ordered, points, logarithmic=logarithmic)
        right = max(reach) * (1.25 if logarithmic else 1.05)
        axes.set_xlim(min(reach) * 0.8 if logarithmic else 0.0, right)
        axes.set_ylim(0, 1.03)
        if limit:
            axes.axvline(limit, color=TEXT, linestyle=DASHES[1], linewidth=1.2, label=f"SLO {seconds(limit, None)}")
        seconds_axis(axes, max(reach))
        axes.set(xlabel=label, ylabel="share of requests")
        axes.yaxis.set_major_formatter(per_cent)
        legend(figure, axes)

    return draw


def bars(
    rows: Sequence[tuple[str, Sequence[float]]],
    parts: Sequence[str],
    label: str,
    texts: Sequence[str],
    *,
    share: bool = False,
) -> Draw:
    """Horizontal bars, stacked where there are several parts.

    Args:
        rows: name and one value per part, of each bar.
        parts: names of the parts.
        label: of the value axis.
        texts: written at the end of each bar.
        share: whether values are shares, shown in per cent.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = np.arange(len(rows))[::-1]
        left = np.zeros(len(rows))
        for index, part in enumerate(parts):
            widths = np.array([values[index] for _, values in rows])
            axes.barh(
                places,
                widths,
                left=left,
                height=0.66,
                color=COLOURS[index % len(COLOURS)],
                label=part,
                hatch=("", "////", "....", "xxxx")[index // len(COLOURS) % 4],
                edgecolor=PAPER,
            )
            left += widths
        longest = max([*left, _FEW])
        for place, end, text in zip(places, left, texts, strict=True):
            axes.text(end + 0.015 * longest, place, text, va="center", ha="left")
        axes.set_yticks(places, [name for name, _ in rows])
        axes.set_xlim(0, longest * 1.24)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(label)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(few_ticks())
        axes.xaxis.set_major_formatter(per_cent if share else thousands)
        if len(parts) > 1:
            legend(figure, axes)

    return draw


def bars_height(rows: int, parts: int = 1) -> float:
    """Inches that a picture of so many bars wants."""
    return 0.75 + 0.3 * rows + (0.22 * (1 + (parts - 1) // 3) if parts > 1 else 0.0)


def columns(values: FloatArray, label: str, bottom: str, even: float | None, groups: int = 1) -> Draw:
    """A column per element of `values`, with a line at `even`; columns of alternate groups differ in colour."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        of_group = max(1, len(values) // groups)
        for parity in range(min(groups, 2)):
            shade = (np.arange(len(values)) // of_group) % 2 == parity
            axes.bar(np.arange(len(values))[shade], values[shade], width=0.8, color=COLOURS[parity], linewidth=0)
        if even is not None:
            axes.axhline(even, color=TEXT, linestyle=DASHES[1], linewidth=1.2, label="all alike")
            legend(figure, axes)
        axes.set(xlabel=bottom, ylabel=label, xlim=(-0.6, len(values) - 0.4), ylim=(0, max(values.max() * 1.1, _FEW)))
        axes.xaxis.set_major_locator(few_ticks(integer=True))
        axes.yaxis.set_major_formatter(thousands)
        axes.grid(visible=False, axis="x")

    return draw


def _outside(measured: tuple[float, float] | None, end_s: float) -> list[tuple[float, float]]:
    if measured is None:
        return []
    start, end = measured
    return [(a, b) for a, b in ((0.0, start), (min(end, end_s), end_s)) if b > a]


def _any(lines: Sequence[Line]) -> bool:
    return any(float(np.max(line.y if line.high is None else line.high, initial=0.0)) > 0 for line in lines)


def _mark_percentiles(axes: Axes, ordered: FloatArray, points: Sequence[float], *, logarithmic: bool) -> None:
    for index, percent in enumerate(points):
        value = ordered[max(0, int(np.ceil(percent / 100 * len(ordered))) - 1)]
        if value > 0 or not logarithmic:
            axes.plot(
                [value],
                [percent / 100],
                marker=MARKERS[index],
                color=COLOURS[1],
                linestyle="none",
                markersize=6,
                label=f"p{percent:g} {scaled(value, 's')}",
                zorder=3,
                clip_on=False,
            )
