"""What a finished run did over time, worked out from its results folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.run.account import check_account
from pimserve.cluster.run.read_summary import load_document, summary_of_document
from pimserve.cluster.run.results import SPAN, load_longest_gaps, load_numbers, load_sessions, load_table
from pimserve.cluster.run.summary_schema import Summary
from pimserve.cluster.scenario.document import Scenario, load_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.device_models.slowdown import NORMAL
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.at_clients import Senders
from pimserve.scheduler.clients import NO_SESSIONS
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.requests import DTYPE, FINISHED, STATUS_NAMES
from pimserve.scheduler.run_requests import dealt_out
from pimserve.scheduler.steplog import SpanColumns
from pimserve.scheduler.window import MeasuredWindow

_ROUNDING = 2**-51  # of seconds that were divided once, and are multiplied again
_MOST = 2**62  # so that sums of two do not overflow
_LATEST_PS = 2**63 - 2**53  # begin of a span, so that its end does not overflow: `_MOST` fs are less than 2**53 ps


def recorded_scenario(folder: Path) -> Scenario:
    """The scenario that a run had, from its results folder.

    Raises:
        InputError: it cannot be read; the file is named with the key.
    """
    file = folder / "scenario.yaml"
    try:
        return load_scenario(file)
    except InputError as error:
        raise error.moved(lambda where: where if where.startswith(str(file)) else f"{file}: {where}") from None


@dataclass(frozen=True)
class History:
    """A run's tables, and what its steps cost.

    Args:
        folder: the results folder.
        summary: its summary, of which that is checked on which the history hangs.
        prepared: what ran, of the scenario as resolved.
        costs: of each replica's steps at normal speed.
        requests: the request table.
        spans: by replica, spans of its steps in their order.
    """

    folder: Path
    summary: Summary
    prepared: Prepared
    costs: tuple[ReplicaCosts, ...]
    requests: NDArray[Any]
    spans: tuple[NDArray[Any], ...]

    @classmethod
    def load(cls, folder: Path) -> History:
        """Read a results folder.

        Raises:
            InputError: it has no steps, is damaged, or was written by another version.
        """
        document = load_document(folder)
        check_account(document, folder / "summary.json")
        summary = summary_of_document(document)
        prepared = prepare(recorded_scenario(folder))
        costs: list[ReplicaCosts] = []
        for pool in prepared.pools:
            if summary.by_pool().get(pool.name, summary).plan_digest != pool.plan.digest():
                raise InputError(
                    str(folder),
                    "its steps cannot be worked out: plan_digest in summary.json is not that of scenario.yaml "
                    "(written by another version of pimserve?)",
                )
            first = pool.costs(prepared.routing, prepared.scenario.run.seed)
            costs += [first.of_replica(replica) for replica in pool.numbers]
        requests, steps = load_table(folder, "requests", DTYPE), load_table(folder, "steps", SPAN)
        _check_requests(requests, summary, len(costs), folder / "requests.npy")
        _check_steps(steps, summary, len(costs), folder / "steps.npy")
        if (kv_tokens := prepared.kv_tokens) != summary.kv.capacity_tokens:
            raise InputError(
                str(folder),
                f"its KV cache held {summary.kv.capacity_tokens:,} tokens in all, and that of scenario.yaml holds "
                f"{kv_tokens:,} (written by another version of pimserve?): run scenario.yaml again",
            )
        ordered = np.argsort(steps["replica"], kind="stable")
        ends = np.cumsum(np.bincount(steps["replica"], minlength=len(costs)))
        spans = tuple(steps[part] for part in np.split(ordered, ends[:-1]))
        for mine in spans:
            if (mine["begin_ps"][1:] < ends_ps(mine)[:-1]).any():
                raise InputError(str(folder / "steps.npy"), "is damaged: steps begin before those before them end")
        return cls(folder, summary, prepared, tuple(costs), requests, spans)

    @property
    def end_s(self) -> float:
        """Simulated seconds at the end."""
        return self.summary.end_s

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Of the request table."""
        return {str(name): self.requests[name] for name in self.requests.dtype.names or ()}

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """(n,) number of the request of each row."""
        return load_numbers(self.folder, len(self.requests))

    @cached_property
    def longest_gap_ps(self) -> NDArray[np.int64] | None:
        """(n,) the longest gap between two tokens of each request; None where no limit is of it."""
        wanted = self.prepared.objectives.of_longest_gaps
        return load_longest_gaps(self.folder, len(self.requests)) if wanted else None

    @cached_property
    def senders(self) -> Senders:
        """Who sent requests, as far as they waited for answers."""
        workload, sessions = self.prepared.scenario.workload, load_sessions(self.folder, len(self.requests))
        thinking = workload.mode == "closed" and workload.think_time_s is not None
        most_active = None if workload.sessions is None else workload.sessions.max_active
        return Senders(
            NO_SESSIONS if sessions is None else sessions,
            users=workload.concurrency or 0 if thinking else 0,
            most_in_flight=workload.max_concurrency or 0,
            most_active=most_active or 0,
        )

    @cached_property
    def measured(self) -> MeasuredWindow:
        """What latencies and the SLO are of."""
        window = self.summary.window
        if window.whole_run:
            return MeasuredWindow()
        start_fs = round(window.start_s * FS_PER_S)
        workload = self.prepared.scenario.workload
        if workload.mode == "closed":
            think = workload.think_time_s is not None
            replicas, spec = [pool.replicas for pool in self.prepared.pools], self.prepared.scenario.scheduler
            return MeasuredWindow(start_fs, closed=dealt_out(replicas, spec, self.prepared.faults, think=think))
        if workload.closed_sessions:
            return MeasuredWindow(start_fs)
        # An end at the last arrival leaves it out: that may not hang on how its seconds were rounded.
        end_ps, last_ps = round(window.end_s * PS_PER_S), int(self.requests["arrival_ps"].max(initial=0))
        if abs(end_ps - last_ps) <= 1 + window.end_s * PS_PER_S * _ROUNDING:
            end_ps = last_ps
        return MeasuredWindow(start_fs, end_ps * FS_PER_PS)

    def check_digest(self, steps: Sequence[str]) -> None:
        """See that the tables are those that the run wrote.

        Args:
            steps: digest of all steps of each replica, in their order (`StepLog.digest`).

        Raises:
            InputError: they are not.
        """
        whole = hashlib.sha256()
        for digest in steps:
            whole.update(bytes.fromhex(digest))
        whole.update(np.ascontiguousarray(self.requests).data)
        if whole.hexdigest() != self.summary.digest:
            raise InputError(
                str(self.folder), "requests.npy or steps.npy was changed: digest in summary.json is of other ones"
            )

    def stretches(
        self, replica: int, begin: int, end: int, first_step: int
    ) -> Iterator[tuple[SpanColumns, ReplicaCosts]]:
        """Spans begin to end of a replica, in stretches of one speed and one law of routing each, and what they cost.

        Args:
            replica: its number.
            begin: the first span.
            end: after the last.
            first_step: the number of the first span's first step.
        """
        block = self.spans[replica][begin:end]
        if not len(block):
            return
        faults = self.summary.faults
        slowdowns = [] if faults is None else faults.slowdowns
        slowed = [(slow.first_step, slow.factor) for slow in reversed(slowdowns) if slow.replica == replica]
        steps = first_step + np.cumsum(block["steps"]) - block["steps"]
        factors = np.array([next((factor for at, factor in slowed if at <= step), 1.0) for step in steps.tolist()])
        epochs = self.prepared.routing.epochs(block["begin_ps"])
        cuts = np.flatnonzero(np.diff(factors) + np.diff(epochs)) + 1
        for part, factor in zip(np.split(block, cuts), (factors[cut] for cut in (0, *cuts)), strict=True):
            rows = SpanColumns(*(np.ascontiguousarray(part[name]) for name in SpanColumns._fields))
            costs = self.costs[replica].slowed(round(factor * NORMAL))
            yield rows, costs.at(int(part["begin_ps"][0]) * FS_PER_PS)


