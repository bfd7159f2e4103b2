"""Tables on the wire: numpy columns to and from `pimserve.v1.Table`, checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pimserve.errors import InputError
from pimserve.v1 import columns_pb2 as pb

_TYPES: dict[pb.DataType.ValueType, np.dtype[np.generic]] = {
    pb.DATA_TYPE_INT8: np.dtype("<i1"),
    pb.DATA_TYPE_INT32: np.dtype("<i4"),
    pb.DATA_TYPE_INT64: np.dtype("<i8"),
    pb.DATA_TYPE_FLOAT64: np.dtype("<f8"),
}
_NUMBERS = {dtype: number for number, dtype in _TYPES.items()}


def to_table(columns: Mapping[str, NDArray[np.generic]]) -> pb.Table:
    """Columns (n,) of int8, int32, int64 or float64 as a table."""
    lengths = {len(column) for column in columns.values()}
    assert len(lengths) <= 1, "columns of one table have one length"
    return pb.Table(
        count=lengths.pop() if lengths else 0,
        columns=[
            pb.Column(name=name, data_type=_NUMBERS[column.dtype.newbyteorder("<")], data=column.tobytes())
            for name, column in columns.items()
        ],
    )


def from_table(
    table: pb.Table, where: str, expected: Mapping[str, str | np.dtype[np.generic]]
) -> dict[str, NDArray[np.generic]]:
    """Columns (n,) of a table, read-only; exactly those that are `expected`, each of its numpy type.

    Raises:
        InputError: the table has other columns, types or lengths.
    """
    columns: dict[str, NDArray[np.generic]] = {}
    for column in table.columns:
        place = f"{where}.{column.name}"
        if column.name not in expected or column.name in columns:
            raise InputError(place, f"unknown or repeated column (allowed: {', '.join(expected)})")
        dtype = np.dtype(expected[column.name]).newbyteorder("<")
        if _TYPES.get(column.data_type) != dtype:
            raise InputError(place, f"must be of {dtype.name}")
        wanted = table.count * dtype.itemsize
        if len(column.data) != wanted:
            raise InputError(place, f"has {len(column.data)} bytes; {table.count} values of {dtype.name} are {wanted}")
        columns[column.name] = np.frombuffer(column.data, dtype)
    if missing := [name for name in expected if name not in columns]:
        raise InputError(where, f"lacks the column {missing[0]}")
    return columns
