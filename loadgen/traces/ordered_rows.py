"""Rows that were read, as those of a trace: in order of time, with the sessions that follow from their columns."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from pimserve.arrays import IntArray
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.loadgen.traces.rows import TraceRows
from pimserve.loadgen.traces.rows_read import RowsRead
from pimserve.loadgen.traces.trace_labels import TraceLabels
from pimserve.loadgen.traces.trace_sessions import UNKNOWN, chains, of_parents, trees


def ordered_rows(read: RowsRead, others: Iterable[str] = ()) -> TraceRows:
    """The rows of a trace, one at least; `others`: columns that the files have and that were not read."""
    rows = replace(rows_as_read(read), others=frozenset(others), notes=_unknown_parents(read))
    columns = read.columns
    session = None if columns.session is None else _array(read.sessions)
    parent = None if columns.parent is None else _array(read.parents)
    duration_ps = durations(read)
    if read.reading.sort:
        order = np.argsort(rows.after_ps, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        session = None if session is None else session[order]
        parent = None if parent is None else np.where(parent < 0, UNKNOWN, place[parent])[order]
        duration_ps = duration_ps[order]
        rows = in_order(_told(rows), order)
    if parent is not None:
        return replace(rows, sessions=of_parents(rows.after_ps, duration_ps, *trees(parent)))
    if session is not None:
        return replace(rows, sessions=of_parents(rows.after_ps, duration_ps, *chains(session)))
    return rows


def rows_as_read(read: RowsRead) -> TraceRows:
    """The rows in the order in which they were read, whatever their times are."""
    columns = read.columns
    return TraceRows(
        after_ps=_array(read.times.after_ps),
        clock_ps=read.times.clock_ps,
        input_tokens=_array(read.input_tokens),
        output_tokens=_array(read.output_tokens),
        dropped={reason: count for reason, count in read.dropped.items() if count},
        blocks=None if columns.blocks is None else Ragged(_array(read.block_ends), _array(read.block_ids)),
        block_tokens=columns.block_tokens if columns.blocks is not None else 0,
        labels=None if columns.label is None else TraceLabels(read.labels, _array(read.label_codes)),
        epoch_ps=read.times.base_ps if columns.clock.from_first else None,
    )


def durations(read: RowsRead) -> IntArray:
    """(n,) how long requests took, ps; -1 where that is not known."""
    if read.columns.duration is None:
        return np.full(len(read.times.after_ps), UNKNOWN, np.int64)
    return _array(read.durations_ps)


def in_order(rows: TraceRows, order: IntArray) -> TraceRows:
    """The rows in an order of ascending time."""
    rows = rows.take(order)
    # Where dates are written the trace's clock is 0 at the earliest.
    return rows if rows.epoch_ps is None else replace(rows, clock_ps=-int(rows.after_ps[0]))


def _array(column: Iterable[int]) -> IntArray:
    return np.frombuffer(column, np.int64)  # type: ignore[call-overload, no-any-return]


def _unknown_parents(read: RowsRead) -> tuple[str, ...]:
    if not read.unknown_parents:
        return ()
    return (f"{read.unknown_parents} turns of the trace follow a request that is not there, and begin a session",)


def _told(rows: TraceRows) -> TraceRows:
    """The same with how far out of order they are."""
    late_ps = (np.maximum.accumulate(rows.after_ps) - rows.after_ps).view(np.uint64)  # may take 64 bits
    late = int((late_ps > 0).sum())
    if not late:
        return rows
    most_s = int(late_ps.max()) / PS_PER_S
    note = f"{late} rows of the trace were out of order, by up to {most_s:g} s, and were sorted"
    return replace(rows, notes=(*rows.notes, note), out_of_order=late)
