"""Tables of a results folder as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Literal

import numpy as np

from pimserve.cluster.run.compare import SCENARIO_FILE
from pimserve.cluster.run.history import History, recorded_scenario
from pimserve.cluster.run.results import load_numbers, load_sessions, load_table
from pimserve.device_models.plan import FS_PER_S
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.requests import DTYPE, REJECT_REASONS, REJECTED, STATUS_NAMES
from pimserve.scheduler.steplog import SpanColumns, expand

_COUNTS = ("prefill_tokens", "chunks", "outputs")
_WHERE_ANY = ("predicted_tokens", "max_tokens", "swaps", "swapped_blocks", "swap_space_full", "local_prefill")
_SPANS_AT_ONCE = 4096


def export_table(run: Path, what: Literal["requests", "steps"], target: IO[str]) -> int:
    """Write a table of a results folder as CSV; returns the number of rows.

    Raises:
        InputError: the folder has no such table of this version, or its steps took another time than they would in it.
    """
    return _export_requests(run, target) if what == "requests" else _export_steps(run, target)


def _export_requests(run: Path, target: IO[str]) -> int:
    """Write the request table as CSV, by arrival, times in s and empty for never; returns the number of rows.

    `reject_reason` is one of `REJECT_REASONS`, and empty where nothing was rejected; `request` is the number, and
    `session`, where there are any, that of its session, empty for what was injected. With classes, `class`, `tenant`
    and `priority` are there too, and empty likewise.

    In a closed loop of several replicas requests do not arrive in the order of their numbers, nor do injected ones.
    """
    table = load_table(run, "requests", DTYPE)
    numbers = load_numbers(run, len(table))
    arrival = table["arrival_ps"]
    order = np.lexsort((arrival, arrival < 0))
    sessions = load_sessions(run, len(table))
    of_session = [""] * len(table)
    if sessions is not None:
        of_session = ["," if number < 0 else f",{number}" for number in sessions[order].tolist()]
    table, numbers = table[order], numbers[order]
    of_class = _class_fields(run, int(table["class_id"].max(initial=0)))
    left_out = {"class_id", *(name for name in _WHERE_ANY if not table[name].any())}
    names = [name for name in table.dtype.names or () if name not in left_out]
    times = [name for name in names if name.endswith("_ps")]
    header = [*(name.replace("_ps", "_s") for name in names), *(("class", "tenant", "priority") if of_class else ())]
    target.write(",".join(header) + ",request")
    target.write("\n" if sessions is None else ",session\n")
    for row, number, session in zip(table, numbers.tolist(), of_session, strict=True):
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
        fields += of_class[row["class_id"]] if of_class else ()
        target.write(f"{','.join(fields)},{number}{session}\n")
    return len(table)


def _class_fields(run: Path, most: int) -> list[tuple[str, str, str]]:
    """Name, tenant and priority of each class of a run, by its number from 1 up; none where no request has a class.

    Raises:
        InputError: requests are of other classes than the scenario has.
    """
    if not most:
        return []
    classes = recorded_scenario(run).workload.classes or ()
    if most > len(classes):
        raise InputError(str(run / "requests.npy"), f"has requests of class {most}; {SCENARIO_FILE} has {len(classes)}")
    return [("", "", ""), *((each.name, each.owner, str(each.priority)) for each in classes)]


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
