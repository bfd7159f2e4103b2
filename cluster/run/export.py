"""Tables of a results folder as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Literal

import numpy as np

from pimserve.cluster.run.history import History
from pimserve.cluster.run.results import load_numbers, load_table
from pimserve.device_models.plan import FS_PER_S
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.requests import REJECT_REASONS, REJECTED, STATUS_NAMES
from pimserve.scheduler.steplog import SpanColumns, expand

_COUNTS = ("prefill_tokens", "chunks", "outputs")
_SPANS_AT_ONCE = 4096


def export_table(run: Path, what: Literal["requests", "steps"], target: IO[str]) -> int:
    """Write a table of a results folder as CSV; returns the number of rows.

    Raises:
        InputError: the folder has no such table, or its steps took another time than they would in this version.
    """
    return _export_requests(run, target) if what == "requests" else _export_steps(run, target)


def _export_requests(run: Path, target: IO[str]) -> int:
    """Write the request table as CSV, by arrival, times in s and empty for never; returns the number of rows.

    `reject_reason` is max_model_len or kv_cache, and empty where nothing was rejected; `request` is the number.

    In a closed loop of several replicas requests do not arrive in the order of their numbers, nor do injected ones.
    """
    table = load_table(run, "requests")
    numbers = load_numbers(run, len(table))
    arrival = table["arrival_ps"]
    order = np.lexsort((arrival, arrival < 0))
    table, numbers = table[order], numbers[order]
    names = list(table.dtype.names or ())
    times = [name for name in names if name.endswith("_ps")]
    target.write(",".join(name.replace("_ps", "_s") for name in names) + ",request\n")
    for row, number in zip(table, numbers.tolist(), strict=True):
        fields = []
        for name in names:
            value = row[name].item()
            if name in times:
                fields.append("" if value < 0 else f"{value // PS_PER_S}.{value % PS_PER_S:012d}")
            elif name == "status":
                fields.append(STATUS_NAMES[value])
            elif name == "reject_reason":
                fields.append(REJECT_REASONS[value] if row["status"] == REJECTED else "")
            else:
                fields.append(str(value))
        target.write(f"{','.join(fields)},{number}\n")
    return len(table)


def _export_steps(run: Path, target: IO[str]) -> int:
    """Write every single step of a run as CSV; returns their number.

    Step times are worked out from the spans and the scenario's cost plan, as the run itself did.
    """
    history = History.load(run)
    target.write(",".join(("replica", "step", "start_s", "duration_s", "decodes", "context", *_COUNTS)) + "\n")
    written = 0
    for replica, spans in enumerate(history.spans):
        first = 0
        for begin in range(0, len(spans), _SPANS_AT_ONCE):
            for rows, costs in history.stretches(replica, begin, begin + _SPANS_AT_ONCE, first):
                first += _write_steps(replica, rows, costs, first, target)
        written += first
    return written


def _write_steps(number: int, rows: SpanColumns, costs: ReplicaCosts, first: int, target: IO[str]) -> int:
    """Write the single steps of spans of a replica; returns how many there are."""
    steps = expand(costs, rows, rows.first_steps(first))
    row_of = np.repeat(np.arange(len(rows.steps)), rows.steps)
    before = np.cumsum(steps.duration_fs) - steps.duration_fs
    row_begins = (np.cumsum(rows.steps) - rows.steps)[row_of]
    start_s = rows.begin_ps[row_of] / PS_PER_S + (before - before[row_begins]) / FS_PER_S
    columns = [
        np.arange(first, first + len(row_of)).tolist(),
        start_s.tolist(),
        (steps.duration_fs / FS_PER_S).tolist(),
        steps.decodes.tolist(),
        steps.context.tolist(),
        *(getattr(rows, name)[row_of].tolist() for name in _COUNTS),
    ]
    for step, start, duration, *rest in zip(*columns, strict=True):
        target.write(f"{number},{step},{start:.12f},{duration:.15f},{','.join(map(str, rest))}\n")
    return len(row_of)
