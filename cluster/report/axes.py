"""What all pictures share on their axes: styles of series, legends, ticks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pimserve.cluster.figures import figure as figure_text
from pimserve.cluster.figures import scale
from pimserve.cluster.report.svg import COLOURS, DASHES, WIDTH_IN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

Draw = Callable[["Figure"], None]
_LARGE = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of series number `index`: told apart by dashes where colours are used up."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}


def legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, each label once, row by row."""
    found: dict[str, Any] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        found.setdefault(label, handle)
    if not found:
        return
    across = next(each for each in range(len(found), 0, -1) if each == 1 or _legend_in(list(found), each) < WIDTH_IN)
    across = -(-len(found) // -(-len(found) // across))  # as even as so many rows allow
    labels = [label for column in range(across) for label in list(found)[column::across]]  # it fills column by column
    where: dict[str, Any] = {"loc": "outside lower left", "ncols": across, "borderaxespad": 0.1}
    figure.legend([found[label] for label in labels], labels, **where)


def _legend_in(labels: Sequence[str], across: int) -> float:
    """Width of a legend with so many columns, inches: handles, and letters of 0.075 inches."""
    return sum(0.48 + 0.075 * max(map(len, labels[column::across])) for column in range(across))


def few_ticks(*, integer: bool = False) -> MaxNLocator:
    """About five ticks."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    return MaxNLocator(5, integer=integer)


def seconds_axis(axes: Axes, largest: float) -> None:
    """Ticks in the unit that fits: each with its own on a logarithmic axis."""
    if axes.get_xscale() == "log":
        axes.xaxis.set_major_formatter(seconds)
        axes.xaxis.set_minor_formatter(nothing)
        return
    size, unit = scale([largest], "s")
    axes.xaxis.set_major_locator(few_ticks())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / size:g} {unit}" if value else "0")


def per_cent(value: float, _: object) -> str:
    """A share in per cent."""
    return f"{100 * value:g} %"


def thousands(value: float, _: object) -> str:
    """A number with commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def plain(value: float, _: object) -> str:
    """A number."""
    return f"{value:g}"


def nothing(_value: float, _: object) -> str:
    """No text."""
    return ""


def seconds(value: float, _: object) -> str:
    """A time with its unit."""
    size, unit = scale([value], "s")
    return f"{value / size:g} {unit}"


def rate(value: float) -> str:
    """A number with the prefix of a large unit, which is to follow: "3.35 T"."""
    for size, prefix in _LARGE:
        if value >= size:
            return f"{figure_text(value / size)} {prefix}"
    return f"{figure_text(value)} "


def flops(value: float, _: object) -> str:
    """A number with the prefix of a large unit."""
    for size, prefix in _LARGE:
        if value >= size:
            return f"{value / size:g} {prefix}"
    return f"{value:g}"
