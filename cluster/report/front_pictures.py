"""Points of a sweep, and the front of those that no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pimserve.cluster.report.axes import Draw, legend, nothing, plain, thousands
from pimserve.cluster.report.svg import COLOURS, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Dot:
    """A point of a sweep. Args: name: short; x, y: its figures; x_error, y_error: half widths of their intervals;
    front: whether no other beats it; hollow: whether it is no candidate.
    """

    name: str
    x: float
    y: float
    x_error: float = 0.0
    y_error: float = 0.0
    front: bool = False
    hollow: bool = False

    def over(self, x_size: float, y_size: float) -> Dot:
        """The same with axes of which one unit is that much."""
        x, x_error = self.x / x_size, self.x_error / x_size
        return replace(self, x=x, x_error=x_error, y=self.y / y_size, y_error=self.y_error / y_size)


def pareto(dots: Sequence[Dot], x_label: str, y_label: str, sizes: tuple[float, float], *, names: bool) -> Draw:
    """Points of a sweep with the front as a line; `sizes`: what one unit of either axis is."""
    dots = [dot.over(*sizes) for dot in dots]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        front = sorted((dot for dot in dots if dot.front), key=lambda dot: dot.x)
        axes.plot(
            [dot.x for dot in front],
            [dot.y for dot in front],
            drawstyle="steps-post",
            color=COLOURS[0],
            linewidth=1.2,
            label="front",
        )
        for number, (of_front, hollow) in enumerate([(True, False), (False, False), (False, True)]):
            mine = [dot for dot in dots if (dot.front, dot.hollow) == (of_front, hollow)]
            if not mine:
                continue
            colour = COLOURS[0] if of_front else COLOURS[1]
            x, y = [dot.x for dot in mine], [dot.y for dot in mine]
            wide = [[dot.x_error for dot in mine], [dot.y_error for dot in mine]]
            if any(map(any, wide)):
                axes.errorbar(x, y, xerr=wide[0], yerr=wide[1], fmt="none", ecolor=colour, elinewidth=1)
            label = "on the front" if of_front else "not a candidate" if hollow else "beaten"
            axes.plot(
                x,
                y,
                linestyle="none",
                marker="os"[not of_front],
                markersize=7,
                markeredgewidth=1.6,
                markerfacecolor=PAPER if hollow else colour,
                markeredgecolor=colour,
                label=label,
                zorder=9 - number,
            )
        axes.margins(x=0.12, y=0.12)
        xs = [dot.x for dot in dots if dot.x > 0]
        if xs and max(xs) > 8 * min(xs):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(plain)
            axes.xaxis.set_minor_formatter(nothing)
        else:
            axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(thousands)
        axes.set(xlabel=x_label, ylabel=y_label)
        if names:
            _name_dots(axes, dots)
        legend(figure, axes)

    return draw


def _name_dots(axes: Axes, dots: Sequence[Dot]) -> None:
    """Write names beside dots; dots that all but coincide share one label."""
    to_axes = axes.transData + axes.transAxes.inverted()
    clusters: list[tuple[float, float, list[Dot]]] = []
    for dot in dots:
        x, y = to_axes.transform((dot.x, dot.y))
        near = next((cluster for left, top, cluster in clusters if abs(left - x) < 0.06 and abs(top - y) < 0.06), None)
        if near is not None:
            near.append(dot)
        else:
            clusters.append((x, y, [dot]))
    for x, _, mine in clusters:
        right = max(mine, key=lambda dot: dot.x) if x < 0.8 else min(mine, key=lambda dot: dot.x)
        axes.annotate(
            ", ".join(dot.name for dot in mine),
            (right.x, max(dot.y for dot in mine)),
            textcoords="offset points",
            xytext=(6 if x < 0.8 else -6, 5),
            ha="left" if x < 0.8 else "right",
            zorder=10,
        )
