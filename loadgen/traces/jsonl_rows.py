"""JSON Lines: an object in every line, its members by name, others beside them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_REQUESTS
from pimserve.loadgen.traces.ordered_rows import ordered_rows
from pimserve.loadgen.traces.rows import OPTIONAL, Columns, Reading, TraceRows
from pimserve.loadgen.traces.rows_read import Chunk, Record, RowsRead, as_text, refuse_if_empty
from pimserve.loadgen.traces.text_blocks import text_blocks
from pimserve.loadgen.traces.trace_files import Member, members_named

_MOST_OTHERS = 1000  # names that are kept of members that are not read
# Numbers with a point stay text, so that times are exact.
DECODER = json.JSONDecoder(parse_float=str, parse_constant=str)


def read_jsonl(path: Path, columns: Columns, reading: Reading) -> TraceRows:
    """Rows of files of JSON Lines, no further than they are used. Raises InputError with "path:line" for a bad one."""
    read: RowsRead | None = None
    others: set[str] = set()
    for member in members_named(path, ".jsonl", reading.passed_over):
        read = _read_file(member, columns, reading, read, others)
        if read.enough():
            break
    assert read is not None  # members_named gives one at least
    refuse_if_empty(path, read)
    if len(others) < _MOST_OTHERS:
        columns.refuse_missing(others)
    return ordered_rows(read, others.difference(_read_names(read.columns)))


def _read_file(member: Member, columns: Columns, reading: Reading, read: RowsRead | None, others: set[str]) -> RowsRead:
    so_far = [] if read is None else [read]
    line = 1
    for block in text_blocks(member, lambda: any(each.enough() for each in so_far)):
        documents = [_document(text) for text in block.text.split("\n")]
        if read is None:
            first = _document("") if block.empty_lines else documents[0]
            if isinstance(first, str):
                raise InputError(f"{member.place}:1", first)
            asked = (getattr(columns, kind) for kind in columns.asked)  # other rows may have them
            read = RowsRead(columns.of_file([*first, *asked]), reading)
            so_far.append(read)
        for number in range(line, line + block.empty_lines):
            _add_one(member, number, _document(""), read)
        line += block.empty_lines
        chunk = _chunk(documents, read.columns) if len(read) + len(documents) <= MAX_REQUESTS else None
        if chunk is None or not read.add(chunk):
            for number, document in enumerate(documents, start=line):
                _add_one(member, number, document, read)
        if len(others) < _MOST_OTHERS:
            others.update(*(each for each in documents if isinstance(each, dict)))
        line += len(documents)
    if read is None:
        raise InputError(member.place, f"the file is empty; lines with {', '.join(columns.names)} are needed")
    return read


def _document(line: str) -> dict[str, Any] | str:
    """The object in a line; or what is wrong with it."""
    try:
        document = DECODER.decode(line)
    except ValueError as error:
        return f"not JSON: {error}"
    except RecursionError:
        return "not JSON that can be read: nested too deep"
    return document if isinstance(document, dict) else "must be an object"


def _chunk(documents: Sequence[dict[str, Any] | str], columns: Columns) -> Chunk | None:
    """The rows in columns; None when any is not plainly good."""
    if columns.parent is not None or columns.blocks is not None or columns.duration is not None:
        return None
    try:
        stamps, inputs, outputs = ([each[name] for each in documents] for name in columns.names)  # type: ignore[index]
        if {*map(type, inputs), *map(type, outputs)} != {int} or not {*map(type, stamps)} <= {int, str}:
            return None
        times = columns.clock.read_all(np.array([str(stamp) for stamp in stamps], dtype=np.bytes_))
        lengths = np.array([inputs, outputs], np.int64)
    except (KeyError, TypeError, ValueError, OverflowError, ArithmeticError):
        return None
    if times is None or lengths.min() < 0:
        return None
    requests, sessions, labels = (
        None if name is None else [as_text(each.get(name)) for each in documents]  # type: ignore[union-attr]
        for name in (columns.request, columns.session, columns.label)
    )
    return Chunk(*times, lengths[0], lengths[1], requests, sessions, None, labels)


def _add_one(member: Member, number: int, document: dict[str, Any] | str, read: RowsRead) -> None:
    columns, place = read.columns, f"{member.place}:{number}"
    if isinstance(document, str):
        read.drop_or_refuse(place, document)
    elif missing := [name for name in columns.names if name not in document]:
        found = f"found: {', '.join(document)[:200]!r}, needed: {', '.join(columns.names)!r}"
        read.drop_or_refuse(place, f"{', '.join(missing)} is missing; {found}")
    else:
        read.add_record(member.place, _record(number, document, columns))


def _read_names(columns: Columns) -> Sequence[str]:
    optional = (getattr(columns, name) for name in OPTIONAL)
    return [*columns.names, *(name for name in optional if name is not None)]


def _record(number: int, document: dict[str, Any], columns: Columns) -> Record:
    optional = (None if name is None else document.get(name) for name in (getattr(columns, each) for each in OPTIONAL))
    return Record(number, *(document[name] for name in columns.names), *optional)
