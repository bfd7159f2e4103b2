"""CSV files with a header: columns by name, in any order, others beside them.

They are parsed with numpy, block by block. A block in which anything looks odd is read again row by row, which is slow
but decides, and finds the line to blame; from a quote on, all is, since a quoted field may go on in the next block.
"""

import csv
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np

from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_REQUESTS
from pimserve.loadgen.traces.ordered_rows import ordered_rows
from pimserve.loadgen.traces.rows import OPTIONAL, Columns, Reading, TraceRows
from pimserve.loadgen.traces.rows_read import Chunk, Record, RowsRead, refuse_if_empty
from pimserve.loadgen.traces.text_blocks import MAX_LINE_BYTES, TextBlock, lines_of, text_blocks
from pimserve.loadgen.traces.times import since_zero
from pimserve.loadgen.traces.trace_files import Member, members_named

_LONGEST = 64  # characters of a time, or of a name, that numpy reads


def read_csv(path: Path, columns: Columns, reading: Reading) -> TraceRows:
    """Rows of CSV files, no further than they are used. Raises InputError with "path:line" for a bad one."""
    read: RowsRead | None = None
    others: set[str] = set()
    for member in members_named(path, ".csv", reading.passed_over):
        read, beside = _read_file(member, columns, reading, read)
        others |= beside
        if read.enough():
            break
    assert read is not None  # members_named gives one at least
    refuse_if_empty(path, read)
    return ordered_rows(read, others)


def csv_header(place: str, line: str) -> list[str]:
    """Names of the columns. Raises InputError if it is no row of CSV."""
    try:
        return [name.strip() for name in next(csv.reader([line], skipinitialspace=True), [])]
    except csv.Error as error:
        raise InputError(f"{place}:1", f"not a row of CSV: {error}") from None


def _read_file(member: Member, columns: Columns, reading: Reading, read: RowsRead | None) -> tuple[RowsRead, set[str]]:
    """Add a file's rows to what was read; and the names of its other columns."""
    so_far = [] if read is None else [read]
    blocks = text_blocks(member, lambda: any(each.enough() for each in so_far))
    head = next(blocks, None)
    if head is None or not head.text.strip():
        needed = f"a header {','.join(columns.names)} and rows are needed"
        raise InputError(member.place, f"the file is empty; {needed}")
    first_line, _, body = head.text.partition("\n")
    header = [] if head.empty_lines else csv_header(member.place, first_line)
    of_file = columns.of_file(header)
    _check(member, header, of_file)
    columns.refuse_missing(header)
    if read is None:
        read = RowsRead(of_file, reading)
        so_far.append(read)
    elif read.columns != of_file:
        message = "has other columns than the files before it"
        raise InputError(f"{member.place}:1", f"{message}: {', '.join(header)[:200]!r}")
    first = TextBlock(0, body) if body else next(blocks, None)
    if first is None:
        raise InputError(member.place, "the file holds a header but no rows")
    _read_rows(member, chain([first], blocks), header, read)
    return read, set(header) - set(_names(of_file))


def _names(columns: Columns) -> list[str | None]:
    """In the order of a record."""
    return [*columns.names, *(getattr(columns, name) for name in OPTIONAL)]


def _check(member: Member, header: Sequence[str], columns: Columns) -> None:
    if missing := [name for name in columns.names if name not in header]:
        raise InputError(
            f"{member.place}:1",
            f"column {', '.join(missing)} is missing; found: {', '.join(header)[:200]!r}, needed: "
            f"{', '.join(columns.names)!r}",
        )
    if twice := [name for name in _names(columns) if name is not None and header.count(name) > 1]:
        raise InputError(f"{member.place}:1", f"column {twice[0]} is there twice")


def _read_rows(member: Member, blocks: Iterator[TextBlock], header: Sequence[str], read: RowsRead) -> None:
    line = 2
    for block in blocks:
        chunk = None if block.empty_lines else _parse_fast(block.text, header, read.columns)
        fits = chunk is not None and len(read) + len(chunk.inputs) <= MAX_REQUESTS
        if chunk is None or not fits or not read.add(chunk):
            rest = chain([block], blocks) if '"' in block.text else [block]
            _add_records(member, lines_of(rest), line, header, read)
        line += block.empty_lines + block.text.count("\n") + 1


def _parse_fast(body: str, header: Sequence[str], columns: Columns) -> Chunk | None:
    """Parse lines with numpy; None when any row is not plainly good."""
    if not body.isascii() or any(char in body for char in '"\r\0') or columns.parent or columns.blocks:
        return None
    lines = body.split("\n")
    if any(line.count(",") != len(header) - 1 for line in lines):
        return None
    texts = [name for name in ("request", "session", "duration", "label") if getattr(columns, name) is not None]
    wanted = [*columns.names, *(getattr(columns, name) for name in texts)]
    kinds = [("arrival", f"S{_LONGEST + 1}"), ("i", "i8"), ("o", "i8"), *((name, f"S{_LONGEST + 1}") for name in texts)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns when it reads 1.5 as an integer
            table = np.loadtxt(
                io.StringIO(body),
                dtype=kinds,
                delimiter=",",
                comments=None,
                usecols=[header.index(name) for name in wanted],
                ndmin=1,
            )
            longest = max(int(np.char.str_len(table[name]).max()) for name in ("arrival", *texts))
            if longest > _LONGEST or len(table) != len(lines):
                return None
            times = columns.clock.read_all(table["arrival"])
            durations = columns.duration_clock.read_all(table["duration"]) if "duration" in texts else None
            taken_ps = None if durations is None else since_zero(durations)
    except (ValueError, OverflowError, ArithmeticError, Warning):
        return None
    if times is None or ("duration" in texts and taken_ps is None):
        return None
    inputs, outputs = np.ascontiguousarray(table["i"]), np.ascontiguousarray(table["o"])
    if min(inputs.min(), outputs.min()) < 0:
        return None
    requests, sessions, labels = (
        [name.decode().strip() for name in table[kind].tolist()] if kind in texts else None
        for kind in ("request", "session", "label")
    )
    return Chunk(*times, inputs, outputs, requests, sessions, taken_ps, labels)


def _add_records(member: Member, lines: Iterable[str], first_line: int, header: Sequence[str], read: RowsRead) -> None:
    """Add rows one by one."""
    row_chars = 0

    def counted() -> Iterator[str]:
        nonlocal row_chars
        for line in lines:
            row_chars += len(line)  # a row goes on for as many lines as its quotes do
            if row_chars > MAX_LINE_BYTES:
                place = f"{member.place}:{rows.line_num + first_line}"
                raise InputError(place, f"the row is longer than {MAX_LINE_BYTES:,} characters")
            yield line + "\n"

    rows = csv.reader(counted(), strict=True, skipinitialspace=True)
    width = len(header)
    pick = itemgetter(*(width if name is None else header.index(name) for name in _names(read.columns)))
    try:
        for fields in rows:
            row_chars = 0
            number = rows.line_num + first_line - 1
            if len(fields) != width:
                shown = ",".join(fields)[:200]
                message = f"{width} fields are needed, as in the header, found {len(fields) or 1}: {shown!r}"
                read.drop_or_refuse(f"{member.place}:{number}", message)
                continue
            fields.append("")
            read.add_record(member.place, Record(number, *pick(fields)))
    except csv.Error as error:
        message = f"not a row of CSV: {error}"
        raise InputError(f"{member.place}:{rows.line_num + first_line - 1}", message) from None
