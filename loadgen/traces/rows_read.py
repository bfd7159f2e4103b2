"""What has been read of a trace so far, and what becomes of rows that are not good."""

import json
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pimserve.arrays import BoolArray, IntArray
from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TIME_S, MAX_TOKENS
from pimserve.loadgen.traces.rows import Columns, Reading
from pimserve.loadgen.traces.times import TIME_LIMIT_PS
from pimserve.loadgen.traces.trace_labels import MOST_LABELS
from pimserve.loadgen.traces.trace_sessions import UNKNOWN
from pimserve.loadgen.traces.trace_times import TraceTimes

TOO_MANY = f"more than {MAX_REQUESTS} rows"
BAD, DUPLICATE, FAILED, NO_TOKENS = "bad", "duplicate", "failed", "zero tokens"
OUT_OF_ORDER, WITHOUT_TIME = "out of order", "without a time"
_ROOTS = frozenset({"", "-1", "null"})  # what stands for no parent


@dataclass(frozen=True)
class Chunk:
    """Rows that follow in a file, times as `TraceRows` has them; names of requests, sessions and labels, if any.

    `inputs`, `outputs`: none negative, some perhaps 0. `durations_ps`: -1 where unknown.
    """

    after_ps: IntArray
    first_ps: int
    inputs: IntArray
    outputs: IntArray
    requests: Sequence[str] | None = None
    sessions: Sequence[str] | None = None
    durations_ps: IntArray | None = None
    labels: Sequence[str] | None = None


class Record(NamedTuple):
    """A row of a file, as text or as JSON has it; `line`: where it stands."""

    line: int
    arrival: object
    inputs: object
    outputs: object
    request: object = None
    session: object = None
    parent: object = None
    duration: object = None
    blocks: object = None
    label: object = None


class _BadRowError(Exception):
    def __init__(self, message: str, reason: str = BAD) -> None:
        self.message, self.reason = message, reason


_TOKENS = re.compile(r"\+?([0-9]{1,18})(?:\.0*)?")


