"""A cap on the requests of an open loop that are in flight at once."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

from pimserve.arrays import IntArray
from pimserve.scheduler.clients import NO_SESSIONS
from pimserve.scheduler.requests import SERVABLE, RequestTable


class InFlightCap:
    """A client of an open loop that has at most so many requests in flight; the others wait for their turn with it.

    Requests are due at the times of the table, which stay their arrivals: latencies hold the time at the client.

    Args:
        most: requests in flight.
        table: all requests, by the time at which they are due.
    """

    roots = 0
    here = routed_here = False
    rows_stay = closed = False
    session = NO_SESSIONS

    def __init__(self, most: int, table: RequestTable) -> None:
        self.most = most
        self._table = table
        self.next = 0  # the first request that was not sent
        self.waits_ps: list[int] = []  # at the client, of each one that was
        self._in_flight = 0
        self._free_ps = 0  # since when there is room again, after there was none
        self._answers: list[int] = []  # heap: times of those that have not made room
        self._known_ps = 0

    @property
    def next_ps(self) -> int | None:
        """When the next request is sent."""
        if self.next == len(self._table):
            return None
        due_ps = self._table.views["arrival_ps"][self.next]
        if self._in_flight < self.most:
            return int(max(due_ps, self._free_ps))
        if self._answers and self._answers[0] < self._known_ps:
            return int(max(due_ps, self._answers[0]))
        return None

    @property
    def left(self) -> bool:
        """As there are more."""
        return self.next < len(self._table)

    def scheduled(self, first_root: int) -> range:
        """All that were not sent."""
        return range(self.next, len(self._table))

    def add(self, request: int, arrival_ps: int) -> None:
        """All are in the order in which they are due."""
        raise AssertionError

    def answered(self, request: int, at_ps: int) -> None:
        """There is room for another one from then on."""
        if self._table.views["reject_reason"][request] == SERVABLE:
            heappush(self._answers, at_ps)

    def settle(self, known_ps: int) -> None:
        """Room that came before that time is given in that order."""
        self._known_ps = known_ps

    def safe_ps(self, known_ps: int, first_root: int, end_ps: int) -> int:
        """Until there may be no room for somebody, nobody waits."""
        first = self.next + self.most - self._in_flight  # who may find none
        if first >= len(self._table):
            return end_ps
        return min(end_ps, max(known_ps, int(self._table.views["arrival_ps"][first])))

    def sent(self, roots: IntArray, before_ps: int) -> list[tuple[int, int]]:
        """Those for whom there is room, in the order in which they are due."""
        due, sent = self._table.views["arrival_ps"], []
        while (at_ps := self.next_ps) is not None and at_ps < before_ps:
            if self._in_flight == self.most:
                self._free_ps = heappop(self._answers)
                self._in_flight -= 1
            if self._table.views["reject_reason"][self.next] == SERVABLE:
                self._in_flight += 1
            sent.append((at_ps, self.next))
            self.waits_ps.append(at_ps - due[self.next])
            self.next += 1
        if self.next < len(self._table):
            # Whoever is due later finds this room, whenever that is.
            gone_ps = min(before_ps, self._known_ps, due[self.next])
            while self._answers and self._answers[0] < gone_ps:
                heappop(self._answers)
                self._in_flight -= 1
        return sent

    def state(self) -> dict[str, Any]:
        """Who is in flight, and how long those waited who were sent."""
        return {
            "next": self.next,
            "waits": self.waits_ps,
            "in_flight": self._in_flight,
            "free": self._free_ps,
            "answers": self._answers,
            "known": self._known_ps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.next, self.waits_ps = state["next"], list(state["waits"])
        self._in_flight, self._free_ps = state["in_flight"], state["free"]
        self._answers, self._known_ps = list(state["answers"]), state["known"]
