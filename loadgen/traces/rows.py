"""Rows of a trace, and what every one of them must fulfil."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from pimserve.arrays import IntArray
from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TIME_S, MAX_TOKENS
from pimserve.loadgen.traces.times import CLOCKS, TIME_LIMIT_PS, Clock


@dataclass(frozen=True)
class Columns:
    """What a file calls the columns that are read, and what its times are (a key of `CLOCKS`)."""

    arrival: str
    input_tokens: str
    output_tokens: str
    clock_name: str = "arrival_s"

    @property
    def names(self) -> tuple[str, str, str]:
        """Time, input and output."""
        return self.arrival, self.input_tokens, self.output_tokens

    @property
    def clock(self) -> Clock:
        """How its times are written."""
        return CLOCKS[self.clock_name]


@dataclass(frozen=True)
class TraceRows:
    """All rows of a file in its order, by ascending time.

    `after_ps`: time after the first row. `first_ps`: the first row's own time, which may exceed 64 bit; 0 where dates
    are written.
    `without_time`: rows that were left out because their time is empty. `others`: columns that were not read.
    """

    after_ps: IntArray
    first_ps: int
    input_tokens: IntArray
    output_tokens: IntArray
    without_time: int = 0
    others: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.after_ps)

    def beside(self, others: Iterable[str]) -> "TraceRows":
        """The same rows, of a file that has these columns as well."""
        return replace(self, others=frozenset(others))


Fail = Callable[[str], NoReturn]
Record = tuple[int, tuple[str, str, str]]
"""Line number; time, input and output as text."""
_TOKENS = re.compile(r"\+?([0-9]{1,18})(?:\.0*)?")


def checked(path: Path, records: Iterable[Record], columns: Columns) -> TraceRows:
    """Rows of what a file holds; the first bad one raises InputError with "path:line"."""
    times: list[int] = []
    tokens: list[tuple[int, int]] = []
    first = previous = without_time = 0
    for line, (stamp, *lengths) in records:

        def fail(message: str, line: int = line) -> NoReturn:
            raise InputError(f"{path}:{line}", message)

        if len(times) >= MAX_REQUESTS:
            fail(f"more than {MAX_REQUESTS} rows")
        if not stamp.strip():
            without_time += 1
            continue
        time = _time(stamp.strip(), columns, fail)
        if not times:
            first = previous = time
        if time < previous:
            fail(f"{columns.arrival} {stamp.strip()!r} lies before the row above; rows must be sorted by time")
        if time - first > TIME_LIMIT_PS:
            fail(
                f"{columns.arrival} {stamp.strip()!r} lies more than {MAX_TIME_S:g} s after the first row, "
                "where the clock ends"
            )
        previous = time
        times.append(time - first)
        tokens.append((_count(lengths[0], columns.input_tokens, fail), _count(lengths[1], columns.output_tokens, fail)))
    if not times:
        raise InputError(str(path), f"no row has a time ({columns.arrival})")
    inputs, outputs = np.array(tokens, np.int64).T.copy()
    return TraceRows(np.array(times, np.int64), 0 if columns.clock.from_first else first, inputs, outputs, without_time)


def _time(stamp: str, columns: Columns, fail: Fail) -> int:
    try:
        return columns.clock.read(stamp)
    except (ValueError, OverflowError, ArithmeticError):
        fail(f"{columns.arrival} is {stamp[:80]!r}; {columns.clock.allowed}")


def _count(text: str, name: str, fail: Fail) -> int:
    match = _TOKENS.fullmatch(text.strip())
    if not match or not 1 <= int(match[1]) <= MAX_TOKENS:
        fail(f"{name} is {text.strip()[:80]!r}; a whole number from 1 to {MAX_TOKENS} is needed")
    return int(match[1])
