"""CSV files with a header: columns by name, in any order, others beside them.

The file is parsed with numpy, block by block. When anything looks odd (quoted fields too), it is read again row by row,
which is slow but decides, and finds the line to blame.
"""

import csv
import io
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TOKENS
from pimserve.loadgen.traces.rows import TOO_MANY, Columns, Record, RowsRead, Selection, TraceRows, read_checked
from pimserve.loadgen.traces.times import TIME_LIMIT_PS
from pimserve.loadgen.traces.trace_files import MAX_LINE_BYTES, TextBlock, lines_of, text_blocks

_LONGEST_STAMP = 40


def read_csv(path: Path, columns: Columns, selection: Selection) -> TraceRows:
    """Rows of a CSV file, no further than they are used. Raises InputError with "path:line" for a bad one."""
    read = RowsRead(columns, selection)
    blocks = text_blocks(path, read.enough)
    head = next(blocks, None)
    if head is None or not head.text.strip():
        raise InputError(str(path), f"the file is empty; a header {','.join(columns.names)} and rows are needed")
    first_line, _, body = head.text.partition("\n")
    header = [] if head.empty_lines else _header(path, first_line)
    places = _places(path, header, columns)
    fast = _read_fast(path, chain([TextBlock(0, body)] if body else [], blocks), len(header), places, read)
    if not fast:
        read = RowsRead(columns, selection)
        records = _records(path, lines_of(text_blocks(path, read.enough)), len(header), places)
        read_checked(path, records, read)
    return read.rows().beside(name for place, name in enumerate(header) if place not in places)


def _header(path: Path, line: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line]))]
    except csv.Error as error:
        raise InputError(f"{path}:1", f"not a row of CSV: {error}") from None


def _places(path: Path, header: list[str], columns: Columns) -> list[int]:
    """Where the columns are that are read."""
    if missing := [name for name in columns.names if name not in header]:
        raise InputError(
            f"{path}:1",
            f"column {', '.join(missing)} is missing; found: {', '.join(header)[:200]!r}, needed: "
            f"{', '.join(columns.names)!r}",
        )
    if twice := [name for name in columns.names if header.count(name) > 1]:
        raise InputError(f"{path}:1", f"column {twice[0]} is there twice")
    return [header.index(name) for name in columns.names]


def _read_fast(path: Path, blocks: Iterable[TextBlock], width: int, places: list[int], read: RowsRead) -> bool:
    """Read rows with numpy; whether all of them are plainly good."""
    for block in blocks:
        rows = None if block.empty_lines else _parse_fast(block.text, width, places, read.columns)
        if rows is None or not read.add(rows):
            return False
        if len(read) > MAX_REQUESTS:
            raise InputError(f"{path}:{MAX_REQUESTS + 2}", TOO_MANY)
    return len(read) > 0


def _parse_fast(body: str, width: int, places: list[int], columns: Columns) -> TraceRows | None:
    """Parse lines with numpy; None when any row is not plainly good."""
    if not body.isascii() or any(char in body for char in '"\r\0'):
        return None
    lines = body.split("\n")
    if any(line.count(",") != width - 1 for line in lines):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns when it reads 1.5 as an integer
            table = np.loadtxt(
                io.StringIO(body),
                dtype=[("t", f"S{_LONGEST_STAMP + 1}"), ("i", "i8"), ("o", "i8")],
                delimiter=",",
                comments=None,
                usecols=places,
                ndmin=1,
            )
            if np.char.str_len(table["t"]).max() > _LONGEST_STAMP or len(table) != len(lines):
                return None
            times = columns.clock.read_all(table["t"])
    except (ValueError, OverflowError, ArithmeticError, Warning):
        return None
    if times is None:
        return None
    after, first = times
    if np.any(after[1:] < after[:-1]) or after[-1] > TIME_LIMIT_PS:
        return None
    inputs, outputs = np.ascontiguousarray(table["i"]), np.ascontiguousarray(table["o"])
    if any(tokens.min() < 1 or tokens.max() > MAX_TOKENS for tokens in (inputs, outputs)):
        return None
    return TraceRows(after, first, inputs, outputs)


def _records(path: Path, lines: Iterable[str], width: int, places: list[int]) -> Iterator[Record]:
    """Rows below the header, one by one."""
    row_chars = 0

    def counted() -> Iterator[str]:
        nonlocal row_chars
        for line in lines:
            row_chars += len(line)  # a row goes on for as many lines as its quotes do
            if row_chars > MAX_LINE_BYTES:
                raise InputError(f"{path}:{rows.line_num + 1}", f"the row is longer than {MAX_LINE_BYTES:,} characters")
            yield line + "\n"

    rows = csv.reader(counted(), strict=True)
    next(rows)
    row_chars = 0
    try:
        for fields in rows:
            row_chars = 0
            if len(fields) != width:
                shown = ",".join(fields)[:200]
                message = f"{width} fields are needed, as in the header, found {len(fields) or 1}: {shown!r}"
                raise InputError(f"{path}:{rows.line_num}", message)
            time, inputs, outputs = (fields[place] for place in places)
            yield rows.line_num, (time, inputs, outputs)
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}", f"not a row of CSV: {error}") from None
    if rows.line_num == 1:
        raise InputError(str(path), "the file holds a header but no rows")
