"""CSV files with a header: columns by name, in any order, others beside them.

The whole file is parsed with numpy. When anything looks odd (quoted fields too), it is parsed again row by row, which
is slow but decides, and finds the line to blame.
"""

import csv
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TOKENS
from pimserve.loadgen.traces.rows import Columns, Record, TraceRows, checked
from pimserve.loadgen.traces.times import TIME_LIMIT_PS
from pimserve.loadgen.traces.trace_files import read_text

_LONGEST_STAMP = 40


def read_csv(path: Path, columns: Columns) -> TraceRows:
    """Rows of a CSV file. Raises InputError with "path:line" for a bad one."""
    text = read_text(path)
    if not text.strip():
        raise InputError(str(path), f"the file is empty; a header {','.join(columns.names)} and rows are needed")
    first_line, _, body = text.partition("\n")
    header = [name.strip() for name in next(csv.reader([first_line]))]
    places = _places(path, header, columns)
    if not body.strip():
        raise InputError(str(path), "the file holds a header but no rows")
    rows = _parse_fast(body, len(header), places, columns)
    if rows is None:
        rows = checked(path, _records(path, text, len(header), places), columns)
    return rows.beside(name for place, name in enumerate(header) if place not in places)


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


def _parse_fast(body: str, width: int, places: list[int], columns: Columns) -> TraceRows | None:
    """Parse with numpy; None when any row is not plainly good."""
    if not body.isascii() or any(char in body for char in '"\r\0'):
        return None
    lines = body.rstrip("\n").split("\n")
    too_many = len(lines) > MAX_REQUESTS  # pragma: no mutate (the slower parser has the last word)
    if too_many or any(line.count(",") != width - 1 for line in lines):
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
    if columns.clock.from_first:
        first = 0
    if np.any(after[1:] < after[:-1]) or after[-1] > TIME_LIMIT_PS:
        return None
    inputs, outputs = np.ascontiguousarray(table["i"]), np.ascontiguousarray(table["o"])
    if any(tokens.min() < 1 or tokens.max() > MAX_TOKENS for tokens in (inputs, outputs)):
        return None
    return TraceRows(after, first, inputs, outputs)


def _records(path: Path, text: str, width: int, places: list[int]) -> Iterator[Record]:
    """Rows below the header, one by one."""
    # Blank lines at the end are harmless.
    rows = csv.reader(io.StringIO(text.rstrip("\n"), newline="\n"), strict=True)
    next(rows)
    try:
        for fields in rows:
            if len(fields) != width:
                shown = ",".join(fields)[:200]
                message = f"{width} fields are needed, as in the header, found {len(fields) or 1}: {shown!r}"
                raise InputError(f"{path}:{rows.line_num}", message)
            time, inputs, outputs = (fields[place] for place in places)
            yield rows.line_num, (time, inputs, outputs)
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}", f"not a row of CSV: {error}") from None
