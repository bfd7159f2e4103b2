"""Orders, reports and rows of the request table as messages of `pimserve.v1`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from pimserve.arrays import IntArray
from pimserve.cluster.base.wire import from_table, to_table
from pimserve.cluster.run.results import SPAN
from pimserve.errors import InputError
from pimserve.scheduler.fleet import Fleet
from pimserve.scheduler.requests import DTYPE, RequestTable
from pimserve.v1 import columns_pb2

ROWS_PER_MESSAGE = 2**14  # about a megabyte
_PIECE_BYTES = 2**20  # whole numbers of int64
_KEYED = np.dtype([("request", np.int64), *DTYPE.descr])
_ROW_COLUMNS = {name: _KEYED[name] for name in _KEYED.names or ()}
_SPAN_COLUMNS = {name: SPAN[name] for name in SPAN.names or ()}
_FLEET = TypeAdapter(Fleet)
_ADAPTERS: dict[tuple[type, str], TypeAdapter[Any]] = {}
_Data = TypeVar("_Data")
_Message = TypeVar("_Message")


def fleet_json(fleet: Fleet) -> str:
    """A fleet as text."""
    return _FLEET.dump_json(fleet).decode()


def fleet_of(text: str) -> Fleet:
    """The fleet of such a text."""
    try:
        return _FLEET.validate_json(text)
    except ValueError as error:
        raise InputError("fleet", f"is not one of this version of pimserve: {error}") from None


def fleet_digest(fleet: Fleet) -> str:
    """sha256 of a fleet."""
    return hashlib.sha256(_FLEET.dump_json(fleet)).hexdigest()


def to_message(value: object) -> tuple[str, list[columns_pb2.Column]]:
    """A dataclass of plain data and arrays of int64: (JSON of all but its arrays, the arrays)."""
    arrays = {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]
    arrays = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    rest = {
        field.name: _adapter(type(value), field.name).dump_python(getattr(value, field.name), mode="json")
        for field in fields(value)  # type: ignore[arg-type]
        if field.name not in arrays
    }
    columns = [
        columns_pb2.Column(name=name, data_type=columns_pb2.DATA_TYPE_INT64, data=array.astype("<i8").tobytes())
        for name, array in arrays.items()
    ]
    return json.dumps(rest), columns


def in_pieces(text: str, columns: Sequence[columns_pb2.Column]) -> Iterator[tuple[str, Sequence[columns_pb2.Column]]]:
    """A message of `to_message` in pieces of about a megabyte; the texts of all, joined, and all columns are the whole.

    There is at least one. A column that is cut comes as several of one name.
    """
    if len(text) + sum(len(column.data) for column in columns) <= _PIECE_BYTES:
        yield text, columns
        return
    for begin in range(0, len(text), _PIECE_BYTES):
        yield text[begin : begin + _PIECE_BYTES], ()
    for column in columns:
        for begin in range(0, max(1, len(column.data)), _PIECE_BYTES):
            data = column.data[begin : begin + _PIECE_BYTES]
            yield "", (columns_pb2.Column(name=column.name, data_type=column.data_type, data=data),)


def from_message(kind: type[_Data], text: str, columns: Iterable[columns_pb2.Column]) -> _Data:
    """What `to_message` was given; columns of one name are one behind the other.

    Raises:
        InputError: it is nothing of that kind.
    """
    try:
        values = {
            name: _adapter(kind, name).validate_python(value, strict=False) for name, value in json.loads(text).items()
        }
        arrays: dict[str, list[NDArray[Any]]] = {}
        for column in columns:
            arrays.setdefault(column.name, []).append(np.frombuffer(column.data, "<i8"))
        return kind(**values, **{name: np.concatenate(parts) for name, parts in arrays.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(kind.__name__, f"is not one of this version of pimserve: {error}") from None


def _adapter(kind: type, field: str) -> TypeAdapter[Any]:
    adapter = _ADAPTERS.get((kind, field))
    if adapter is None:
        adapter = _ADAPTERS[kind, field] = TypeAdapter(get_type_hints(kind)[field])
    return adapter


def blank_table(requests: int) -> RequestTable:
    """A table of so many requests of which nothing is known yet, none of them one that must be rejected."""
    nothing = np.zeros(requests, np.int64)
    return RequestTable(nothing, nothing, nothing, max_model_len=1)


def pieces(requests: IntArray, rows: NDArray[Any]) -> Iterator[columns_pb2.Table]:
    """Rows (n,) of the request table with their numbers (n,), as tables of at most about a megabyte; at least one."""
    for begin in range(0, max(1, len(requests)), ROWS_PER_MESSAGE):
        part = slice(begin, begin + ROWS_PER_MESSAGE)
        columns: Mapping[str, NDArray[Any]] = {name: rows[name][part] for name in DTYPE.names or ()}
        yield to_table({"request": requests[part], **columns})


def rows_of(table: columns_pb2.Table, most: int) -> tuple[IntArray, NDArray[Any]]:
    """Numbers (n,), each below `most`, and rows (n,) of the request table.

    Raises:
        InputError: it is no such table.
    """
    columns = from_table(table, "rows", _ROW_COLUMNS)
    rows = np.zeros(table.count, DTYPE)
    for name in DTYPE.names or ():
        rows[name] = columns[name]
    requests = columns["request"].astype(np.int64)
    if len(requests) and not 0 <= requests.min() <= requests.max() < most:
        raise InputError("rows.request", f"must be from 0 to {most - 1}")
    return requests, rows


def spans_to_table(spans: NDArray[Any]) -> columns_pb2.Table:
    """Executed steps (n,) of `results.SPAN` as a table."""
    return to_table({name: spans[name] for name in SPAN.names or ()})


def spans_of(table: columns_pb2.Table) -> NDArray[Any]:
    """Executed steps (n,) of such a table."""
    columns = from_table(table, "spans", _SPAN_COLUMNS)
    spans = np.zeros(table.count, SPAN)
    for name in SPAN.names or ():
        spans[name] = columns[name]
    return spans


def state_messages(
    kind: Callable[..., _Message], state: bytes, requests: IntArray, rows: NDArray[Any], **more: object
) -> Iterator[_Message]:
    """A state and the rows of its requests, each in pieces of about a megabyte, as messages of a kind."""
    for begin in range(0, len(state), _PIECE_BYTES):
        yield kind(state=state[begin : begin + _PIECE_BYTES], **more)
    for table in pieces(requests, rows):
        yield kind(rows=table, **more)


def from_state_messages(messages: Iterable[Any], most: int) -> tuple[bytes, IntArray, NDArray[Any]]:
    """State, numbers (n,) of requests, each below `most`, and their rows (n,)."""
    state, requests, rows = b"", [np.zeros(0, np.int64)], [np.zeros(0, DTYPE)]
    for message in messages:
        state += message.state
        if message.HasField("rows"):
            numbers, columns = rows_of(message.rows, most)
            requests.append(numbers)
            rows.append(columns)
    return state, np.concatenate(requests), np.concatenate(rows)