class RowsRead:
    """What has been read of a trace so far: 24 bytes for each row, and what its optional columns take.

    Args:
        columns: what is read.
        reading: how.
    """

    def __init__(self, columns: Columns, reading: Reading) -> None:
        self.columns, self.reading = columns, reading
        self.times = TraceTimes(reading.selection, columns.clock, sort=reading.sort)
        self.input_tokens, self.output_tokens = array("q"), array("q")
        self.dropped: Counter[str] = Counter()
        self._requests: dict[str, int] = {}
        self._session_numbers: dict[str, int] = {}
        self.sessions, self.parents, self.durations_ps = array("q"), array("q"), array("q")
        self.unknown_parents = 0
        self.block_ends, self.block_ids = array("q", [0]), array("q")
        self._block_names: dict[str, int] = {}
        self.label_codes, self._label_codes = array("q"), dict[str, int]()

    def __len__(self) -> int:
        """Rows that were read, whatever became of them."""
        return len(self.input_tokens) + self.dropped.total()

    def enough(self) -> bool:
        """Whether all rows that are used are there."""
        selection, reading = self.reading.selection, self.reading
        if self.times.ended():
            return True
        if selection.max_requests is None or not len(self) or reading.sort or reading.whole:
            return False
        start, end = selection.bounds(self.times.after_ps, self.times.clock_ps)
        return end - start >= selection.max_requests

    # --- many at once ---

    def add(self, chunk: Chunk) -> bool:
        """Add rows, if all of them are plainly good, or to be dropped for want of tokens; whether they are."""
        columns, reading = self.columns, self.reading
        kept = np.ones(len(chunk.inputs), bool)
        if columns.fails_without_output:
            kept &= chunk.outputs > 0
        failed = int((~kept).sum())
        if reading.drop_bad:
            kept &= (chunk.inputs > 0) & (chunk.outputs > 0)
        empty = int((~kept).sum()) - failed
        if not kept.all():
            chunk = _where(chunk, kept)
        if len(chunk.inputs) and not self._add_good(chunk):
            return False
        self.dropped += Counter({FAILED: failed, NO_TOKENS: empty})
        return True

    def _add_good(self, chunk: Chunk) -> bool:
        if any(tokens.min() < 1 or tokens.max() > MAX_TOKENS for tokens in (chunk.inputs, chunk.outputs)):
            return False
        if not self._are_new(chunk.requests) or not self.times.add_all(chunk.after_ps, chunk.first_ps):
            return False
        self._requests.update(dict.fromkeys(filter(None, chunk.requests or ()), UNKNOWN))
        self.input_tokens.frombytes(np.ascontiguousarray(chunk.inputs).tobytes())
        self.output_tokens.frombytes(np.ascontiguousarray(chunk.outputs).tobytes())
        if chunk.sessions is not None:
            self.sessions.extend(self._number_of(name) for name in chunk.sessions)
        if chunk.durations_ps is not None:
            self.durations_ps.frombytes(chunk.durations_ps.tobytes())
        if chunk.labels is not None:
            self.label_codes.extend(map(self._code_of, chunk.labels))
        return True

    def _are_new(self, requests: Sequence[str] | None) -> bool:
        """Whether none of them was there before."""
        named = [name for name in requests or () if name]
        return len(set(named)) == len(named) and self._requests.keys().isdisjoint(named)

    def _number_of(self, session: str) -> int:
        return self._session_numbers.setdefault(session, len(self._session_numbers)) if session else UNKNOWN

    @property
    def labels(self) -> tuple[str, ...]:
        """The different ones, as `label_codes` counts them."""
        return tuple(self._label_codes)

    def _code_of(self, label: str) -> int:
        if label not in self._label_codes and len(self._label_codes) == MOST_LABELS:
            raise InputError(
                "workload.trace.label_column", f"{self.columns.label} has more than {MOST_LABELS} different values"
            )
        return self._label_codes.setdefault(label, len(self._label_codes))

    # --- one by one ---

    def add_record(self, place: str, record: Record) -> None:
        """Add one row, or drop it. Raises InputError with "place:line" for a bad one."""
        if len(self) >= MAX_REQUESTS:
            raise InputError(f"{place}:{record.line}", TOO_MANY)
        stamp = as_text(record.arrival)
        if not stamp:
            self.dropped[WITHOUT_TIME] += 1
            return
        try:
            self._add_checked(record, stamp)
        except _BadRowError as bad:
            if bad.reason == FAILED or self.reading.drop_bad:
                self.dropped[bad.reason] += 1
            else:
                raise InputError(f"{place}:{record.line}", bad.message) from None

    def drop_or_refuse(self, where: str, message: str) -> None:
        """A row that cannot even be taken apart. Raises InputError unless such rows are dropped."""
        if not self.reading.drop_bad or len(self) >= MAX_REQUESTS:
            raise InputError(where, message if not self.reading.drop_bad else TOO_MANY)
        self.dropped[BAD] += 1

    def _add_checked(self, record: Record, stamp: str) -> None:
        columns = self.columns
        if columns.fails_without_output and _is_zero(record.outputs):
            raise _BadRowError("", FAILED)
        try:
            time_ps = columns.clock.read(stamp)
        except (ValueError, OverflowError, ArithmeticError):
            raise _BadRowError(f"{columns.arrival} is {stamp[:80]!r}; {columns.clock.allowed}") from None
        inputs, outputs = _count(record.inputs, columns.input_tokens), _count(record.outputs, columns.output_tokens)
        if self.times.back(time_ps):
            message = "lies before the row above; rows must be sorted by time, or workload.trace.sort be true"
            raise _BadRowError(f"{columns.arrival} {stamp!r} {message}", OUT_OF_ORDER)
        if side := self.times.too_far(time_ps):
            fewer = (
                "start_s and end_s select fewer"
                if self.times.selects
                else "dates that are sorted must all lie within it"
            )
            first = f"the first row that is used, where the clock ends; {fewer}"
            message = f"lies more than {MAX_TIME_S:g} s {'after' if side > 0 else 'before'} {first}"
            raise _BadRowError(f"{columns.arrival} {stamp!r} {message}")
        duration_ps = self._duration(as_text(record.duration))
        blocks = self._block_ids(record.blocks) if columns.blocks is not None else None
        if request := as_text(record.request):
            if request in self._requests:
                raise _BadRowError(f"{columns.request} {request[:80]!r} is there twice", DUPLICATE)
            self._requests[request] = len(self.input_tokens)
        self.times.add(time_ps)
        self._append(record, inputs, outputs, duration_ps, blocks)

    def _append(self, record: Record, inputs: int, outputs: int, duration_ps: int, blocks: "array[int] | None") -> None:
        columns = self.columns
        self.input_tokens.append(inputs)
        self.output_tokens.append(outputs)
        if columns.session is not None:
            self.sessions.append(self._number_of(as_text(record.session)))
        if columns.parent is not None:
            self.parents.append(self._parent_of(as_text(record.parent)))
        if columns.duration is not None:
            self.durations_ps.append(duration_ps)
        if columns.label is not None:
            self.label_codes.append(self._code_of(as_text(record.label)))
        if blocks is not None:
            self.block_ids.extend(blocks)
            self.block_ends.append(len(self.block_ids))

    def _parent_of(self, name: str) -> int:
        parent = self._requests.get(name, UNKNOWN)
        self.unknown_parents += parent == UNKNOWN and name not in _ROOTS
        return parent

    def _duration(self, text: str) -> int:
        if self.columns.duration is None or not text:
            return UNKNOWN
        clock = self.columns.duration_clock
        try:
            duration_ps = clock.read(text)
        except (ValueError, OverflowError, ArithmeticError):
            raise _BadRowError(f"{self.columns.duration} is {text[:80]!r}; {clock.allowed}") from None
        return min(duration_ps, TIME_LIMIT_PS)

    def _block_ids(self, value: object) -> "array[int]":
        """Numbers as they are; other names as numbers below 0."""
        names = self._block_names
        try:
            if isinstance(value, list) and {*map(type, value)} <= {int, str}:
                return array(
                    "q", (each if type(each) is int else names.setdefault(each, ~len(names)) for each in value)
                )
        except OverflowError:
            pass
        raise _BadRowError(f"{self.columns.blocks} must be a list of names or 64 bit numbers of blocks")


