"""A trace as a scenario wants it: rows selected, the first of them at 0, and rescaled.

A trace has a clock of its own, which may show seconds since 1970; `start_s` and `end_s` are of that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import numpy as np

from pimserve.arrays import IntArray
from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_TIME_S, PS_PER_S
from pimserve.loadgen.streams import Streams
from pimserve.loadgen.traces.known_formats import AUTO, recognise, tables_beside, trace_format
from pimserve.loadgen.traces.pacing import paced_turns
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.loadgen.traces.rows import SEED_0, Columns, Reading, Selection, TraceRows
from pimserve.loadgen.traces.rows_read import WITHOUT_TIME
from pimserve.loadgen.traces.thinning import sampled, spread_in_ticks
from pimserve.loadgen.traces.times import OUTSIDE_PS, TIME_LIMIT_PS
from pimserve.loadgen.traces.trace_files import file_digest, find_trace
from pimserve.loadgen.traces.trace_format import TraceFormat
from pimserve.loadgen.traces.trace_labels import TraceLabels
from pimserve.loadgen.traces.trace_sessions import TraceSessions
from pimserve.loadgen.traces.trace_spec import TraceSpec
from pimserve.loadgen.turns import Turns

_SLOW_PER_S, _FEW = 0.01, 20  # rate below which a clock in seconds is doubted, from more rows than these
_SHOWN = 3  # names of files in a message
_MOSTLY = 0.5  # share of gaps that are zero from which on a trace's times are in ticks


@dataclass(frozen=True)
class Trace:
    """Rows that are used, by ascending time: arrival (ps after the first), lengths (tokens); what became of all.

    `format`: which one it has. `blocks`: ids of each prompt's blocks of `block_tokens` tokens, in which it shares its
    prefix with others; None where the trace does not know. `sessions`: of requests that are turns, as recorded.
    `turns`: what they wait for in a replay; None where they do not. `labels`: of its rows, where they were asked for
    and it has some. `warnings`: what is in the trace and not in the simulation, and what was done to it.
    `doubtful_clock`: the column of times, where it may not be in seconds.
    `first_ps`: what its clock shows at the first of these rows; where dates are written (`dated`), time since 1970.
    `out_of_order`: rows that were before earlier ones in the file, used or not.
    """

    format: str
    arrival_ps: IntArray
    input_tokens: IntArray
    output_tokens: IntArray
    rows_read: int
    rows_dropped: dict[str, int]
    blocks: Ragged | None = None
    block_tokens: int = 0
    sessions: TraceSessions | None = None
    turns: Turns | None = None
    labels: TraceLabels | None = None
    warnings: tuple[str, ...] = ()
    doubtful_clock: str | None = None
    first_ps: int = 0
    dated: bool = False
    out_of_order: int = 0


def format_of(spec: TraceSpec) -> TraceFormat:
    """The format of a trace: as the scenario says, else the one that its content has. Raises InputError if none has."""
    columns = None if spec.columns is None else spec.columns.columns()
    return recognise(find_trace(spec.path), columns) if spec.format == AUTO else trace_format(spec.format)


def load_trace(spec: TraceSpec, streams: Streams = SEED_0, *, labels: bool = False) -> Trace:
    """Read, select and rescale a trace. Raises InputError with "path:line" for a bad row.

    Args:
        spec: what is replayed.
        streams: of what is drawn: rows that are sampled, times within ticks, requests of formats that only have rates.
        labels: whether the labels of its rows are wanted.
    """
    path, form = find_trace(spec.path), format_of(spec)
    columns = form.columns if spec.columns is None else spec.columns.columns()
    columns = replace(columns, label=(spec.label_column or form.columns.label) if labels else None)
    selection = Selection(spec.start_s, spec.end_s, spec.max_requests)
    reading = Reading(selection, spec.on_bad_row == "drop", spec.sort, spec.sample_ratio < 1, streams)
    rows = form.read(path, columns, reading)
    used, outside = _selected(spec, path, rows, streams)
    arrival_ps = spread_in_ticks(used.after_ps, spec.tick_jitter, streams)
    scale = _scale(spec, path, arrival_ps)
    return Trace(
        format=form.name,
        arrival_ps=_rescaled(arrival_ps - arrival_ps[0], scale, path),
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        rows_read=len(rows) + sum(rows.dropped.values()),
        rows_dropped={reason: count for reason, count in {**rows.dropped, **outside}.items() if count},
        blocks=used.blocks,
        block_tokens=used.block_tokens,
        sessions=used.sessions,
        turns=_turns(spec, used, scale),
        labels=used.labels,
        warnings=(*_beside(spec, path, form, reading.passed_over), *_warnings(spec, form, columns, rows)),
        doubtful_clock=columns.arrival if form.open_names and columns.unit == "s" else None,
        first_ps=(rows.clock_ps if rows.epoch_ps is None else rows.epoch_ps) + int(used.after_ps[0]),
        dated=rows.epoch_ps is not None,
        out_of_order=rows.out_of_order,
    )


def _selected(spec: TraceSpec, path: Path, rows: TraceRows, streams: Streams) -> tuple[TraceRows, dict[str, int]]:
    """Rows that are used; and how many are not, by reason."""
    selection = Selection(spec.start_s, spec.end_s, spec.max_requests)
    first, last = selection.bounds(rows.after_ps, rows.clock_ps)
    inside = np.arange(first, last)
    kept = sampled(inside, rows.sessions, spec.sample_ratio, streams)
    used = kept[: spec.max_requests]
    if not len(used):
        begins, ends = _clock_at(rows, 0), "behind end_s" if last < len(rows) else _clock_at(rows, -1)
        why = f"no row lies from start_s to end_s; the trace ends {ends}, and begins {begins}"
        if len(inside):
            why = f"sample_ratio {spec.sample_ratio:g} leaves none of {len(inside)} rows"
        raise InputError(str(path), why)
    if int(rows.after_ps[used[-1]]) - int(rows.after_ps[used[0]]) > TIME_LIMIT_PS:
        message = f"rows that are selected lie more than {MAX_TIME_S:g} s apart, where the clock ends"
        raise InputError(str(path), f"{message}: start_s and end_s select fewer")
    everything = len(used) == len(rows)
    return rows if everything else rows.take(used), {
        "before start_s": first,
        "from end_s on": len(rows) - last,
        "not sampled": len(inside) - len(kept),
        "beyond max_requests": len(kept) - len(used),
    }


def _clock_at(rows: TraceRows, row: int) -> str:
    """When a row is by the trace's clock, for messages."""
    after_ps = int(rows.after_ps[row])
    if abs(after_ps) == OUTSIDE_PS:
        return "before start_s" if after_ps < 0 else "behind end_s"
    return f"at {Decimal(rows.clock_ps + after_ps) / PS_PER_S:f} s"


