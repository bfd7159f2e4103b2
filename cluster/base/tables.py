"""Tables as plain data, which the terminal and the page each draw.

A terminal has little room: a table says which columns, rows and labels only a wide page has, and what stands for them
elsewhere. `narrow` and `wide` give each its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Row:
    """A row.

    Args:
        label: what it shows.
        cells: as text, one per column.
        unit: that all cells have in common.
        short: the label where there is little room; empty: the same.
        mark: what is said of the row beside its label.
        only: where there is such a row; empty: everywhere.
    """

    label: str
    cells: tuple[str, ...]
    unit: str = ""
    short: str = ""
    mark: str = ""
    only: Literal["", "narrow", "wide"] = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        caption: what it shows.
        columns: headings of the cells.
        rows: in order.
        name: heading of the labels.
        note: below it.
        text: whether cells are text, to be set from the left; otherwise figures.
        wide_columns: those for which only a wide page has room.
        narrow_note: what stands for them elsewhere.
    """

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    name: str = ""
    note: str = ""
    text: bool = False
    wide_columns: tuple[str, ...] = ()
    narrow_note: str = ""

    def narrow(self) -> Table:
        """What a terminal shows of it."""
        kept = [index for index, column in enumerate(self.columns) if column not in self.wide_columns]
        rows = [
            replace(row, label=row.short or row.label, cells=tuple(row.cells[index] for index in kept))
            for row in self.rows
            if row.only != "wide"
        ]
        return replace(self, columns=tuple(self.columns[index] for index in kept), rows=rows)

    def wide(self) -> Table:
        """What a page shows of it."""
        return replace(self, rows=[row for row in self.rows if row.only != "narrow"], narrow_note="")


def table_of(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], note: str = "", *, text: bool = False
) -> Table:
    """A table of plain rows, of which the first column is the label."""
    labelled = [Row(label, tuple(cells)) for label, *cells in rows]
    return Table(caption, tuple(columns[1:]), labelled, columns[0], note, text)