def _where(chunk: Chunk, kept: BoolArray) -> Chunk:
    rows = np.flatnonzero(kept)
    places = rows.tolist()
    return replace(
        chunk,
        after_ps=chunk.after_ps[rows],
        inputs=chunk.inputs[rows],
        outputs=chunk.outputs[rows],
        requests=None if chunk.requests is None else [chunk.requests[row] for row in places],
        sessions=None if chunk.sessions is None else [chunk.sessions[row] for row in places],
        durations_ps=None if chunk.durations_ps is None else chunk.durations_ps[rows],
        labels=None if chunk.labels is None else [chunk.labels[row] for row in places],
    )


def as_text(value: object) -> str:
    """A value as written; what is none is refused later, with these words."""
    if isinstance(value, str):
        return value.strip()
    return "" if value is None else json.dumps(value)


def _is_zero(value: object) -> bool:
    match = _TOKENS.fullmatch(as_text(value))
    return match is not None and int(match[1]) == 0


def _count(value: object, name: str) -> int:
    text = "null" if value is None else as_text(value)
    match = _TOKENS.fullmatch(text)
    if not match or not 1 <= int(match[1]) <= MAX_TOKENS:
        message = f"{name} is {text[:80]!r}; a whole number from 1 to {MAX_TOKENS} is needed"
        raise _BadRowError(message, NO_TOKENS if _is_zero(value) else BAD)
    return int(match[1])


def refuse_if_empty(path: Path, read: RowsRead) -> None:
    """Raises InputError where no row is left of a trace, which says why."""
    if read.times.after_ps:
        return
    dropped = dict(read.dropped)
    if set(dropped) <= {WITHOUT_TIME}:
        raise InputError(str(path), f"no row has a time ({read.columns.arrival})")
    counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    raise InputError(str(path), f"no row is left: {counts}")
