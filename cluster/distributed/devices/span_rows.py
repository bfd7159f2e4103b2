"""Executed spans on the wire: the columns of the step log, with replica and number of the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.cluster.base.wire import from_table, to_table
from pimserve.errors import InputError
from pimserve.scheduler.costs import MAX_SPAN
from pimserve.scheduler.steplog import SpanColumns
from pimserve.v1.columns_pb2 import Table
from pimserve.v1.device_pb2 import ExecuteStepsRequest

_NARROW = {"steps", "decodes", "prefill_tokens", "chunks", "outputs", "begin_rest_fs", "blocks_begin", "blocks_end"}
_KEYS: dict[str, np.dtype[Any]] = {
    "replica": np.dtype(np.int32),
    "first_step": np.dtype(np.int64),
    "slowdown": np.dtype(np.int32),  # thousandths of the normal times
}
_COLUMNS: dict[str, np.dtype[Any]] = {
    name: np.dtype(np.int32 if name in _NARROW else np.int64) for name in SpanColumns._fields
}
ROW_BYTES = sum(dtype.itemsize for dtype in (*_KEYS.values(), *_COLUMNS.values()))
PACED = ("paced_decodes", "paced_context", "paced_chunks", "paced_outputs")
_MOST = 2**31 - 1  # of what is counted
_SLOWEST = 10**9
_LATEST = 2**62  # of times, energies and steps
_STEP_COLUMNS = (
    "begin_ps",
    "decodes",
    "context",
    "prefill_tokens",
    "chunks",
    "outputs",
    "busiest_tokens",
    "anchor_tokens",
    "prefill_fs",
    "prefill_dram_pj",
    "prefill_compute_pj",
    *PACED,
)
_LIMITS = dict.fromkeys(SpanColumns._fields, (0, _MOST)) | {
    "steps": (1, MAX_SPAN),
    "begin_ps": (0, 2**63 - 1),
    "begin_rest_fs": (0, 999),
    "context": (0, 2**40),
    "busiest_tokens": (0, 2**40),
    "anchor_tokens": (0, 2**40),
    "prefill_fs": (0, _LATEST),
    "prefill_dram_pj": (0, _LATEST),
    "prefill_compute_pj": (0, _LATEST),
    **dict.fromkeys(PACED, (0, 2**40)),
    "duration_fs": (0, _LATEST),
}


_STEP_PLACES = [(name, SpanColumns._fields.index(name)) for name in _STEP_COLUMNS]
_BEGIN = SpanColumns._fields.index("begin_ps")
_BLOCKS = SpanColumns._fields.index("blocks_end")


class Spans(NamedTuple):
    """Executed spans of one replica.

    `rows`: (n, fields of SpanColumns); `first_steps`: (n,), numbers of their first steps; `slowdowns`: (n,),
    thousandths of the normal times that their steps take.
    """

    replica: int
    rows: IntArray
    first_steps: IntArray
    slowdowns: IntArray

    @property
    def begin_ps(self) -> IntArray:
        """(n,): when their first steps begin, ps."""
        return self.rows[:, _BEGIN]

    def alike(self, epochs: IntArray) -> Iterator[Spans]:
        """The same in runs of one speed and one of `epochs` (n,), intervals of time in which routing has one law."""
        changes = np.diff(self.slowdowns).astype(bool) | np.diff(epochs).astype(bool)
        bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(self.slowdowns)]
        for begin, end in pairwise(bounds):
            if end > begin:
                yield Spans(self.replica, self.rows[begin:end], self.first_steps[begin:end], self.slowdowns[begin:end])


def to_rows_table(blocks: Sequence[Spans], without: Sequence[str] = ()) -> Table:
    """A table of all these spans, but for columns that are left out."""
    blocks = blocks or [Spans(0, *(np.zeros(shape, np.int64) for shape in ((0, len(SpanColumns._fields)), 0, 0)))]
    rows = np.concatenate([spans.rows for spans in blocks])
    columns: dict[str, NDArray[np.generic]] = {
        "replica": np.concatenate([np.full(len(spans.rows), spans.replica, np.int32) for spans in blocks]),
        "first_step": np.concatenate([spans.first_steps for spans in blocks]),
        "slowdown": np.concatenate([spans.slowdowns for spans in blocks]).astype(np.int32),
    }
    for name, column in zip(SpanColumns._fields, rows.T, strict=True):
        if name not in without:
            columns[name] = column.astype(_COLUMNS[name])
    return to_table(columns)


def from_rows_table(
    table: Table,
    where: str,
    most_tokens: Mapping[int, int],
    most_steps: int,
    verify_tokens: int,
    without: Sequence[str] = (),
) -> list[Spans]:
    """Spans of each replica, columns left out all 0.

    Args:
        table: as `to_rows_table` makes it.
        where: its place, for messages.
        most_tokens: of each replica here, tokens that its KV cache holds: no step has more.
        verify_tokens: of a decoding request in a step, which emits as many at most.
        most_steps: that a span of decode steps can have.
        without: columns that are not there.

    Raises:
        InputError: a column or a value is not as it should be.
    """
    expected = {**_KEYS, **{name: dtype for name, dtype in _COLUMNS.items() if name not in without}}
    raw = {name: column.astype(np.int64) for name, column in from_table(table, where, expected).items()}
    count = len(raw["replica"])
    zeros = np.zeros(count, np.int64)
    rows = SpanColumns(*(raw.get(name, zeros) for name in SpanColumns._fields))
    _within(f"{where}.first_step", raw["first_step"], 0, _LATEST)
    _within(f"{where}.slowdown", raw["slowdown"], 1, _SLOWEST)
    for name, column in zip(SpanColumns._fields, rows, strict=True):
        _within(f"{where}.{name}", column, *_LIMITS[name])
    _check(f"{where}.", rows, most_steps, verify_tokens)
    numbers = np.unique(raw["replica"]).tolist()
    for replica in numbers:
        if replica not in most_tokens:
            raise InputError(f"{where}.replica", f"replica {replica} has no device on this host")
    most = np.array([most_tokens[replica] for replica in numbers], np.int64)
    if count and (rows.decodes + rows.prefill_tokens > most[np.searchsorted(numbers, raw["replica"])]).any():
        raise InputError(f"{where}.decodes", "a step has more tokens than its replica's KV cache holds")
    block = np.column_stack(rows)
    if len(numbers) <= 1:
        return [Spans(replica, block, raw["first_step"], raw["slowdown"]) for replica in numbers]
    places = [(replica, raw["replica"] == replica) for replica in numbers]
    return [Spans(replica, block[mine], raw["first_step"][mine], raw["slowdown"][mine]) for replica, mine in places]


def step_request(
    replica: int, first_step: int, row: Sequence[int], after: int, slowdown: int, begin_ps: int
) -> ExecuteStepsRequest:
    """A single step of a span as it is sent in lockstep: without its duration.

    Args:
        replica: its replica.
        first_step: number of the span's first step.
        row: fields of SpanColumns of the span.
        after: steps of it that come before.
        slowdown: thousandths of its normal time that it takes.
        begin_ps: when it begins, ps.
    """
    given = {name: row[place] for name, place in _STEP_PLACES} | {"begin_ps": begin_ps}
    for context, decodes in (("context", "decodes"), ("paced_context", "paced_decodes")):
        given[context] += after * given[decodes]
    step = first_step + after
    return ExecuteStepsRequest(replica=replica, step=step, blocks=row[_BLOCKS], slowdown=slowdown, **given)


def span_of_step(step: ExecuteStepsRequest, most_tokens: Mapping[int, int], verify_tokens: int) -> Spans:
    """A step that is to be executed, its time still 0.

    Raises:
        InputError: a value is not as it should be.
    """
    given = {name: getattr(step, name) for name in _STEP_COLUMNS}
    given |= {"steps": 1, "blocks_begin": step.blocks, "blocks_end": step.blocks}
    for name, value in given.items():
        _one_within("blocks" if name.startswith("blocks") else name, value, *_LIMITS[name])
    _one_within("step", step.step, 0, _LATEST)
    _one_within("slowdown", step.slowdown, 1, _SLOWEST)
    row = np.array([[given.get(name, 0) for name in SpanColumns._fields]], np.int64)
    _check("", SpanColumns(*row.T), 1, verify_tokens)
    if step.replica not in most_tokens:
        raise InputError("replica", f"replica {step.replica} has no device on this host")
    if step.decodes + step.prefill_tokens > most_tokens[step.replica]:
        raise InputError("decodes", "a step has more tokens than its replica's KV cache holds")
    return Spans(step.replica, row, np.array([step.step]), np.array([step.slowdown]))


def _check(where: str, rows: SpanColumns, most_steps: int, verify_tokens: int) -> None:
    """What holds among the columns of spans."""
    prompts = (rows.chunks > 0) | (rows.prefill_tokens > 0) | (rows.prefill_fs > 0) | (rows.anchor_tokens > 0)
    for name, wrong, message in (
        ("steps", prompts & (rows.steps > 1), "a span with prompts is one step"),
        ("steps", rows.steps > most_steps, f"a span has at most {most_steps} steps"),
        ("prefill_tokens", rows.prefill_tokens < rows.chunks, "a chunk of a prompt has tokens"),
        ("decodes", rows.decodes + rows.chunks < 1, "a step has requests"),
        (
            "outputs",
            rows.outputs > verify_tokens * rows.decodes + rows.chunks,
            f"a request samples at most {'one token' if verify_tokens == 1 else f'{verify_tokens} tokens'} in a step",
        ),
    ):
        if wrong.any():
            raise InputError(f"{where}{name}", f"{message} (row {int(np.argmax(wrong))})")


def _within(where: str, values: IntArray, least: int, most: int) -> None:
    if len(values) and (int(values.min()) < least or int(values.max()) > most):
        raise InputError(where, f"must be from {least} to {most}")


def _one_within(where: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(where, f"must be from {least} to {most} (got {value})")
