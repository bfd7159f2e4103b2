"""Requests on their way to the replicas: who comes to the router in a window, and where they go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.clients import NO_SESSIONS, Clients
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import ReplicaState
from pimserve.scheduler.departures import Move
from pimserve.scheduler.fleet import Fleet
from pimserve.scheduler.requests import FOREVER, NEVER, RequestTable
from pimserve.scheduler.router_books import Decisions, RouterBooks
from pimserve.scheduler.router_protocol import BlindRouter, CountRouter, ReplicaView, ViewRouter
from pimserve.scheduler.shard_port import NONE, Report

_LATEST_PS = 2**63 - 1


class Arrivals:
    """The way of requests to the replicas.

    Args:
        table: all requests, by arrival.
        fleet: what the run's replicas are; the router sends requests to those of its first pool.
        stop_fs: nobody comes at or after this time.
        clients: send requests when others have ended; None: all arrive at the times of the table.
    """

    def __init__(
        self,
        table: RequestTable,
        fleet: Fleet,
        stop_fs: int,
        clients: Clients | None = None,
    ) -> None:
        self._table = table
        self.clients = clients
        self._stop_fs = stop_fs
        self._again: list[tuple[int, int, int, int]] = []  # heap: requests that come again, as `Move` without names
        self._fleet = fleet
        self.decisions: Decisions = Counter()
        self._events: list[tuple[int, int, tuple[int, ...]]] = []  # of caches, since the router heard last
        self.use(fleet.spec)
        self.next = 0  # first request that has not been routed
        replicas = fleet.pools[0].replicas
        self._outstanding = [0] * replicas  # as last reported, and what was sent since
        self._views = [ReplicaView(replica) for replica in range(replicas)]

    @property
    def follows(self) -> bool:
        """Whether the router goes by first tokens (`RouterBooks.follows`)."""
        return self._books.follows

    @property
    def waiting(self) -> bool:
        """Whether requests were lost, or found no replica, and come again."""
        return bool(self._again)

    @property
    def next_fs(self) -> int | None:
        """When the first request arrives that has not been routed; None: all have, or nobody knows yet."""
        first_ps = None if self.clients is None else self.clients.next_ps
        if self.next < self._scheduled:
            at_ps: int = self._table.views["arrival_ps"][self.next]
            first_ps = at_ps if first_ps is None else min(at_ps, first_ps)
        return None if first_ps is None else first_ps * FS_PER_PS

    @property
    def left(self) -> bool:
        """Whether requests will arrive even if nothing ends."""
        return self.next < self._scheduled or (self.clients is not None and self.clients.left)

    @property
    def again_fs(self) -> int | None:
        """When the first request comes again; None: nobody does."""
        return self._again[0][0] if self._again else None

    @property
    def rows_stay(self) -> bool:
        """Whether requests are known by their rows, so that more of them come behind all."""
        return self.clients is not None and self.clients.rows_stay

    def to_come(self) -> range:
        """Rows of requests that have not arrived, by arrival, as far as that is known."""
        if self.clients is None:
            return range(self.next, len(self._table))
        return self.clients.scheduled(self.next)

    def add(self, rows: range, arrival_ps: int) -> None:
        """Requests were put behind all others of the table, and will arrive then."""
        assert self.clients is not None
        for request in rows:
            self.clients.add(request, arrival_ps)

    def arrived(self, by_fs: int) -> int:
        """How many requests have arrived before that time, to which all was routed."""
        if self.clients is None:
            return self.next
        arrival = self._table["arrival_ps"]
        return int(((arrival != NEVER) & (arrival < _ps(by_fs))).sum())

    def sessions_of(self, requests: IntArray) -> tuple[int | None, ...]:
        """Of each request the session that it is a turn of, if of any; empty where the router does not ask."""
        return tuple(map(self.session_of, requests.tolist())) if self.views else ()

    def session_of(self, request: int) -> int | None:
        """The session that a request is a turn of; None: of none, as those that are injected."""
        session = NO_SESSIONS if self.clients is None else self.clients.session
        return int(session[request]) if request < len(session) else None

    def use(self, spec: SchedulerSpec) -> None:
        """Route by the router of these settings from here on."""
        self._books = RouterBooks(self._fleet, spec, self._table, self.session_of, self.decisions)
        self.router = self._books.router
        self._events.clear()
        self.looks = not isinstance(self.router, BlindRouter)  # at replicas
        self.views = isinstance(self.router, ViewRouter)  # at more of them than how many requests they have

    def reset(self) -> None:
        """No replica has a request, as the router hears."""
        self._hear(FOREVER)
        self._outstanding = [0] * len(self._outstanding)
        self._views = [ReplicaView(replica) for replica in range(len(self._views))]

    def reported(self, state: ReplicaState) -> None:
        """The router hears of a replica."""
        self._outstanding[state.replica] = state.outstanding
        self._views[state.replica] = ReplicaView.reported(state)

    def heard(self, report: Report, at_fs: int, *, seen: bool) -> None:
        """A shard reports at that time; `seen`: to the router as well."""
        self._count(report.decisions)
        self._events += report.kv_events
        if seen:
            self._hear(at_fs)

    def come_again(self, move: Move, since_fs: int) -> None:
        """A request comes to the router again."""
        heappush(self._again, (since_fs, move.request, move.replica, move.token_fs))

    def due(self, end_fs: int, *, held: bool) -> tuple[IntArray, tuple[Move, ...]]:
        """Requests that come before `end_fs`, by time, and those of them that were elsewhere before.

        Args:
            end_fs: who arrives at that very time comes later.
            held: no replica takes requests: they wait until `end_fs` at least.
        """
        by_ps = _ps(min(end_fs, self._stop_fs))
        arrival = self._table["arrival_ps"]
        first, self.next = self.next, int(np.searchsorted(arrival[: self._scheduled], by_ps))
        requests = np.arange(first, self.next)
        moves = []
        if self.clients is not None and (sent := self.clients.sent(requests, by_ps)):
            arrived = self._table.views["arrival_ps"]
            # Who has waited for others to end arrived long ago, and can be scheduled from now on.
            moves = [Move(request, -1, at * FS_PER_PS, 0) for at, request in sent if at != arrived[request]]
            at_once = [request for at, request in sent if at == arrived[request]]
            requests = np.array([*requests.tolist(), *at_once], np.int64)
        while self._again and self._again[0][0] < end_fs:
            since, request, replica, token = heappop(self._again)
            moves.append(Move(request, replica, since, token))
        if held:
            for move in [*(Move(request, -1, end_fs, 0) for request in requests.tolist()), *moves]:
                self.come_again(move, end_fs)
            return NONE, ()
        if moves or (self.clients is not None and len(requests) > 1):
            arrivals = [at_ps * FS_PER_PS for at_ps in arrival[requests].tolist()]
            times = [*zip(arrivals, requests.tolist(), strict=True), *((move.since_fs, move.request) for move in moves)]
            requests = np.array([request for _, request in sorted(times)], np.int64)
        return requests, tuple(moves)

    def route(self, requests: IntArray, targets: Sequence[int], moves: Sequence[Move]) -> IntArray:
        """Which of the replicas `targets` these requests, of which some are `moves`, go to; nothing if there."""
        router = self.router
        if not len(requests) or (self.clients is not None and self.clients.routed_here):
            return NONE
        if isinstance(router, BlindRouter):
            dealt = np.asarray(targets)[router.deal(len(requests), len(targets))]
            self._books.dealt(dealt)
            return dealt
        if isinstance(router, CountRouter):
            return self._picked(router, len(requests), targets)
        arrival = self._table["arrival_ps"][requests].tolist()
        since = {move.request: move.since_fs // FS_PER_PS for move in moves}
        times = zip(requests.tolist(), arrival, strict=True)
        routed = [self._routed(router, request, since.get(request, at_ps), targets) for request, at_ps in times]
        return np.array(routed, np.int64)

    def deal(self, replicas: int) -> int:
        """Which of so many the next request goes to, with a router that does not look at them."""
        assert not self.looks
        chosen = int(self.router.deal(1, replicas)[0])  # type: ignore[union-attr]
        self._books.chose(chosen)
        return chosen

    def state(self) -> dict[str, Any]:
        """Who is on the way, as JSON can hold it."""
        return {
            "next": self.next,
            "decisions": [[replica, reason, count] for (replica, reason), count in self.decisions.items()],
            "books": self._books.state(),
            "events": self._events,
            "outstanding": self._outstanding,
            "views": self._views,
            "waiting": self._again,
            "clients": None if self.clients is None else self.clients.state(),
        }

    def restore(self, state: dict[str, Any], spec: SchedulerSpec) -> None:
        """Go on from `state`, with those settings."""
        self.use(spec)
        self.decisions.clear()
        self._count(state["decisions"])
        self._books.restore(state["books"])
        self._events = list(state["events"])
        self.next = state["next"]
        self._outstanding = list(state["outstanding"])
        self._views = [ReplicaView(*view) for view in state["views"]]
        self._again = [(since, request, replica, token) for since, request, replica, token in state["waiting"]]
        if self.clients is not None:
            self.clients.restore(state["clients"])

    def _picked(self, router: CountRouter, count: int, targets: Sequence[int]) -> IntArray:
        """Where so many requests go by the numbers outstanding."""
        pick, outstanding = router.pick, self._outstanding
        whole = len(targets) == len(outstanding)
        picked = []
        for _ in range(count):
            chosen = pick(outstanding) if whole else targets[pick([outstanding[replica] for replica in targets])]
            outstanding[chosen] += 1
            self._books.chose(chosen)
            picked.append(chosen)
        return np.array(picked, np.int64)

    def _routed(self, router: ViewRouter, request: int, now_ps: int, targets: Sequence[int]) -> int:
        """Where a request goes now by what is known of it and of the replicas."""
        place, seen = self._books.route(router, request, [self._views[replica] for replica in targets], now_ps)
        chosen = targets[place]
        self._outstanding[chosen] += 1
        self._views[chosen] = self._views[chosen].after(seen.prompt_tokens)
        return chosen

    def _count(self, decisions: Iterable[Sequence[Any]]) -> None:
        for replica, reason, count in decisions:
            self.decisions[replica, reason] += count

    def _hear(self, at_fs: int) -> None:
        """The router hears what became of cached blocks, and of its requests by that time."""
        for replica, tier, events in self._events:
            self._books.heard(replica, tier, events)
        self._events.clear()
        self._books.update(at_fs // FS_PER_PS)

    @property
    def _scheduled(self) -> int:
        """So many requests, the first ones, arrive at times that were set beforehand."""
        return len(self._table) if self.clients is None else self.clients.roots


def _ps(time_fs: int) -> int:
    """Who arrives before this picosecond arrives before that time."""
    return min(-(-time_fs // FS_PER_PS), _LATEST_PS)