def _turns(spec: TraceSpec, used: TraceRows, scale: float) -> Turns | None:
    if used.sessions is None:
        return None
    turns = paced_turns(used.sessions, used.after_ps, spec.timing, spec.api_time_scale or 1.0, spec.max_idle_gap_s)
    return None if turns is None else replace(turns, think_ps=_rescaled(turns.think_ps, scale))


def _beside(spec: TraceSpec, path: Path, form: TraceFormat, passed_over: Sequence[str]) -> list[str]:
    """What to say where other tables lie in a folder or archive of which nobody said what it holds."""
    names = tables_beside(path, form, passed_over) if spec.format == AUTO else []
    if not names:
        return []
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    whose = "folder" if path.is_dir() else "archive"
    return [f"the trace is taken to be {form.name}: other tables of its {whose} are not read ({shown})"]


def _warnings(spec: TraceSpec, form: TraceFormat, columns: Columns, rows: TraceRows) -> tuple[str, ...]:
    has = rows.others if rows.blocks is None else rows.others | {columns.blocks}
    said = [*(words for column, words in form.not_modelled.items() if column in has), *rows.notes]
    if rows.sessions is not None and spec.timing != "absolute":
        before = np.unique(rows.sessions.parents.values)
        if unknown := int((rows.sessions.duration_ps[before] < 0).sum()):
            said.append(f"it is not known how long {unknown} requests took: think times after these may be whole gaps")
    if without_time := rows.dropped.get(WITHOUT_TIME):
        said.append(f"{without_time} rows of the trace have no arrival time and are left out")
    left_out = {reason: count for reason, count in rows.dropped.items() if reason != WITHOUT_TIME}
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        said.append(f"{sum(left_out.values())} rows of the trace are left out: {reasons}")
    first_ps, last_ps = (rows.clock_ps + int(rows.after_ps[row]) for row in (0, -1))
    early_ps = first_ps - Selection(spec.start_s).span_ps[0]
    if (
        spec.start_s > 0 and rows.after_ps[0] != -OUTSIDE_PS and early_ps > last_ps - first_ps
    ):  # by more than the trace lasts: another clock was meant
        begins = _clock_at(rows, 0)
        said.append(f"workload.trace.start_s: {spec.start_s:g} cuts no row: the trace's own clock begins {begins}")
    return tuple(said)


