"""A sweep as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import table as rich
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from pimserve.cluster.base.tables import Table
from pimserve.cluster.cli.terminal import in_slices, plain_table
from pimserve.cluster.sweep.key_figures import by_reason, compared_by
from pimserve.cluster.sweep.sweep_tables import figure_columns, point_table

_FRONT = "* on the Pareto front: by more than the noise, no other point is better in one of {axes}, and worse in none"
_OWN = "+- 95 % confidence interval of the run's own noise (batch means)"
_MOST_NAMED = 8
_MEANS = "means of {n} seeds, the same for all points, +- 95 % confidence interval"
_DIFFERENCES = "differences to {baseline}, paired by seed, +- 95 % confidence interval"


def sweep_report(document: Mapping[str, Any], screen: Console) -> RenderableType:
    """Key figures of all points, their differences to the baseline where there are several seeds, and what failed."""
    points, seeds = document["points"], document["seeds"]
    parts: list[RenderableType] = [*_tables(document, points, "figures", screen), ""]
    if document["pareto"]["front"]:
        parts += [Text(_FRONT.format(axes=compared_by(document)))]
    parts += [Text(f"not on a front: {_names(names)}: {reason}") for reason, names in by_reason(document).items()]
    parts += [Text(_MEANS.format(n=len(seeds)) if len(seeds) > 1 else _OWN)]
    if len(seeds) > 1:
        differing = [point for point in points if "difference_to_baseline" in point]
        if differing:
            title = Text(_DIFFERENCES.format(baseline=document["baseline"]), style="bold")
            parts += ["", title, *_tables(document, differing, "difference_to_baseline", screen)]
    parts += [""] * bool(document["warnings"])
    for warning in document["warnings"]:
        which = "all points" if len(warning["points"]) == len(points) else _names(warning["points"])
        parts += [Text(f"warning: {which}: {warning['warning']}", style="bold")]
    for point in points:
        errors = dict.fromkeys(run["error"] for run in point["runs"] if run["status"] == "failed")
        if errors:
            parts += ["", Text(f"failed: {point['name']}", style="bold")]
            parts += [Padding(Text(error), (0, 0, 0, 2)) for error in errors]
    return Group(*parts)


def _names(names: Sequence[str]) -> str:
    """Some points."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _tables(
    document: Mapping[str, Any], points: Sequence[Mapping[str, Any]], part: str, screen: Console
) -> list[RenderableType]:
    """All figures, in as few tables as the screen's width allows."""
    columns = figure_columns(document, points, part)
    named = {point["name"]: point for point in points}

    def draw(start: int, end: int) -> rich.Table:
        return _draw(point_table(document, named, columns[start:end]), len(document["grid"]))

    parts: list[RenderableType] = []
    for table in list(in_slices(screen, columns, draw)) or [draw(0, 0)]:
        parts += [""] * bool(parts) + [table]
    return parts


def _draw(table: Table, settings: int) -> rich.Table:
    """A table of points, of which the first columns are settings."""
    drawn = plain_table()
    for label in table.columns[:settings]:
        drawn.add_column(label, overflow="fold")
    drawn.add_column("")
    for heading in table.columns[settings:]:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for row in table.rows:
        figures = (cell.replace("± ", "+-") for cell in row.cells[settings:])
        drawn.add_row(*(Text(cell) for cell in (*row.cells[:settings], row.mark, *figures)))
    return drawn
