"""Requests of an open loop on their way to the replicas: who comes to the router in a window, and where they go."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.departures import Move
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.router import Router, make_router, restore_router, router_state
from pimserve.scheduler.shard import NONE

_LATEST_PS = 2**63 - 1


class Arrivals:
    """The way of requests to the replicas.

    Args:
        table: all requests, by arrival.
        replicas: those that the router sends requests to, numbered from 0 up.
        router: its name.
        stop_fs: nobody comes at or after this time.
    """

    def __init__(self, table: RequestTable, replicas: int, router: str, stop_fs: int) -> None:
        self._table = table
        self._stop_fs = stop_fs
        self._turn = 0  # of round robin
        self._again: list[tuple[int, int, int, int]] = []  # heap: requests that come again, as `Move` without names
        self.router: Router | None = make_router(router)
        self.next = 0  # first request that has not been routed
        self.outstanding = [0] * replicas  # as last reported, and what was sent since

    @property
    def waiting(self) -> bool:
        """Whether requests were lost, or found no replica, and come again."""
        return bool(self._again)

    @property
    def next_fs(self) -> int | None:
        """When the first request arrives that has not been routed; None: all have."""
        if self.next >= len(self._table):
            return None
        return int(self._table["arrival_ps"][self.next]) * FS_PER_PS

    def use(self, router: str) -> None:
        """Route by this router from here on."""
        self.router = make_router(router)

    def reset(self) -> None:
        """No replica has a request."""
        self.outstanding = [0] * len(self.outstanding)

    def come_again(self, move: Move, since_fs: int) -> None:
        """A request comes to the router again."""
        heappush(self._again, (since_fs, move.request, move.replica, move.token_fs))

    def due(self, end_fs: int, *, held: bool) -> tuple[IntArray, tuple[Move, ...]]:
        """Requests that come before `end_fs`, by time, and those of them that were elsewhere before.

        Args:
            end_fs: who arrives at that very time comes later.
            held: no replica takes requests: they wait until `end_fs` at least.
        """
        first, self.next = self.next, self._arrived(min(end_fs, self._stop_fs))
        requests = np.arange(first, self.next)
        moves = []
        while self._again and self._again[0][0] < end_fs:
            since, request, replica, token = heappop(self._again)
            moves.append(Move(request, replica, since, token))
        if held:
            for move in [*(Move(request, -1, end_fs, 0) for request in requests.tolist()), *moves]:
                self.come_again(move, end_fs)
            return NONE, ()
        if moves:
            arrivals = (self._table["arrival_ps"][requests].astype(object) * FS_PER_PS).tolist()
            times = [*zip(arrivals, requests.tolist(), strict=True), *((move.since_fs, move.request) for move in moves)]
            requests = np.array([request for _, request in sorted(times)], np.int64)
        return requests, tuple(moves)

    def route(self, count: int, targets: Sequence[int]) -> IntArray:
        """Which of the replicas `targets` so many requests go to."""
        if not count:
            return NONE
        if self.router is None:
            replicas = (self._turn + np.arange(count)) % len(targets)
            self._turn = (self._turn + count) % len(targets)
            return np.asarray(targets)[replicas]
        pick, outstanding = self.router.pick, self.outstanding
        whole = len(targets) == len(outstanding)
        picked = []
        for _ in range(count):
            chosen = pick(outstanding) if whole else targets[pick([outstanding[replica] for replica in targets])]
            outstanding[chosen] += 1
            picked.append(chosen)
        return np.array(picked, np.int64)

    def state(self) -> dict[str, Any]:
        """Who is on the way, as JSON can hold it."""
        return {
            "next": self.next,
            "turn": self._turn,
            "router": router_state(self.router),
            "outstanding": self.outstanding,
            "waiting": self._again,
        }

    def restore(self, state: dict[str, Any], router: str) -> None:
        """Go on from `state`, with that router."""
        self.use(router)
        restore_router(self.router, state["router"])
        self.next, self._turn = state["next"], state["turn"]
        self.outstanding = list(state["outstanding"])
        self._again = [(since, request, replica, token) for since, request, replica, token in state["waiting"]]

    def _arrived(self, by_fs: int) -> int:
        """How many requests arrive before that time."""
        return int(np.searchsorted(self._table["arrival_ps"], min(-(-by_fs // FS_PER_PS), _LATEST_PS)))
