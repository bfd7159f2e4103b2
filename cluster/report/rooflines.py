"""Operators under the roofs of a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pimserve.cluster.report.axes import Draw, flops, legend, nothing, plain
from pimserve.cluster.report.intensity import Roof
from pimserve.cluster.report.svg import COLOURS, DASHES, MARKERS, QUIET, TEXT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """An operator in a roofline: FLOPs per byte, and the FLOP/s that it reaches."""

    label: str
    intensity: float
    flop_per_s: float
    filled: bool = True


def roofline(roofs: Sequence[Roof], points: Sequence[Point], groups: Sequence[str]) -> Draw:
    """Points under roofs, both axes logarithmic. `groups`: labels in the order of their markers."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        xs = [point.intensity for point in points] + [
            roof.peak / roof.bytes_per_s for roof in roofs if roof.peak is not None
        ]
        low, high = min(xs) / 4, max(max(xs) * 6, min(xs) * 40)
        bottom = min(point.flop_per_s for point in points) / 4
        tops = []
        x = np.geomspace(low, high, 200)
        for index, roof in enumerate(roofs):
            y = roof.bytes_per_s * x
            if roof.peak is not None:
                y = np.minimum(y, roof.peak)
            tops.append(float(y.max()))
            axes.plot(
                x, y, label=roof.label, color=TEXT if index == 0 else QUIET, linestyle=DASHES[index % 4], linewidth=1.3
            )
        for point in points:
            index = groups.index(point.label)
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(
                [point.intensity],
                [point.flop_per_s],
                marker=MARKERS[index % len(MARKERS)],
                linestyle="none",
                markersize=8 if point.filled else 11,
                markerfacecolor=colour if point.filled else "none",
                markeredgecolor=colour,
                markeredgewidth=1.8,
                label=point.label,
                zorder=3,
            )
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, max(tops) * 2))
        axes.set(xlabel="FLOPs per byte (Op/B)", ylabel="FLOP/s of a device")
        axes.xaxis.set_major_formatter(plain)
        axes.yaxis.set_major_formatter(flops)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(nothing)
        axes.minorticks_off()
        legend(figure, axes)

    return draw
