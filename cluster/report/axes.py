"""What all pictures share on their axes: styles of series, legends, ticks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pimserve.cluster.base.figures import figure as figure_text
from pimserve.cluster.base.figures import scale
from pimserve.cluster.report.svg import COLOURS, DASHES, FONT_PT, WIDTH_IN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

Draw = Callable[["Figure"], None]
_SPARE_IN = 0.2  # the reader's font may be wider
_ROOM, _ROW_IN = 2, 0.19  # rows of a legend for which pictures have room, and height of each further one
_LARGE = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of series number `index`: told apart by dashes where colours are used up."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}


def legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, each label once, row by row; the figure grows where that takes many rows."""
    from matplotlib.textpath import TextPath  # noqa: PLC0415 slow

    handles: dict[str, Any] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        handles.setdefault(label, handle)
    if not handles:
        return
    widths = [TextPath((0, 0), label, size=FONT_PT).get_extents().width / 72 for label in handles]
    across = next(n for n in range(len(handles), 0, -1) if n == 1 or _legend_in(widths, n) < WIDTH_IN - _SPARE_IN)
    rows = -(-len(handles) // across)
    across = -(-len(handles) // rows)  # as even as so many rows allow
    figure.set_figheight(figure.get_figheight() + _ROW_IN * max(0, rows - _ROOM))
    labels = [label for column in range(across) for label in list(handles)[column::across]]  # it fills column by column
    where: dict[str, Any] = {"loc": "outside lower left", "ncols": across, "borderaxespad": 0.1}
    figure.legend([handles[label] for label in labels], labels, **where)


def _legend_in(widths: Sequence[float], across: int) -> float:
    """Width of a legend with texts of these widths in so many columns, all in inches."""
    texts = sum(max(widths[column::across]) for column in range(across))
    # Beside its text a column has a handle and a gap; between columns there is a wider one (matplotlib's defaults).
    return texts + FONT_PT / 72 * (2.6 * across + 2 * (across - 1))


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
