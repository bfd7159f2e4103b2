"""A trace as a scenario wants it: rows selected, the first of them at 0, and rescaled.

A trace has a clock of its own, which may show seconds since 1970; `start_s` and `end_s` are of that.
"""

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np

from pimserve.arrays import IntArray
from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_TIME_S, PS_PER_S
from pimserve.loadgen.traces.formats import TRACE_FORMATS
from pimserve.loadgen.traces.rows import Selection
from pimserve.loadgen.traces.times import TIME_LIMIT_PS
from pimserve.loadgen.traces.trace_files import file_digest, find_trace
from pimserve.loadgen.traces.trace_spec import TraceSpec

_SLOW_PER_S, _FEW = 0.01, 20  # rate below which a clock in seconds is doubted, from more rows than these
_MOSTLY = 0.5  # share of gaps that are zero from which on a trace's times are in ticks


@dataclass(frozen=True)
class Trace:
    """Rows that are used, in file order: arrival (ps after the first of them), lengths (tokens); what became of all.

    `warnings`: what is in the trace and not in the simulation.
    """

    arrival_ps: IntArray
    input_tokens: IntArray
    output_tokens: IntArray
    rows_read: int
    rows_dropped: dict[str, int]
    warnings: tuple[str, ...] = ()


def load_trace(spec: TraceSpec) -> Trace:
    """Read, select and rescale a trace. Raises InputError with "path:line" for a bad row."""
    path, form = find_trace(spec.path), TRACE_FORMATS[spec.format]
    selection = Selection(spec.start_s, spec.end_s, spec.max_requests)
    rows = form.read(path, form.columns if spec.columns is None else spec.columns.columns(), selection)
    first, last = selection.bounds(rows.after_ps, rows.first_ps)
    end = last if spec.max_requests is None else min(last, first + spec.max_requests)
    if end <= first:
        begins_s, ends_s = (Decimal(rows.first_ps + int(rows.after_ps[row])) / PS_PER_S for row in (0, -1))
        raise InputError(
            str(path),
            f"no row lies from start_s to end_s; the trace ends at {ends_s:f} s, and begins at {begins_s:f} s",
        )
    dropped = {
        "without a time": rows.without_time,
        "before start_s": first,
        "from end_s on": len(rows) - last,
        "beyond max_requests": last - end,
    }
    warnings = [said for column, said in form.not_modelled.items() if column in rows.others]
    if rows.without_time:
        warnings.append(f"{rows.without_time} rows of the trace have no arrival time and are left out")
    early_ps = rows.first_ps - Decimal(repr(spec.start_s)) * PS_PER_S
    if spec.start_s > 0 and early_ps > int(rows.after_ps[-1]):  # by more than the trace lasts: another clock was meant
        begins_s = Decimal(rows.first_ps) / PS_PER_S
        warnings.append(
            f"workload.trace.start_s: {spec.start_s:g} cuts no row: the trace's own clock begins at {begins_s:f} s"
        )
    return Trace(
        arrival_ps=_rescale(spec, path, rows.after_ps[first:end] - rows.after_ps[first]),
        input_tokens=rows.input_tokens[first:end],
        output_tokens=rows.output_tokens[first:end],
        rows_read=len(rows) + rows.without_time,
        rows_dropped={reason: count for reason, count in dropped.items() if count},
        warnings=tuple(warnings),
    )


def trace_digest(spec: TraceSpec) -> str:
    """sha256 of the trace's file.

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
        "are in ticks): TTFT is that of bursts that may not have been"
    ]


def slow_warning(spec: TraceSpec, arrival_ps: IntArray) -> list[str]:
    """What to say of a trace replayed so slowly that its clock may not be in seconds, as it was read."""
    n, span_s = len(arrival_ps), int(arrival_ps[-1] - arrival_ps[0]) / PS_PER_S
    form = TRACE_FORMATS[spec.format]
    columns = form.columns if spec.columns is None else spec.columns.columns()
    doubtful = form.open_names and columns.clock_name == "arrival_s" and spec.target_rate_per_s is None
    if not doubtful or n <= _FEW or n - 1 >= _SLOW_PER_S * span_s:
        return []
    return [
        f"the trace offers {(n - 1) / span_s:.2g} requests/s: is its clock in milliseconds? "
        f"Then workload.trace.columns: {{arrival_ms: {columns.arrival}}} says so"
    ]


def _rescale(spec: TraceSpec, path: Path, arrival: IntArray) -> IntArray:
    scale = spec.time_scale or 1.0
    if spec.target_rate_per_s is not None:
        span = int(arrival[-1])
        if span == 0:
            raise InputError(str(path), "target_rate_per_s needs at least two rows at different times")
        scale = (len(arrival) - 1) * PS_PER_S / span / spec.target_rate_per_s
    if scale == 1.0:
        return arrival
    if arrival[-1] * scale > TIME_LIMIT_PS:
        raise InputError(str(path), f"rescaled by {scale:g} it ends after {MAX_TIME_S:g} s, where the clock ends")
    rescaled: IntArray = np.rint(arrival * scale).astype(np.int64)
    return rescaled
