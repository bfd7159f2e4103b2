"""Requests that are sent when all that they follow have been answered: turns of sessions, steps of agents."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.loadgen.turns import Turns
from pimserve.scheduler.requests import FINISHED, FOREVER, NEVER, SERVABLE, RequestTable

if TYPE_CHECKING:
    from pimserve.scheduler.follow_bounds import FollowBounds


class Sessions:
    """Requests that are sent when others have ended.

    Args:
        turns: who follows whom.
        table: all requests; those without parents first, by arrival.
        frontend_ps: between a request's being sent and its arrival.
        here: all are served in one shard, whose replicas themselves tell of ends.
        routed_here: where the shard routes who follows; else its one replica takes all of them (`arrives`).
    """

    rows_stay = True
    closed = False
    bounds: FollowBounds | None = None  # of ends that are not known, where replicas are elsewhere

    def __init__(
        self, turns: Turns, table: RequestTable, frontend_ps: int, *, here: bool = False, routed_here: bool = False
    ) -> None:
        self.turns = turns
        self.session = turns.session
        self._table = table
        self.here = here
        self.routed_here = routed_here
        self.beside_ps = frontend_ps + 1  # from the end of a request until a follower that is sent at once is here
        self.starts = self.roots = int((~turns.followers).sum())  # first turns
        begins, children = turns.children()
        self._begins, self._children = memoryview(begins.data), memoryview(children.data)
        self._think_ps = memoryview(turns.think_ps.data)
        self.least_ps = _least_of_children(turns, begins, children)
        self._reset()

    def _reset(self) -> None:
        turns = self.turns
        self._missing = memoryview(np.diff(turns.begins).data)  # parents that have not been answered
        self._latest_ps = memoryview(np.zeros(len(turns), np.int64).data)  # answer of a parent
        self.coming: list[tuple[int, int]] = []  # heap: (arrival, request) of those whose parents were all answered
        self.refused: list[tuple[int, int]] = []  # with one replica that takes all, those whom it will not serve
        # Heaps from which who is not there any more is taken out late: (least think time of a follower, request) of
        # those under way, and when a follower may arrive at the earliest of those that have yet to.
        self._under_way: list[tuple[int, int]] = []
        self._followed: list[tuple[int, int]] = []
        self.ended = bytearray(len(turns))
        self._roots_sent = 0
        if self.bounds is not None:
            self.bounds.reset()

    def finished(self, request: int, finish_ps: int) -> int:
        """A request has finished here; returns the time, fs, at which its replica has to stop for who comes then."""
        self.answered(request, finish_ps + self.beside_ps)
        return self.coming[0][0] * FS_PER_PS if self.routed_here and self.coming else FOREVER

    def arrives(self, heap: list[tuple[int, int]]) -> int:
        """The first one of `coming` or of `refused` does so, where ends are told here."""
        at_ps, request = heappop(heap)
        self._table.views["arrival_ps"][request] = at_ps
        return request

    @property
    def held_ps(self) -> int:
        """At this time at the earliest a first turn may arrive after an end that is not known; FOREVER: none does."""
        return FOREVER

    @property
    def next_ps(self) -> int | None:
        """When the next follower arrives."""
        if self.refused:
            return min(heap[0][0] for heap in (self.coming, self.refused) if heap)
        return self.coming[0][0] if self.coming else None

    @property
    def left(self) -> bool:
        """Those whose parents have ended."""
        return bool(self.coming or self.refused)

    def scheduled(self, first_root: int) -> range:
        """Roots."""
        return range(first_root, self.roots)

    def answered(self, request: int, at_ps: int) -> None:
        """Whoever follows this one only is sent after its think time."""
        self._answer(request, at_ps)

    def _answer(self, request: int, at_ps: int) -> list[tuple[int, int]]:
        """Returns (request, answer) of this one, and of those who follow it and cannot be served."""
        answers = [(request, at_ps)]
        for parent, answer_ps in answers:
            if parent >= len(self.ended):
                continue  # was injected
            self.ended[parent] = 1
            for child in self._children[self._begins[parent] : self._begins[parent + 1]]:
                self._missing[child] -= 1
                latest_ps = self._latest_ps[child]
                self._latest_ps[child] = latest_ps = answer_ps if answer_ps > latest_ps else latest_ps
                if not self._missing[child]:
                    arrival_ps = latest_ps + self._think_ps[child]
                    self.add(child, arrival_ps)
                    if self._table.views["reject_reason"][child] != SERVABLE:
                        answers.append((child, arrival_ps))
        return answers

    def add(self, request: int, arrival_ps: int) -> None:
        """A request will arrive then."""
        if self._table.views["arrival_ps"][request] != NEVER:
            return  # it has, before the state from which the run goes on
        refused = self.here and not self.routed_here and self._table.views["reject_reason"][request] != SERVABLE
        heappush(self.refused if refused else self.coming, (arrival_ps, request))
        if not self.here and request < len(self.ended) and self.least_ps[request] < FOREVER:
            heappush(self._followed, (arrival_ps + self._followed_after_ps(request), request))

    def settle(self, known_ps: int) -> None:
        """The order of answers is no matter."""

    def safe_ps(self, known_ps: int, first_root: int, end_ps: int) -> int:
        """The earliest time at which a follower of somebody who has not been answered may arrive."""
        if self.here:
            return end_ps
        under_way, followed, arrived = self._under_way, self._followed, self._table.views["arrival_ps"]
        while under_way and self.ended[under_way[0][1]]:
            heappop(under_way)
        while followed and arrived[followed[0][1]] != NEVER:
            heappop(followed)
        if under_way:
            sent_ps = 0 if self.bounds is None else self.bounds.earliest_ps
            end_ps = min(end_ps, max(known_ps + under_way[0][0], sent_ps + self.beside_ps))
        if followed:
            end_ps = min(end_ps, followed[0][0])
        for root in range(first_root, self.roots):
            if arrived[root] >= end_ps:
                break
            end_ps = min(end_ps, arrived[root] + self._followed_after_ps(root))
        return end_ps

    def _followed_after_ps(self, request: int) -> int:
        """From a request's arrival to that of a follower, at least."""
        runs_ps = 0 if self.bounds is None else self.bounds.runs_ps(request)
        return runs_ps + self.beside_ps + self.least_ps[request]

    def sent(self, roots: IntArray, before_ps: int) -> list[tuple[int, int]]:
        """Those of `roots` are under way too, and the followers of those that cannot be served may arrive already."""
        arrival, reasons, coming = self._table.views["arrival_ps"], self._table.views["reject_reason"], self.coming
        self._roots_sent += len(roots)
        for root in roots.tolist():
            self._goes(root)
            if reasons[root] != SERVABLE:
                self.answered(root, arrival[root])
        sent = []
        while coming and coming[0][0] < before_ps:
            at_ps, request = heappop(coming)
            arrival[request] = at_ps
            self._goes(request)
            sent.append((at_ps, request))
        return sent

    def _goes(self, request: int) -> None:
        if not self.here and request < len(self.ended) and self.least_ps[request] < FOREVER:
            heappush(self._under_way, (self.least_ps[request], request))
            if self.bounds is not None:
                self.bounds.goes(request)

    def state(self) -> dict[str, Any]:
        """How many roots have arrived, and injected requests that have yet to; all else follows from the table."""
        return {
            "roots": self._roots_sent,
            "injected": [come for come in (*self.coming, *self.refused) if come[1] >= len(self.ended)],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._reset()
        self._roots_sent = state["roots"]
        table, n = self._table, len(self.turns)
        rows = np.arange(n)
        arrived = np.where(rows < self.starts, rows < self._roots_sent, table["arrival_ps"][:n] != NEVER)
        for root in np.flatnonzero(arrived & (rows < self.starts) & (table["reject_reason"][:n] != SERVABLE)).tolist():
            self.answered(root, self._root_sent_ps(root))
        finished = np.flatnonzero(table["status"][:n] == FINISHED)
        for request, finish_ps in zip(finished.tolist(), table["finish_ps"][finished].tolist(), strict=True):
            self.answered(request, finish_ps + self.beside_ps)
        for request in np.flatnonzero(arrived).tolist():
            if not self.ended[request]:
                self._goes(request)
        for arrival_ps, request in state["injected"]:
            self.add(request, arrival_ps)

    def _root_sent_ps(self, root: int) -> int:
        """When a first turn came that has."""
        return int(self._table["arrival_ps"][root])


def _least_of_children(turns: Turns, begins: IntArray, children: IntArray) -> list[int]:
    """Of each request the least think time of its followers, ps; `FOREVER` of one without."""
    least = [FOREVER] * len(turns)
    parents = np.repeat(np.arange(len(turns)), np.diff(begins))
    for parent, think_ps in zip(parents.tolist(), turns.think_ps[children].tolist(), strict=True):
        least[parent] = min(least[parent], think_ps)
    return least
