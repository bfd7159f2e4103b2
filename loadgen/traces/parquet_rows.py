"""Parquet files: columns by name, whatever type of numbers or times they have, others beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_REQUESTS
from pimserve.loadgen.traces.ordered_rows import ordered_rows
from pimserve.loadgen.traces.rows import OPTIONAL, Columns, Reading, TraceRows
from pimserve.loadgen.traces.rows_read import Chunk, Record, RowsRead, refuse_if_empty
from pimserve.loadgen.traces.times import Clock, Times, since_zero
from pimserve.loadgen.traces.trace_files import Member, members_named

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

_BATCH_ROWS = 1 << 16


def read_parquet(path: Path, columns: Columns, reading: Reading) -> TraceRows:
    """Rows of Parquet files, no further than they are used. Raises InputError with "path:row" for a bad one."""
    read: RowsRead | None = None
    others: set[str] = set()
    for member in members_named(path, ".parquet", reading.passed_over):
        file = _opened(member)
        names = list(file.schema_arrow.names)
        of_file = columns.of_file(names)
        if missing := [name for name in columns.names if name not in names]:
            found = f"found: {', '.join(names)[:200]!r}, needed: {', '.join(columns.names)!r}"
            raise InputError(member.place, f"column {', '.join(missing)} is missing; {found}")
        _check(member, file, of_file)
        columns.refuse_missing(names)
        if read is None:
            read = RowsRead(of_file, reading)
        elif read.columns != of_file:
            raise InputError(member.place, f"has other columns than the files before it: {', '.join(names)[:200]!r}")
        others |= set(names) - set(_names(of_file))
        _read_file(member, file, read)
        if read.enough():
            break
    assert read is not None  # members_named gives one at least
    if not len(read):
        raise InputError(str(path), "the file holds no rows")
    refuse_if_empty(path, read)
    return ordered_rows(read, others)


def _opened(member: Member) -> ParquetFile:
    try:
        import pyarrow  # noqa: PLC0415 an extra, and slow to import
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        raise InputError(member.place, "Parquet needs pyarrow: pip install 'pimserve[parquet]'") from None
    if member.path is None:
        raise InputError(member.place, "Parquet is read from files and folders, not from archives")
    try:
        return pyarrow.parquet.ParquetFile(member.path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(member.place, f"no Parquet file that can be read: {error}") from None


def _check(member: Member, file: ParquetFile, columns: Columns) -> None:
    import pyarrow  # noqa: PLC0415 is there by now

    schema = file.schema_arrow
    for name in filter(None, _names(columns)):
        if len(schema.get_all_field_indices(name)) > 1:
            raise InputError(member.place, f"column {name} is there twice")
        kind = schema.field(name).type
        if pyarrow.types.is_nested(kind) or "binary" in str(kind):
            raise InputError(member.place, f"column {name} holds {kind}; numbers, times or text are needed")


def _names(columns: Columns) -> list[str | None]:
    return [*columns.names, *(getattr(columns, name) for name in OPTIONAL)]


def _read_file(member: Member, file: ParquetFile, read: RowsRead) -> None:
    import pyarrow  # noqa: PLC0415 is there by now

    wanted = [name for name in _names(read.columns) if name is not None]
    row = 1
    batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted)
    while not read.enough():
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(member.place, f"is damaged behind row {row - 1}: {error}") from None
        if batch is None:
            return
        chunk = _chunk(batch, read.columns)
        if chunk is None or len(read) + len(chunk.inputs) > MAX_REQUESTS or not read.add(chunk):
            for record in _records(batch, read.columns, row):
                read.add_record(member.place, record)
        row += len(batch)


def _chunk(batch: RecordBatch, columns: Columns) -> Chunk | None:
    """The rows in columns; None when any is not plainly good."""
    if columns.parent is not None or columns.blocks is not None:
        return None
    tokens = [batch.column(name) for name in columns.names[1:]]
    if any(column.null_count or not str(column.type).lstrip("u").startswith("int") for column in tokens):
        return None
    try:
        inputs, outputs = (column.to_numpy(zero_copy_only=False).astype(np.int64) for column in tokens)
        times = _times(batch, columns.arrival, columns.clock)
        durations = None if columns.duration is None else _times(batch, columns.duration, columns.duration_clock)
        taken_ps = None if durations is None else since_zero(durations)
    except (ValueError, OverflowError, ArithmeticError):
        return None
    if times is None or (columns.duration is not None and taken_ps is None):
        return None
    if min(inputs.min(initial=0), outputs.min(initial=0)) < 0:
        return None
    requests = None if columns.request is None else _texts(batch, columns.request)
    sessions = None if columns.session is None else _texts(batch, columns.session)
    labels = None if columns.label is None else _texts(batch, columns.label)
    return Chunk(*times, inputs, outputs, requests, sessions, taken_ps, labels)


def _texts(batch: RecordBatch, name: str) -> list[str]:
    """A column as text; nothing where nothing is."""
    return [text or "" for text in batch.column(name).cast("string").to_pylist()]


def _times(batch: RecordBatch, name: str, clock: Clock) -> Times | None:
    texts = _texts(batch, name)
    return clock.read_all(np.array(texts, dtype=np.bytes_)) if texts and all(texts) else None


def _records(batch: RecordBatch, columns: Columns, first_row: int) -> Iterator[Record]:
    """Rows one by one."""
    fields: list[Sequence[object]] = []
    for name in _names(columns):
        if name is None:
            fields.append([None] * len(batch))
        elif name in columns.names[1:]:
            fields.append(batch.column(name).to_pylist())
        else:
            fields.append(_texts(batch, name))
    for number, values in enumerate(zip(*fields, strict=True), start=first_row):
        yield Record(number, *values)