def ends_ps(spans: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) when spans of steps end, ps, rounded down as their beginnings are."""
    ends: NDArray[np.int64] = spans["begin_ps"] + (spans["begin_rest_fs"] + spans["duration_fs"]) // FS_PER_PS
    return ends


def _check_requests(requests: NDArray[Any], summary: Summary, replicas: int, file: Path) -> None:
    """See that requests can be counted: by replica, by status, and in the order of what happened to them."""
    if (total := int((requests["arrival_ps"] >= 0).sum())) != (told := summary.requests.total):
        raise InputError(str(file), f"is of another run: total {total:,}, where summary.json has {told:,}")
    _check_range(requests["replica"], 0, replicas - 1, "replica", file)
    _check_range(requests["status"], 0, len(STATUS_NAMES) - 1, "status", file)
    done = requests[requests["status"] == FINISHED]
    moments = [done[f"{name}_ps"] for name in ("arrival", "first_scheduled", "first_token", "finish")]
    moments = [np.zeros_like(moments[0]), *moments, np.full_like(moments[0], _latest_ps(summary))]
    if any((later < earlier).any() for earlier, later in pairwise(moments)):
        raise InputError(str(file), "is damaged: requests finish before they begin, or after the run's end")


def _check_steps(steps: NDArray[Any], summary: Summary, replicas: int, file: Path) -> None:
    """See that no column holds what no span of steps has."""
    _check_range(steps["replica"], 0, replicas - 1, "replica", file)
    for name in SpanColumns._fields:
        most = _LATEST_PS if name == "begin_ps" else _MOST
        _check_range(steps[name], int(name == "steps"), most, name, file)
    if (total := sum(steps["steps"].tolist())) != (told := summary.batch.steps):
        raise InputError(str(file), f"is of another run: {total:,} steps, where summary.json has {told:,}")
    if len(steps) and ends_ps(steps).max() > _latest_ps(summary):
        raise InputError(str(file), "has steps after the end of the run")


def _check_range(column: NDArray[Any], least: int, most: int, name: str, file: Path) -> None:
    if len(column) and not least <= column.min() <= column.max() <= most:
        raise InputError(str(file), f"is damaged: {name} of a row is not between {least} and {most}")


def _latest_ps(summary: Summary) -> int:
    """The end of the run, and what its figure may have been rounded by."""
    return round(summary.end_s * (1 + 1e-12) * PS_PER_S) + 1
