"""Rows of a trace, and what every one of them must fulfil."""

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

import numpy as np

from pimserve.arrays import IntArray
from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TIME_S, MAX_TOKENS, PS_PER_S
from pimserve.loadgen.traces.times import CLOCKS, TIME_LIMIT_PS, Clock

TOO_MANY = f"more than {MAX_REQUESTS} rows"


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
class Selection:
    """Which rows are used: from `start_s` to before `end_s` of the trace's clock, the first `max_requests` of them."""

    start_s: float = 0.0
    end_s: float | None = None
    max_requests: int | None = None

    def bounds(self, after_ps: Sequence[int] | IntArray, first_ps: int) -> tuple[int, int]:
        """Of rows at these times after a first one at `first_ps`: how many lie before the start and the end."""
        start = _before(after_ps, first_ps, self.start_s)
        return start, len(after_ps) if self.end_s is None else _before(after_ps, first_ps, self.end_s)


def _before(after_ps: Sequence[int] | IntArray, first_ps: int, time_s: float) -> int:
    return bisect_left(after_ps, round(Decimal(repr(time_s)) * PS_PER_S) - first_ps)


@dataclass(frozen=True)
class TraceRows:
    """Rows of a file in its order, by ascending time.

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


class RowsRead:
    """What has been read of a file so far, as `TraceRows`: 24 bytes for each row.

    Args:
        columns: what is read.
        selection: what it is read for.
    """

    def __init__(self, columns: Columns, selection: Selection) -> None:
        self.columns = columns
        self._selection = selection
        self.first_ps = 0
        self.after_ps, self.input_tokens, self.output_tokens = array("q"), array("q"), array("q")
        self.without_time = 0

    def __len__(self) -> int:
        return len(self.after_ps) + self.without_time

    def add(self, rows: TraceRows) -> bool:
        """Add the rows that follow, whose `first_ps` is what is written; whether they do follow in time."""
        if not self.after_ps:
            self.first_ps = rows.first_ps
        begin_ps = rows.first_ps - self.first_ps
        if (self.after_ps and begin_ps < self.after_ps[-1]) or begin_ps + int(rows.after_ps[-1]) > TIME_LIMIT_PS:
            return False
        self.after_ps.frombytes((rows.after_ps + begin_ps).tobytes())
        self.input_tokens.frombytes(rows.input_tokens.tobytes())
        self.output_tokens.frombytes(rows.output_tokens.tobytes())
        return True

    def enough(self) -> bool:
        """Whether all rows that are used are there."""
        if self._selection.max_requests is None or not self.after_ps:
            return False
        start, end = self._selection.bounds(self.after_ps, self._clock_ps)
        return end - start >= self._selection.max_requests

    @property
    def _clock_ps(self) -> int:
        return 0 if self.columns.clock.from_first else self.first_ps

    def rows(self) -> TraceRows:
        """The rows."""
        columns = (np.frombuffer(column, np.int64) for column in (self.after_ps, self.input_tokens, self.output_tokens))
        after_ps, input_tokens, output_tokens = columns
        return TraceRows(after_ps, self._clock_ps, input_tokens, output_tokens, self.without_time)


Fail = Callable[[str], NoReturn]
Record = tuple[int, tuple[str, str, str]]
"""Line number; time, input and output as text."""
_TOKENS = re.compile(r"\+?([0-9]{1,18})(?:\.0*)?")


def read_checked(path: Path, records: Iterable[Record], read: RowsRead) -> None:
    """Add the rows that a file holds; the first bad one raises InputError with "path:line"."""
    columns, previous = read.columns, 0
    for line, (stamp, *lengths) in records:

        def fail(message: str, line: int = line) -> NoReturn:
            raise InputError(f"{path}:{line}", message)

        if len(read) >= MAX_REQUESTS:
            fail(TOO_MANY)
        if not stamp.strip():
            read.without_time += 1
            continue
        time = _time(stamp.strip(), columns, fail)
        if not read.after_ps:
            read.first_ps = previous = time
        if time < previous:
            fail(f"{columns.arrival} {stamp.strip()!r} lies before the row above; rows must be sorted by time")
        if time - read.first_ps > TIME_LIMIT_PS:
            fail(
                f"{columns.arrival} {stamp.strip()!r} lies more than {MAX_TIME_S:g} s after the first row, "
                "where the clock ends"
            )
        previous = time
        inputs, outputs = (_count(text, name, fail) for text, name in zip(lengths, columns.names[1:], strict=True))
        read.after_ps.append(time - read.first_ps)
        read.input_tokens.append(inputs)
        read.output_tokens.append(outputs)
    if not read.after_ps:
        raise InputError(str(path), f"no row has a time ({columns.arrival})")


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
