"""What draws text and tables on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from textwrap import wrap as lines_of
from typing import IO

from rich import table as rich
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from pimserve.cluster.base.tables import Table

_BLOCK_WIDTH = 37
_UNBOUNDED = 10_000


def console(file: IO[str]) -> Console:
    """A console that prints text as it is, with colours only on a terminal."""
    return Console(file=file, markup=False, highlight=False, emoji=False)


def write(what: RenderableType, file: IO[str]) -> None:
    """Print, without the blanks to which tables are padded."""
    screen = console(file)
    with screen.capture() as captured:
        screen.print(what)
    file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def plain_table(padding: int = 2, *, header: bool = True) -> rich.Table:
    """An empty table without lines."""
    return rich.Table(box=None, pad_edge=False, header_style="bold", padding=(0, padding, 0, 0), show_header=header)


def headed_table(*columns: str, left: int = 1, wrap: bool = False) -> rich.Table:
    """An empty table with headings, of which the first `left` columns are text; `wrap`: whether figures may break."""
    table = plain_table()
    for index, column in enumerate(columns):
        text = index < left
        table.add_column(Text(column), justify="left" if text else "right", no_wrap=text or not wrap)
    return table


class FittedTable:
    """A table of which nothing is cut: where it is wider than the screen, headings break at blanks, columns that do not
    fit beside the others follow in a table below and, where not even one does, text breaks. Columns without
    any cell are left out.

    Args:
        columns: headings.
        left: how many of them, from the first on, are text.
        keys: how many begin each of these tables.
    """

    def __init__(self, *columns: str, left: int = 1, keys: int = 1) -> None:
        self._columns, self._left, self._keys = columns, left, keys
        self.rows: list[tuple[str, ...]] = []  # of cells

    def add_row(self, *cells: str) -> None:
        """Add a cell for each column."""
        self.rows.append(cells)

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        kept = [index for index in range(len(self._columns)) if not self.rows or any(row[index] for row in self.rows)]
        keys, others = ([index for index in kept if (index < self._keys) == is_key] for is_key in (True, False))
        whole = self._drawn(kept, broken=False)
        if screen.measure(whole, options=options.update(width=_UNBOUNDED)).maximum <= options.max_width:
            yield whole
            return
        slices = in_slices(screen, others, lambda start, end: self._drawn([*keys, *others[start:end]], broken=True))
        for number, part in enumerate(slices):
            yield from ([""] if number else [])
            yield part

    def _drawn(self, indices: Sequence[int], *, broken: bool) -> rich.Table:
        headings = {index: self._broken(index) if broken else self._columns[index] for index in indices}
        table = headed_table(*headings.values(), left=sum(index < self._left for index in indices))
        for column, index in zip(table.columns, indices, strict=True):
            if broken and index < self._left:
                column.no_wrap, column.overflow = False, "fold"
        for row in self.rows:
            table.add_row(*(Text(row[index]) for index in indices))
        return table

    def _broken(self, index: int) -> str:
        """A heading, no wider than its cells or longest word."""
        words = self._columns[index].split()
        width = max(map(cell_len, [*words, *(row[index] for row in self.rows)]), default=1)
        return "\n".join(lines_of(self._columns[index], width, break_long_words=False, break_on_hyphens=False))


def block(title: str, table: Table) -> rich.Table:
    """A table as half a page wide, with the title over its labels."""
    narrow = table.narrow()
    drawn = rich.Table(box=None, pad_edge=False, width=_BLOCK_WIDTH, header_style="bold")
    drawn.add_column(title, ratio=1)
    for column in narrow.columns:
        drawn.add_column(column, justify="right", no_wrap=True)
    add_rows(drawn, narrow)
    return drawn


def add_rows(drawn: rich.Table, table: Table, *, units: bool = False) -> None:
    """Add the rows of a narrow table; `units`: in a column of their own."""
    for row in table.rows:
        cells = (row.label, row.unit, *row.cells) if units else (row.label, *row.cells)
        drawn.add_row(*(Text(cell) for cell in cells))


def side_by_side(left: rich.Table, right: rich.Table) -> rich.Table:
    """Two blocks."""
    grid = rich.Table.grid(padding=(0, 5, 0, 0))
    grid.add_row(left, right)
    return grid


def in_slices(
    screen: Console, items: Sequence[object], draw: Callable[[int, int], rich.Table], most: int | None = None
) -> Iterable[rich.Table]:
    """Tables of as many columns as the screen has room for, at least one: as few tables as can be.

    Args:
        screen: where they are drawn.
        items: a column, or some that stay together, for each.
        draw: draws those from one index to another.
        most: items that a table is tried with at first.
    """
    unbounded = screen.options.update(width=_UNBOUNDED)
    start = 0
    while start < len(items):
        end = len(items) if most is None else min(len(items), start + most)
        while end > start + 1 and screen.measure(draw(start, end), options=unbounded).maximum > screen.width:
            end -= 1
        yield draw(start, end)
        start = end


def warning(text: str) -> RenderableType:
    """A warning whose further lines are indented."""
    table = rich.Table.grid(padding=(0, 1, 0, 0))
    head, _, rest = text.partition(" ")
    table.add_row(Text(head, style="bold"), Text(rest, style="bold"))
    return table
