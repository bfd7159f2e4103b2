"""Clients that send requests when others have been answered: sessions, a closed loop, and a cap on requests in flight.

Who is sent when depends on when others end, on whatever replica. So the clock tells the clients of all ends
(`answered`), and from when on ends may come that it does not know yet (`known_ps`); they say before when all that they
send is known (`safe_ps`), which is where the window ends. A longer think time makes for longer windows; none, for
windows of about a step. Where all replicas are in one shard, sessions do without (`lookahead.py`).

All times are picoseconds. An answer counts in the picosecond after the one in which the request's last step ended, so
that nobody is sent before an end that is known to the femtosecond only. A request that no replica can serve is answered
as it arrives.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pimserve.arrays import IntArray

NO_SESSIONS: IntArray = np.zeros(0, np.int64)


class Clients(Protocol):
    """Who sends requests in the course of a run.

    `roots`: so many requests, the first ones of the table, arrive at times of their own; all others through `sent`.
    `here`: the replicas themselves tell of ends; `routed_here`: and those who are sent are routed where they are.
    `rows_stay`: they know requests by their rows in the table, so that others come behind all.
    `closed`: nobody arrives at a time that was planned, so that there is no rate to change.
    `session`: of the first requests of the table, which session each belongs to; `NO_SESSIONS`: there are none.
    """

    roots: int
    here: bool
    routed_here: bool
    rows_stay: bool
    closed: bool
    session: IntArray

    @property
    def next_ps(self) -> int | None:
        """When the next request arrives here, as far as is known; None: nobody is known to."""

    @property
    def left(self) -> bool:
        """Whether requests will be sent even if nothing else ends."""

    def scheduled(self, first_root: int) -> range:
        """Rows of the table of which the arrival is known and to come, by arrival; `first_root` is the first root."""

    def add(self, request: int, arrival_ps: int) -> None:
        """A request that nobody depends on was put behind all others of the table."""

    def answered(self, request: int, at_ps: int) -> None:
        """A request has left a replica for good, and its client knows at that time."""

    def settle(self, known_ps: int) -> None:
        """All answers before that time were told."""

    def safe_ps(self, known_ps: int, first_root: int, end_ps: int) -> int:
        """Before this time, at most `end_ps`, all arrivals are known; `first_root` is the first that is to arrive."""

    def sent(self, roots: IntArray, before_ps: int) -> list[tuple[int, int]]:
        """(arrival, request) of those that arrive before that time; the table is told. `roots` do so on their own."""

    def state(self) -> dict[str, Any]:
        """What the table does not tell, as JSON can hold it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, with the table of that time."""
