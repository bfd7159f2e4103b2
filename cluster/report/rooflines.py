"""Operators under the roofs of devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pimserve.cluster.base.figures import figure as figure_text
from pimserve.cluster.base.figures import named
from pimserve.cluster.report.axes import Draw, flops, legend, nothing, plain, rate
from pimserve.cluster.report.parts import Part
from pimserve.cluster.report.svg import COLOURS, DASHES, MARKERS, QUIET, TEXT, Picture, picture
from pimserve.device_models.device import Roof
from pimserve.device_models.operators import CATEGORIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CAPTION = (
    "Roofs are nominal bandwidth and peak of one device. Filled: the mean step that only decodes; hollow: the mean "
    "step with prompts in it."
)


@dataclass(frozen=True)
class Point:
    """All operators of a category in a mean step: FLOPs per byte, and the FLOP/s that they reach."""

    category: str
    intensity: float
    flop_per_s: float
    filled: bool


@dataclass(frozen=True)
class Frame:
    """Ends of the axes: FLOPs per byte from left to right, FLOP/s from bottom to top."""

    left: float
    right: float
    bottom: float
    top: float


def rooflines(parts: Sequence[Part]) -> list[Picture]:
    """A picture for each part with a roof and a point, all with the same axes."""
    shown = [(part, points) for part in parts if (points := _points(part)) and part.roofs]
    if not shown:
        return []
    frames = [_frame(part.roofs, points) for part, points in shown]
    frame = Frame(
        min(frame.left for frame in frames),
        max(frame.right for frame in frames),
        min(frame.bottom for frame in frames),
        max(frame.top for frame in frames),
    )
    return [_roofline(part, points, frame) for part, points in shown]


def _points(part: Part) -> list[Point]:
    points = []
    for step in part.steps:
        for category in CATEGORIES:
            works = [work for work in step.work if work.category == category]
            total = sum(work.flops for work in works)
            moved, seconds = sum(work.moved for work in works), sum(work.seconds for work in works)
            if total and moved and seconds:
                points.append(Point(category, total / moved, total / seconds, filled=not step.mixed))
    return points


def _frame(roofs: Sequence[Roof], points: Sequence[Point]) -> Frame:
    """With room around all points and ridges."""
    xs = [point.intensity for point in points]
    xs += [roof.peak_flop_per_s / roof.bytes_per_s for roof in roofs if roof.peak_flop_per_s is not None]
    left, right = min(xs) / 4, max(max(xs) * 6, min(xs) * 40)
    highest = max(_height(roof, right) for roof in roofs)
    return Frame(left, right, min(point.flop_per_s for point in points) / 4, highest * 2)


def _label(roof: Roof) -> str:
    return named(roof.unit) if roof.dtype is None else f"{named(roof.unit)}, {roof.dtype}"


def _height(roof: Roof, intensity: float) -> float:
    """FLOP/s of a roof."""
    reached = roof.bytes_per_s * intensity
    return reached if roof.peak_flop_per_s is None else min(reached, roof.peak_flop_per_s)


def _roofline(part: Part, points: Sequence[Point], frame: Frame) -> Picture:
    alt = "Roofline, FLOP/s over FLOPs per byte. Roofs: " + "; ".join(
        f"{_label(roof)} {rate(roof.bytes_per_s)}B/s"
        + (f", {rate(roof.peak_flop_per_s)}FLOP/s" if roof.peak_flop_per_s else "")
        for roof in part.roofs
    )
    alt += ". Operators: " + "; ".join(
        f"{named(point.category)}{'' if point.filled else ' in steps with prompts'} {figure_text(point.intensity)} "
        f"FLOPs per byte, {rate(point.flop_per_s)}FLOP/s"
        for point in points
    )
    key = "-".join(("roofline", *part.name.lower().replace("#", "").split()))
    title = (f"{part.run}: {part.device}" if part.run else f"Roofline of {part.device}") + part.of
    return picture(key, title, f"{alt}.", _CAPTION, _draw(part.roofs, points, frame), height_in=3.9)


def _draw(roofs: Sequence[Roof], points: Sequence[Point], frame: Frame) -> Draw:
    """Points under roofs, both axes logarithmic."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        x = np.geomspace(frame.left, frame.right, 200)
        for index, roof in enumerate(roofs):
            y = [_height(roof, intensity) for intensity in x]
            colour = TEXT if index == 0 else QUIET
            axes.plot(x, y, label=_label(roof), color=colour, linestyle=DASHES[index % 4], linewidth=1.3)
        for point in points:
            index = CATEGORIES.index(point.category)
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(
                [point.intensity],
                [point.flop_per_s],
                marker=MARKERS[index % len(MARKERS)],
                linestyle="none",
                markersize=7.5 if point.filled else 12.5,  # so that both are seen where they coincide
                markerfacecolor=colour if point.filled else "none",
                markeredgecolor=colour,
                markeredgewidth=0.5 if point.filled else 1.6,
                label=named(point.category),
                zorder=3,
            )
        axes.set(xscale="log", yscale="log", xlim=(frame.left, frame.right), ylim=(frame.bottom, frame.top))
        axes.set(xlabel="FLOPs per byte (Op/B)", ylabel="FLOP/s of a device")
        axes.xaxis.set_major_formatter(plain)
        axes.yaxis.set_major_formatter(flops)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(nothing)
        axes.minorticks_off()
        legend(figure, axes)

    return draw
