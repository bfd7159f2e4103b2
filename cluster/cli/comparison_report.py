"""Runs side by side for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich import table as rich
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from pimserve.cluster.base.figures import text_of
from pimserve.cluster.base.tables import Row, Table
from pimserve.cluster.cli.terminal import add_rows, in_slices, plain_table, warning
from pimserve.cluster.run.compare import Comparison
from pimserve.cluster.run.comparison_tables import MIXED_WINDOWS, difference_table, quantity_table, run_letters

_RUN_WIDTH = 20  # of a run's two columns, at least
_INDENT = _GAP = 2


def comparison_report(comparison: Comparison, screen: Console) -> RenderableType:
    """Runs side by side, each with its ratio to the first; as few tables as the screen's width allows."""
    runs = comparison.runs
    letters = run_letters(len(runs))
    legend = rich.Table.grid(padding=(0, 2, 0, 0))
    for letter, run, settings in zip(letters, runs, comparison.named_settings(), strict=True):
        legend.add_row(Text(letter, style="bold"), Text(run.title), Text(run.place, overflow="fold"))
        if settings:
            legend.add_row("", Text(settings, style="dim", overflow="fold"), "")
    parts: list[RenderableType] = [legend, *(Text(f"note: {note}") for note in comparison.all_notes)]
    others = range(1, len(runs))
    for table in in_slices(
        screen,
        others,
        lambda start, end: _figures(comparison, letters, others[start:end]),
        most=max(1, screen.width // _RUN_WIDTH),
    ):
        parts += ["", table]
    if any(run.summary.window.whole_run is False for run in runs):
        parts += ["", Text(MIXED_WINDOWS, style="dim")]
    states = [f"{letter} {text_of(run.summary.stability)}" for letter, run in zip(letters, runs, strict=True)]
    parts += ["", Text(f"stability: {', '.join(states)}")]
    if comparison.differences or comparison.unlike:
        parts += ["", _differences(comparison, letters, screen.width)]
    warnings = [
        warning(f"warning: {letter}: {text}")
        for letter, run in zip(letters, runs, strict=True)
        for text in run.summary.warnings
    ]
    if warnings:
        parts += ["", *warnings]
    return Group(*parts)


def _figures(comparison: Comparison, letters: Sequence[str], others: Sequence[int]) -> rich.Table:
    """The first run and some others, a blank row between groups of figures."""
    tables = [
        quantity_table(group, quantities, letters, others)
        for group, quantities in groupby(comparison.quantities, lambda quantity: quantity.group)
    ]
    drawn = plain_table()
    drawn.add_column("")  # breaks where there is no room, so that nothing is cut
    drawn.add_column("", no_wrap=True)
    for index, column in enumerate(tables[0].columns):
        is_ratio = index > 0 and index % 2 == 0
        drawn.add_column(column, justify="right", min_width=7 if is_ratio else 9, no_wrap=True)
    for index, table in enumerate(tables):
        if index:
            drawn.add_row()
        add_rows(drawn, table, units=True)
    return drawn


def _differences(comparison: Comparison, letters: Sequence[str], width: int) -> RenderableType:
    """Settings side by side where no value has to break for it; below, the others, a line for each value."""
    title = "note: the runs differ in"
    if comparison.unlike:
        title = f"warning: not like for like, the runs differ in {', '.join(comparison.unlike)}"
    rows = difference_table(comparison.differences_by_section, letters).rows
    of_labels = max((len(row.label) for row in rows), default=0)
    room = (width - _INDENT - of_labels) // len(letters) - _GAP  # for a value
    short = [row for row in rows if max(map(len, (*row.cells, *letters))) <= room]
    parts: list[RenderableType] = [Text(title, style="bold" if comparison.unlike else "")]
    if short:
        drawn = rich.Table.grid(padding=(0, _GAP, 0, _INDENT))
        for _ in ("", *letters):
            drawn.add_column(no_wrap=True)
        drawn.add_row("", *(Text(letter, style="bold") for letter in letters))
        add_rows(drawn, Table("", ("", *letters), short))
        parts.append(drawn)
    return Group(*parts, *(part for row in rows if row not in short for part in _setting(row, letters, width)))


def _setting(row: Row, letters: Sequence[str], width: int) -> tuple[RenderableType, RenderableType]:
    """A setting with its values below each other, each once, beside the runs that have it."""
    having: dict[str, list[str]] = {}
    for letter, cell in zip(letters, row.cells, strict=True):
        having.setdefault(cell, []).append(letter)
    drawn = rich.Table.grid(padding=(0, _GAP, 0, 0))
    drawn.add_column(width=2 * _INDENT - _GAP)
    drawn.add_column(max_width=width // 4)
    drawn.add_column(overflow="fold")
    for cell, runs in having.items():
        drawn.add_row("", Text(", ".join(runs), style="bold"), Text(cell))
    return Padding(Text(row.label, overflow="fold"), (0, 0, 0, _INDENT)), drawn
