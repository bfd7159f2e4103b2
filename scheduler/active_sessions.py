"""Sessions of which at most so many are active at once, as benchmarks of several turns keep them (vLLM's
`benchmark_serving_multi_turn --max-active-conversations`).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.loadgen.turns import Turns
from pimserve.scheduler.requests import FOREVER, SERVABLE, RequestTable
from pimserve.scheduler.sessions import Sessions


class ActiveSessions(Sessions):
    """A session is active from its first turn on, until its last one has been answered; others wait for that.

    Slots become free at the beginning, `most` of them, and then one at each end of a session. Sessions begin in the
    order of the table, so the i-th begins when it is due, and not before the i-th of all these times. Ends may be told
    out of order: who begins next is set when it arrives, which is when no end is unknown any more that is earlier.

    Args:
        most: active sessions.
        turns: who follows whom; each session has one first turn.
        table: all requests; first turns first, by the times at which they are due.
        frontend_ps: between a request's being sent and its arrival.
        closed: nobody is due at any time: first turns arrive when they are sent. Else the times at which they are due
            stay their arrivals, so that latencies hold the time at the client.
        here: all are served in one shard, which routes who comes.
    """

    def __init__(
        self, most: int, turns: Turns, table: RequestTable, frontend_ps: int, *, closed: bool, here: bool
    ) -> None:
        _, place, counts = np.unique(turns.session, return_inverse=True, return_counts=True)
        if len(np.unique(turns.session[~turns.followers])) != int((~turns.followers).sum()):
            raise ValueError("a session has several first turns")
        self.most = most
        self.closed = closed
        self._place = place.tolist()
        self._counts = counts.tolist()
        self.waits_ps: list[int] = []  # at the client, of each session that has begun, if it was due
        super().__init__(turns, table, frontend_ps, here=here, routed_here=here)
        self.roots = 0  # that arrive by themselves

    def _reset(self) -> None:
        super()._reset()
        self._unanswered = list(self._counts)
        self._over_ps = [0] * len(self._counts)
        self._room_ps = [0] * min(self.most, self.starts)  # when slots become free, also those that were taken again
        self._next: tuple[int, int] | None = None  # who of `coming` begins the next session, as far as ends are known
        self._before_ps = 0
        self._plan()

    @property
    def held_ps(self) -> int:
        """When the first session is due that may have to wait for an end."""
        root = self._first_held()
        return self._due_ps(root) if root < self.starts else FOREVER

    def scheduled(self, first_root: int) -> range:
        """First turns that are not due yet."""
        if self.closed:
            return range(0)
        due = int(np.searchsorted(self._table["arrival_ps"][: self.starts], self._before_ps))
        return range(max(self._roots_sent, due), self.starts)

    def arrives(self, heap: list[tuple[int, int]]) -> int:
        """The first one of `coming` does so, which may begin a session."""
        at_ps, request = heap[0]
        if self._next != heap[0]:
            return super().arrives(heap)
        heappop(heap)
        self._next = None
        self._roots_sent += 1
        if self.closed:
            self._table.views["arrival_ps"][request] = at_ps
        else:
            self.waits_ps.append(at_ps - self._due_ps(request))
        if self._table.views["reject_reason"][request] != SERVABLE:
            self.answered(request, at_ps)
        self._plan()
        return request

    def answered(self, request: int, at_ps: int) -> None:
        """Whoever follows is sent, and where nobody does any more the next session begins."""
        for each, answer_ps in self._answer(request, at_ps):
            if each >= len(self.ended):
                continue  # was injected
            session = self._place[each]
            self._unanswered[session] -= 1
            self._over_ps[session] = max(self._over_ps[session], answer_ps)
            if not self._unanswered[session]:
                insort(self._room_ps, self._over_ps[session])
        self._plan()

    def settle(self, known_ps: int) -> None:
        """A command may have changed when sessions are due."""
        self._plan()

    def safe_ps(self, known_ps: int, first_root: int, end_ps: int) -> int:
        """Before that, too, when a session may begin that waits for an end."""
        if self.here:
            return end_ps
        end_ps = super().safe_ps(known_ps, first_root, end_ps)
        held = self._first_held()
        if held < self.starts:
            end_ps = min(end_ps, max(known_ps, self._due_ps(held)))
        for root in range(self._roots_sent, min(held, self.starts)):  # begin when they are due
            if self._due_ps(root) >= end_ps:
                break
            end_ps = min(end_ps, self._due_ps(root) + self._followed_after_ps(root))
        return end_ps

    def sent(self, roots: IntArray, before_ps: int) -> list[tuple[int, int]]:
        """Those whose time has come, unless the shard lets them come."""
        sent: list[tuple[int, int]] = []
        self._before_ps = before_ps
        while not self.here and self.coming and self.coming[0][0] < before_ps:
            at_ps = self.coming[0][0]
            request = self.arrives(self.coming)
            self._goes(request)
            sent.append((at_ps, request))
        return sent

    def state(self) -> dict[str, Any]:
        """Also how long those waited that have begun."""
        return {**super().state(), "waits": self.waits_ps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.waits_ps = list(state["waits"])
        super().restore(state)
        self._plan()

    def _root_sent_ps(self, root: int) -> int:
        return super()._root_sent_ps(root) + (0 if self.closed else self.waits_ps[root])

    def _due_ps(self, root: int) -> int:
        return 0 if self.closed else int(self._table.views["arrival_ps"][root])

    def _first_held(self) -> int:
        """The first session for which there may be no slot when it is due."""
        if self._roots_sent >= self.starts:
            return self.starts
        return bisect_right(self._room_ps, self._due_ps(self._roots_sent), lo=self._roots_sent)

    def _plan(self) -> None:
        """Let the next session begin when it is due and has a slot, by the ends that are known."""
        root, then = self._roots_sent, None
        if root < min(self.starts, len(self._room_ps)):
            then = max(self._due_ps(root), self._room_ps[root]), root
        if then == self._next:
            return
        if self._next is not None:
            self.coming.remove(self._next)
            heapify(self.coming)
        self._next = then
        if then is not None:
            heappush(self.coming, then)
