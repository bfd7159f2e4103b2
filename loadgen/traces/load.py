"""A trace as a scenario wants it: rows selected and rescaled."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_TIME_S, PS_PER_S
from pimserve.loadgen.traces.files import file_digest, find_trace
from pimserve.loadgen.traces.formats import TRACE_FORMATS
from pimserve.loadgen.traces.spec import TraceSpec
from pimserve.loadgen.traces.times import TIME_LIMIT_PS, IntArray

_MOSTLY = 0.5  # share of gaps that are zero from which on a trace's times are in ticks


@dataclass(frozen=True)
class Trace:
    """Rows of a trace in file order: arrival (ps, ascending), lengths (tokens), and what became of the rows.

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
    rows = form.read(path, form.columns if spec.columns is None else spec.columns.columns())
    arrival = rows.after_ps + rows.first_ps
    first = int(np.searchsorted(arrival, round(spec.start_s * PS_PER_S)))
    last = len(arrival) if spec.end_s is None else int(np.searchsorted(arrival, round(spec.end_s * PS_PER_S)))
    end = last if spec.max_requests is None else min(last, first + spec.max_requests)
    if end <= first:
        raise InputError(
            str(path), f"no row lies from start_s to end_s; the trace ends at {arrival[-1] / PS_PER_S:g} s"
        )
    dropped = {
        "without a time": rows.without_time,
        "before start_s": first,
        "from end_s on": len(arrival) - last,
        "beyond max_requests": last - end,
    }
    warnings = [said for column, said in form.not_modelled.items() if column in rows.others]
    if rows.without_time:
        warnings.append(f"{rows.without_time} rows of the trace have no arrival time and are left out")
    return Trace(
        arrival_ps=_rescale(spec, path, arrival[first:end] - round(spec.start_s * PS_PER_S)),
        input_tokens=rows.input_tokens[first:end],
        output_tokens=rows.output_tokens[first:end],
        rows_read=len(arrival) + rows.without_time,
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


def _rescale(spec: TraceSpec, path: Path, arrival: IntArray) -> IntArray:
    scale = spec.time_scale or 1.0
    if spec.target_rate_per_s is not None:
        span = int(arrival[-1] - arrival[0])
        if span == 0:
            raise InputError(str(path), "target_rate_per_s needs at least two rows at different times")
        scale = (len(arrival) - 1) * PS_PER_S / span / spec.target_rate_per_s
    if scale == 1.0:
        return arrival
    if arrival[-1] * scale > TIME_LIMIT_PS:
        raise InputError(str(path), f"rescaled by {scale:g} it ends after {MAX_TIME_S:g} s, where the clock ends")
    rescaled: IntArray = np.rint(arrival * scale).astype(np.int64)
    return rescaled
