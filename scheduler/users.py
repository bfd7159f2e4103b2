"""The users of a closed loop, of which each has one request in flight, or thinks."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

from pimserve.arrays import IntArray
from pimserve.scheduler.clients import NO_SESSIONS
from pimserve.scheduler.requests import SERVABLE, RequestTable


class Users:
    """Each sends the next request of the table when theirs was answered, after a think time.

    Args:
        users: how many; so many requests arrive at time 0.
        think_ps: (n,) before each request is sent.
        table: all requests.
        frontend_ps: between a request's being sent and its arrival.
    """

    roots = 0
    here = routed_here = False
    rows_stay = closed = True
    session = NO_SESSIONS

    def __init__(self, users: int, think_ps: IntArray, table: RequestTable, frontend_ps: int) -> None:
        self.users = users
        self._beside_ps = frontend_ps + 1  # from the end of a request until one that is sent at once is here
        self._think_ps = think_ps
        self.think = bool(think_ps.any())
        self._table = table
        self._sent = 0  # requests of which the arrival is known
        self._coming: list[tuple[int, int]] = []  # heap: (arrival, request) of those that have yet to
        self._answers: list[int] = []  # heap: times of those that nobody has sent a request after
        for _ in range(min(users, len(table))):
            self._send(0)

    @property
    def next_ps(self) -> int | None:
        """When the next request arrives."""
        return self._coming[0][0] if self._coming else None

    @property
    def left(self) -> bool:
        """As there are more, or somebody thinks."""
        return bool(self._coming) or self._sent < len(self._table)

    def scheduled(self, first_root: int) -> range:
        """None: all are sent after others."""
        return range(0)

    def add(self, request: int, arrival_ps: int) -> None:
        """There are no more than those that `scheduled` tells."""
        raise AssertionError

    def answered(self, request: int, at_ps: int) -> None:
        """Some user thinks from then on; which one is no matter."""
        heappush(self._answers, at_ps)

    def settle(self, known_ps: int) -> None:
        """Users send the next requests in the order of answers, of which the first of those to come may be the next."""
        answers, coming = self._answers, self._coming
        while answers and answers[0] < known_ps and self._sent < len(self._table):
            if coming and coming[0][0] + self._beside_ps <= answers[0]:
                break
            self._send(heappop(answers) + int(self._think_ps[self._sent]))

    def safe_ps(self, known_ps: int, first_root: int, end_ps: int) -> int:
        """As many requests as there are users may be sent after answers that are not known."""
        think_ps = self._think_ps[self._sent : self._sent + self.users]
        return min(end_ps, known_ps + int(think_ps.min())) if len(think_ps) else end_ps

    def sent(self, roots: IntArray, before_ps: int) -> list[tuple[int, int]]:
        """Whose time has come."""
        sent = []
        while self._coming and self._coming[0][0] < before_ps:
            at_ps, request = heappop(self._coming)
            self._table.views["arrival_ps"][request] = at_ps
            sent.append((at_ps, request))
        return sent

    def _send(self, at_ps: int) -> None:
        heappush(self._coming, (at_ps, self._sent))
        if self._table.views["reject_reason"][self._sent] != SERVABLE:
            heappush(self._answers, at_ps)
        self._sent += 1

    def state(self) -> dict[str, Any]:
        """Who thinks, and what was sent."""
        return {"sent": self._sent, "coming": self._coming, "answers": self._answers}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._sent = state["sent"]
        self._coming = [(at_ps, request) for at_ps, request in state["coming"]]
        self._answers = list(state["answers"])