def trace_digest(spec: TraceSpec) -> str:
    """sha256 of the trace's file, or of its folder's files.

    Raises:
        InputError: it cannot be read.
    """
    return file_digest(find_trace(spec.path))


def ticks_warning(arrival_ps: IntArray) -> list[str]:
    """What to say of a trace that is replayed where most of its requests come at the time of another one."""
    gaps = np.diff(arrival_ps)
    zero = int((gaps == 0).sum())
    if zero <= _MOSTLY * len(gaps):
        return []
    return [
        f"{100 * zero / len(gaps):.0f} % of the trace's requests arrive at the same time as the one before (its times "
        "are in ticks): TTFT is that of bursts that may not have been; workload.trace.tick_jitter spreads them"
    ]


def together_warning(trace: Trace) -> list[str]:
    """What to say of sessions that all begin at one time, as those do of which it was not recorded when they began."""
    if trace.sessions is None:
        return []
    _, first = np.unique(trace.sessions.session, return_index=True)
    if len(first) < 2 or np.ptp(trace.arrival_ps[first]) > 0:
        return []
    return [
        f"all {len(first)} sessions of the trace begin at the same time, as if it was not recorded when they did: its "
        "rate is not that of users; workload.arrival says when sessions begin (but with timing: absolute)"
    ]


def slow_warning(spec: TraceSpec, trace: Trace, arrival_ps: IntArray) -> list[str]:
    """What to say of a trace replayed so slowly that its clock may not be in seconds, as it was read."""
    n, span_s = len(arrival_ps), int(arrival_ps[-1] - arrival_ps[0]) / PS_PER_S
    doubtful = trace.doubtful_clock is not None and spec.target_rate_per_s is None
    if not doubtful or n <= _FEW or n - 1 >= _SLOW_PER_S * span_s:
        return []
    return [
        f"the trace offers {(n - 1) / span_s:.2g} requests/s: is its clock in milliseconds? "
        f"Then workload.trace.columns: {{arrival: {trace.doubtful_clock}, unit: ms}} says so"
    ]


def _scale(spec: TraceSpec, path: Path, arrival_ps: IntArray) -> float:
    if spec.target_rate_per_s is None:
        return spec.time_scale or 1.0
    span = int(arrival_ps[-1] - arrival_ps[0])
    if span == 0:
        raise InputError(str(path), "target_rate_per_s needs at least two rows at different times")
    return (len(arrival_ps) - 1) * PS_PER_S / span / spec.target_rate_per_s


def _rescaled(times_ps: IntArray, scale: float, path: Path | None = None) -> IntArray:
    if scale == 1.0:
        return times_ps
    if path is not None and times_ps[-1] * scale > TIME_LIMIT_PS:
        raise InputError(str(path), f"rescaled by {scale:g} it ends after {MAX_TIME_S:g} s, where the clock ends")
    rescaled: IntArray = np.rint(np.minimum(times_ps * scale, TIME_LIMIT_PS)).astype(np.int64)
    return rescaled
