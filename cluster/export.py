"""Tables of a results folder as CSV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.results import load_summary, load_table
from pimserve.cluster.run import prepare_pools
from pimserve.cluster.scenario import Scenario, load_scenario
from pimserve.device_models.plan import FS_PER_S
from pimserve.device_models.routing import ExpertPools
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.requests import STATUS_NAMES
from pimserve.scheduler.slowdown import NORMAL
from pimserve.scheduler.steplog import Rows, expand

_COUNTS = ("prefill_tokens", "chunks", "outputs")


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
    spans, summary = load_table(run, "steps"), load_summary(run)
    costs = _costs(run, scenario, summary)
    target.write(",".join(("replica", "step", "start_s", "duration_s", "decodes", "context", *_COUNTS)) + "\n")
    written = 0
    for number, replica in enumerate(costs):
        mine = spans[spans["replica"] == number]
        first = 0
        for begin in range(0, len(mine), 4096):
            block = mine[begin : begin + 4096]
            for part, cost in _at_their_speed(block, first, replica, _slowdowns(summary, number)):
                first += _write_steps(number, part, cost, first, target)
        written += first
    return written


def _costs(run: Path, scenario: Scenario, summary: dict[str, Any]) -> list[ReplicaCosts]:
    """What steps cost on each replica."""
    _, pools, routing = prepare_pools(scenario)
    seed = scenario.run.seed
    found: list[ReplicaCosts] = []
    for pool in pools:
        plan = pool.replica.plan
        said = summary["pools"][pool.name] if len(pools) > 1 and "pools" in summary else summary
        if said.get("plan_digest") != plan.digest():
            raise InputError(
                str(run),
                "its steps cannot be worked out: plan_digest in summary.json is not that of scenario.yaml "
                "(written by another version of pimserve?)",
            )
        outcomes = ExpertPools(plan.experts, routing, seed) if plan.experts is not None else None
        for _ in range(pool.replicas):
            found.append(ReplicaCosts(plan, outcomes, replica=len(found), seed=seed, exact=routing.mode == "exact"))
    return found


def _slowdowns(summary: dict[str, Any], replica: int) -> list[tuple[int, float]]:
    """From which steps on a replica's steps take how many times as long, the last one first."""
    told = summary.get("faults", {}).get("slowdowns", ())
    return [(each["first_step"], each["factor"]) for each in told if each["replica"] == replica][::-1]


def _at_their_speed(
    block: NDArray[Any], first: int, costs: ReplicaCosts, slowdowns: list[tuple[int, float]]
) -> Iterator[tuple[NDArray[Any], ReplicaCosts]]:
    """Spans, the first of which begins with step `first`, in stretches of one speed each."""
    steps = first + np.cumsum(block["steps"]) - block["steps"]
    factors = np.array([next((factor for begin, factor in slowdowns if begin <= step), 1.0) for step in steps.tolist()])
    cuts = np.flatnonzero(np.diff(factors)) + 1
    for part, factor in zip(np.split(block, cuts), (factors[cut] for cut in (0, *cuts)), strict=True):
        yield part, costs.slowed(round(factor * NORMAL))


def _write_steps(number: int, block: NDArray[Any], costs: ReplicaCosts, first: int, target: IO[str]) -> int:
    """Write the single steps of spans of a replica; returns how many there are."""
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
        *(getattr(rows, name)[row_of].tolist() for name in _COUNTS),
    ]
    for step, start, duration, *rest in zip(*columns, strict=True):
        target.write(f"{number},{step},{start:.12f},{duration:.15f},{','.join(map(str, rest))}\n")
    return len(row_of)
