"""What waits at the clients at a moment of a run: sessions between turns, users who think, requests over a cap.

All of it follows from when requests came, before the moment, and ended, by then. Clients know of an end after the time
in front of the scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pimserve.arrays import BoolArray, IntArray
from pimserve.scheduler.active_sessions import ActiveSessions
from pimserve.scheduler.clients import NO_SESSIONS, Clients
from pimserve.scheduler.in_flight_cap import InFlightCap
from pimserve.scheduler.requests import NEVER, SERVABLE, Columns
from pimserve.scheduler.users import Users


@dataclass(frozen=True, slots=True)
class AtClients:
    """How many of each.

    Args:
        sessions_active: sessions that have begun, and have requests under way or to come.
        sessions_thinking: of these, those without a request under way.
        users_thinking: users of a closed loop who have had their answers and will send more.
        requests_waiting: requests that are due, and wait for others under a cap on those in flight, or on active
            sessions.
    """

    sessions_active: int = 0
    sessions_thinking: int = 0
    users_thinking: int = 0
    requests_waiting: int = 0


@dataclass(frozen=True, slots=True)
class Senders:
    """Who sends requests, as far as they wait for answers.

    Args:
        session: of the first requests of the table, which session each belongs to, (n,); -1: to none.
        users: of a closed loop with think times; 0: there is none.
        most_in_flight: the cap on requests in flight; 0: there is none.
        most_active: the cap on active sessions, of which those with lower numbers begin first; 0: there is none.
    """

    session: IntArray
    users: int = 0
    most_in_flight: int = 0
    most_active: int = 0

    @classmethod
    def of(cls, clients: Clients | None) -> Senders:
        """Those of a run that goes on."""
        if isinstance(clients, Users):
            return cls(NO_SESSIONS, users=clients.users if clients.think else 0)
        if isinstance(clients, InFlightCap):
            return cls(NO_SESSIONS, most_in_flight=clients.most)
        if isinstance(clients, ActiveSessions):
            return cls(clients.session, most_active=clients.most)
        return cls(NO_SESSIONS if clients is None else clients.session)

    def at(self, columns: Columns, now_ps: int, frontend_ps: int) -> AtClients:
        """What waits at that time.

        Args:
            columns: of the request table.
            now_ps: the time; requests may have ended since.
            frontend_ps: time in front of the scheduler.
        """
        if not (len(self.session) or self.users or self.most_in_flight):
            return AtClients()
        arrival, finish = columns["arrival_ps"], columns["finish_ps"]
        arrived = (arrival != NEVER) & (arrival < now_ps)
        answered = (finish != NEVER) & (finish + frontend_ps <= now_ps)
        over = arrived & ((columns["reject_reason"] != SERVABLE) | answered)
        under_way = int((arrived & ~over).sum())
        active, thinking, held = self._sessions(arrived, over)
        return AtClients(
            sessions_active=active,
            sessions_thinking=thinking,
            users_thinking=min(max(0, self.users - under_way), int((~arrived).sum())),
            requests_waiting=max(0, under_way - self.most_in_flight) if self.most_in_flight else held,
        )

    def _sessions(self, arrived: BoolArray, over: BoolArray) -> tuple[int, int, int]:
        """How many are active, how many of them think, and how many are due and have yet to begin.

        Of all requests: who has arrived, or is due, and whose are over.
        """
        mine = np.flatnonzero(self.session >= 0)
        ids = self.session[mine]
        begun, open_, busy = (np.bincount(ids, weights=some[mine]) > 0 for some in (arrived, ~over, arrived & ~over))
        there = begun & open_
        # Also those that will be rejected wait for their turn, and end when it comes.
        held = begun & (np.cumsum(there) - there >= (self.most_active or len(there)))
        active = there & ~held
        return int(active.sum()), int((active & ~busy).sum()), int(held.sum())
