"""Tables of a results folder as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Literal

import numpy as np

from pimserve.cluster.results import load_summary, load_table
from pimserve.cluster.run import prepare
from pimserve.cluster.scenario import load_scenario
from pimserve.device_models.plan import FS_PER_S
from pimserve.device_models.routing import ExpertPools
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.requests import STATUS_NAMES
from pimserve.scheduler.steplog import Rows, expand


def export_table(run: Path, what: Literal["requests", "steps"], target: IO[str]) -> int:
    """Write a table of a results folder as CSV; returns the number of rows.

    Raises:
        InputError: the folder has no such table, or its steps took another time than they would in this version.
    """
    return _export_requests(run, target) if what == "requests" else _export_steps(run, target)


def _export_requests(run: Path, target: IO[str]) -> int:
    """Write the request table as CSV, times in s and empty for never; returns the number of rows."""
    table = load_table(run, "requests")
    names = list(table.dtype.names or ())
    times = [name for name in names if name.endswith("_ps")]
    target.write(",".join(name.replace("_ps", "_s") for name in names) + "\n")
    for row in table:
        fields = []
        for name in names:
            value = row[name].item()
            if name in times:
                fields.append("" if value < 0 else f"{value // PS_PER_S}.{value % PS_PER_S:012d}")
            else:
                fields.append(STATUS_NAMES[value] if name == "status" else str(value))
        target.write(",".join(fields) + "\n")
    return len(table)


def _export_steps(run: Path, target: IO[str]) -> int:
    """Write every single step of a run as CSV; returns their number.

    Step times are worked out from the spans and the scenario's cost plan, as the run itself did.
    """
    scenario = load_scenario(run / "scenario.yaml")
    _, replica, routing = prepare(scenario)
    spans = load_table(run, "steps")
    if load_summary(run).get("plan_digest") != replica.plan.digest():
        raise InputError(
            str(run),
            "its steps cannot be worked out: plan_digest in summary.json is not that of scenario.yaml "
            "(written by another version of pimserve?)",
        )
    plan, seed = replica.plan, scenario.run.seed
    pools = ExpertPools(plan.experts, routing, seed) if plan.experts is not None else None
    names = ("decodes", "context", "prefill_tokens", "chunks", "outputs")
    target.write(",".join(("replica", "step", "start_s", "duration_s", *names)) + "\n")
    written = 0
    for number in range(scenario.cluster.replicas):
        costs = ReplicaCosts(plan, pools, replica=number, seed=seed, exact=routing.mode == "exact")
        mine = spans[spans["replica"] == number]
        first = 0
        for begin in range(0, len(mine), 4096):
            block = mine[begin : begin + 4096]
            rows = Rows(*(np.ascontiguousarray(block[name]) for name in Rows._fields))
            steps = expand(costs, rows, first)
            row_of = np.repeat(np.arange(len(block)), rows.steps)
            before = np.cumsum(steps.duration_fs) - steps.duration_fs
            row_begins = (np.cumsum(rows.steps) - rows.steps)[row_of]
            start_s = block["begin_ps"][row_of] / PS_PER_S + (before - before[row_begins]) / FS_PER_S
            columns = [
                np.arange(first, first + len(row_of)).tolist(),
                start_s.tolist(),
                (steps.duration_fs / FS_PER_S).tolist(),
                steps.decodes.tolist(),
                steps.context.tolist(),
                *(getattr(rows, name)[row_of].tolist() for name in names[2:]),
            ]
            for step, start, duration, *rest in zip(*columns, strict=True):
                target.write(f"{number},{step},{start:.12f},{duration:.15f},{','.join(map(str, rest))}\n")
            first += len(row_of)
        written += first
    return written
