"""Tables of a sweep's points. Whatever the document lacks, as one that was changed may, is a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pimserve.cluster.base.documents import at, number, numbers
from pimserve.cluster.base.figures import ABSENT, SCALED, half_width, scale, writer
from pimserve.cluster.base.tables import Row, Table
from pimserve.cluster.sweep.grid import labels, shown
from pimserve.cluster.sweep.key_figures import Figure, is_shown, key_figures, state_text

Point = Mapping[str, Any]


def figure_columns(document: Mapping[str, Any], points: Sequence[Point], part: str) -> list[tuple[str, list[str]]]:
    """Heading and cells, one per point, of each key figure that there is.

    Args:
        document: the sweep.
        points: of it.
        part: "figures", or "difference_to_baseline".
    """
    runs = len(document["seeds"])
    columns = []
    keys = dict.fromkeys(key for point in points for key in at(point, part) or ())
    for figure in key_figures(keys):
        if not is_shown(figure, part, [_value(point, part, figure) for point in points]):
            continue
        size, unit = 1.0, ""
        if figure.unit in SCALED:
            size, unit = scale([number(point, f"{part}.{figure.key}.mean") for point in points], figure.unit)
        cells = [_cell(figure, at(point, f"{part}.{figure.key}"), size, runs) for point in points]
        columns.append((f"{figure.heading}, {unit}" if unit else figure.heading, cells))
    return columns


def point_table(
    document: Mapping[str, Any],
    points: Mapping[str, Point],
    columns: Sequence[tuple[str, Sequence[str]]],
    caption: str = "",
) -> Table:
    """A row for each point: its settings, and columns of `figure_columns`.

    Args:
        document: the sweep.
        points: by the names that rows have.
        columns: to show.
        caption: what it shows.
    """
    paths = list(document["grid"])
    rows = []
    for index, (name, point) in enumerate(points.items()):
        settings = tuple(_setting(point, path) for path in paths)
        rows.append(Row(name, (*settings, *(cells[index] for _, cells in columns)), mark=_mark(point)))
    return Table(caption, (*labels(paths), *(heading for heading, _ in columns)), rows)


def _setting(point: Point, path: str) -> str:
    text = (at(point, "shown") or {}).get(path)
    return str(shown(point["settings"].get(path)) if text is None else text)


def _mark(point: Point) -> str:
    """A star for a point on the front, else what became of one that is not done."""
    if point.get("pareto") is True:
        return "*"
    status = at(point, "status")
    return "" if status == "done" else ABSENT if status is None else str(status)


def _value(point: Point, part: str, figure: Figure) -> object:
    """A mean, or a state."""
    if figure.unit == "state":
        state = at(point, f"{part}.{figure.key}.state")
        return state if isinstance(state, str) else None
    return number(point, f"{part}.{figure.key}.mean")


def _cell(figure: Figure, estimate: object, size: float, runs: int) -> str:
    """A mean and its confidence interval; of states, the gravest."""
    if figure.unit == "state":
        counted, state = numbers(estimate, "runs"), at(estimate, "state")
        return state_text({"state": state, "runs": counted}, runs) if state in counted else ABSENT
    mean, ci95 = number(estimate, "mean"), number(estimate, "ci95")
    if mean is None:
        return ABSENT
    write = writer(figure.unit)
    text = write(mean / size)
    return text if ci95 is None else f"{text} ± {half_width(write, mean / size, ci95 / size)}"
