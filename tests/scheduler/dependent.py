"""Runs of requests that depend on others: sessions, users of a closed loop, and a cap on requests in flight."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pimserve.arrays import IntArray
from pimserve.loadgen.turns import NOT_YET_PS, Turns, by_arrival
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.clients import NO_SESSIONS
from pimserve.scheduler.faults import FaultSpec
from pimserve.scheduler.requests import FINISHED, NEVER, REJECTED, SERVABLE, RequestTable
from pimserve.scheduler.simulation import Deployment

from .batching_strategies import batching_cases
from .law_runs import BLIND, Run, workload
from .pool_runs import Pooled
from .strategies import cases
from .test_faults import faulty
from .test_pool_faults import faulty as faulty_pools

PS_PER_MS = 10**9
MANY = 12  # requests, so that steps of prompts come between decodes of others more than once
THINKS = st.sampled_from([0, 0, 1, PS_PER_MS, 7 * PS_PER_MS + 3]) | st.integers(0, 300 * PS_PER_MS)


@dataclass
class Dependent:
    """A workload with its replicas, or pools of them, and what happens to these."""

    workload: Workload
    on: Any
    faults: FaultSpec

    @property
    def replicas(self) -> int:
        return self.on.prefill + self.on.decode.replicas if isinstance(self.on, Pooled) else self.on.replicas

    @property
    def in_one_shard(self) -> bool:
        """Whether the router looks at all replicas at each arrival."""
        return self.on.router not in BLIND and not self.on.interval_s

    def run(self, deployment: Deployment = Deployment()) -> Run:  # noqa: B008 frozen
        how: dict[str, Any] = {"workload": self.workload, "faults": self.faults}
        if isinstance(self.on, Pooled):
            return self.on.run(deployment, **how)
        case, on = self.on.case, self.on
        return Run(case, on.replicas, on.router, report_interval_s=on.interval_s, deployment=deployment, **how)


@st.composite
def graphs(draw: st.DrawFn, load: Workload) -> Workload:
    """The same requests, of which many follow one or more of those before them."""
    n = len(load.arrival_ps)
    first = draw(st.integers(1, max(1, n)))
    parents = [sorted(draw(st.sets(st.integers(0, i - 1), max_size=2))) if i >= first else [] for i in range(n)]
    think = np.array(draw(st.lists(THINKS, min_size=n, max_size=n)), np.int64)
    turns = Turns.of(parents, think, np.arange(n))
    order = by_arrival(load.arrival_ps, turns)
    turns = turns.taken(order)
    return replace(
        load,
        arrival_ps=np.where(turns.followers, NOT_YET_PS, load.arrival_ps[order]),
        input_tokens=load.input_tokens[order],
        output_tokens=load.output_tokens[order],
        turns=turns,
    )


@st.composite
def active_sessions(draw: st.DrawFn, load: Workload, most: int) -> Workload:
    """The same requests, in sessions of one first turn each, of which others follow one or two; few are active."""
    n = len(load.arrival_ps)
    firsts = draw(st.integers(1, max(1, n)))
    session = np.array([i if i < firsts else draw(st.integers(0, firsts - 1)) for i in range(n)], np.int64)
    parents = []
    for i in range(n):
        before = [j for j in range(i) if session[j] == session[i]]
        parents.append(sorted(draw(st.sets(st.sampled_from(before), min_size=1, max_size=2))) if before else [])
    think = np.array(draw(st.lists(THINKS, min_size=n, max_size=n)), np.int64)
    due_ps = np.where(np.arange(n) < firsts, np.sort(load.arrival_ps), NOT_YET_PS)
    planned = draw(st.booleans())
    if not planned:
        due_ps[:firsts] = 0
    turns = Turns.of(parents, think, session)
    return replace(load, arrival_ps=due_ps, turns=turns, max_active_sessions=most, starts_planned=planned)


KINDS = ("sessions", "active sessions", "users", "cap")


_APART, _TOGETHER = faulty(batching_cases(cases(least=MANY)), ever=False), faulty(cases(), ever=False)
_IN_POOLS = faulty_pools(ever=False)


@st.composite
def dependent(draw: st.DrawFn, kinds: Sequence[str] = KINDS, *, pooled: bool = False) -> Dependent:
    """Any of them, on one to three replicas or pools of them, with up to six faults.

    Half of those that may be without pools are many requests whose prompts have steps apart from decodes.
    """
    if pooled or draw(st.integers(0, 3)) == 0:
        on: Any = draw(_IN_POOLS)
    else:
        apart = draw(st.sampled_from([False, True, True]))
        on = draw(_APART if apart else _TOGETHER)
    faults = on.faults if draw(st.booleans()) else FaultSpec()
    on = getattr(on, "pools", on)
    load = workload(on.case)
    n = len(load.arrival_ps)
    kind = draw(st.sampled_from(kinds))
    most = draw(st.integers(1, 5))
    if kind == "sessions":
        load = draw(graphs(load))
    elif kind == "active sessions":
        load = draw(active_sessions(load, most))
    elif kind == "users":
        think = np.array(draw(st.lists(THINKS, min_size=n, max_size=n)), np.int64)
        load = replace(load, arrival_ps=np.zeros(n, np.int64), concurrency=most, think_ps=think)
    else:
        load = replace(load, max_concurrency=most)
    return Dependent(load, on, faults)


def answers(run: Run) -> list[int]:
    """When whoever follows a request could reach the router, if there was no think time; ps."""
    frontend_ps = run.served.pools[0].plan.frontend_ps
    table = run.table
    return [
        int(row["finish_ps"]) + frontend_ps + 1 if row["status"] == FINISHED else int(row["arrival_ps"])
        for row in table
    ]


def arrivals(run: Run, load: Workload, alone_ps: IntArray | None = None) -> IntArray:
    """When requests must have reached the router, ps, by the ends of the run; `alone_ps` of those without parents."""
    table, ends = run.table, answers(run)
    servable = table["reject_reason"] == SERVABLE
    if load.max_active_sessions is not None:
        return _arrivals_of_active(load, run, ends, load.arrival_ps if alone_ps is None else alone_ps)
    if load.turns is not None:
        turns = load.turns
        expected = load.arrival_ps.copy() if alone_ps is None else alone_ps.copy()
        for request in np.flatnonzero(turns.followers).tolist():
            mine = turns.parents[turns.begins[request] : turns.begins[request + 1]]
            expected[request] = max(ends[parent] for parent in mine.tolist()) + turns.think_ps[request]
        return expected
    if load.think_ps is not None:
        waiting: list[int] = []
        expected = np.zeros(len(ends), np.int64)
        for request in range(len(ends)):
            if request >= (load.concurrency or 0):
                waiting.sort()
                expected[request] = waiting.pop(0) + load.think_ps[request]
            waiting.append(ends[request])
        return expected
    expected = load.arrival_ps.copy()
    most, in_flight = load.max_concurrency or 0, []
    for request in range(len(ends)):
        if request:
            expected[request] = max(expected[request], expected[request - 1])
        if len(in_flight) >= most:  # there is room when all but the last `most` - 1 of those before have ended
            expected[request] = max(expected[request], sorted(in_flight)[-most])
        if servable[request]:
            in_flight.append(ends[request])
    return expected


def _arrivals_of_active(load: Workload, run: Run, ends: list[int], due_ps: IntArray) -> IntArray:
    """Each session in turn begins when it is due and fewer than so many of those before it go on."""
    turns, most = load.turns, load.max_active_sessions
    assert turns is not None
    assert most is not None
    rejected = run.table["reject_reason"] != SERVABLE
    expected, over = due_ps.copy(), list[int]()
    for first in np.flatnonzero(~turns.followers).tolist():
        if len(over) >= most:
            expected[first] = max(expected[first], sorted(over)[-most])
        last_ps = 0
        for request in np.flatnonzero(turns.session == turns.session[first]).tolist():
            if request != first:
                mine = turns.parents[turns.begins[request] : turns.begins[request + 1]].tolist()
                answered = [int(expected[one]) if rejected[one] else ends[one] for one in mine]
                expected[request] = max(answered) + turns.think_ps[request]
            last_ps = max(last_ps, int(expected[request]) if rejected[request] else ends[request])
        over.append(last_ps)
    return expected


class Script:
    """Clients that send every request at a time that is known beforehand, (n,) ps."""

    roots = 0
    here = routed_here = False
    rows_stay = closed = False

    def __init__(self, at_ps: IntArray, table: RequestTable, session: IntArray = NO_SESSIONS) -> None:
        self.session = session
        self._coming = sorted(zip(at_ps.tolist(), range(len(at_ps)), strict=True))
        self._table = table

    @property
    def left(self) -> bool:
        return bool(self._coming)

    @property
    def next_ps(self) -> int | None:
        return self._coming[0][0] if self._coming else None

    def answered(self, request: int, at_ps: int) -> None:
        pass

    def settle(self, known_ps: int) -> None:
        pass

    def safe_ps(self, known_ps: int, first_root: int, end_ps: int) -> int:
        return end_ps

    def sent(self, roots: IntArray, before_ps: int) -> list[tuple[int, int]]:
        now = [coming for coming in self._coming if coming[0] < before_ps]
        self._coming = self._coming[len(now) :]
        for at_ps, request in now:
            self._table["arrival_ps"][request] = at_ps
        return now


def ended(run: Run) -> bool:
    return bool((np.isin(run.table["status"], (FINISHED, REJECTED)) & (run.table["arrival_ps"] != NEVER)).all())
