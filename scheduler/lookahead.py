"""How far replicas may run before it is known who comes next, where turns of sessions follow on ends on any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

from pimserve.arrays import IntArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.departures import Move
from pimserve.scheduler.exact_routing import ExactRouting
from pimserve.scheduler.fleet import ReplicaEngine
from pimserve.scheduler.requests import FOREVER, RequestTable
from pimserve.scheduler.router_books import RouterBooks
from pimserve.scheduler.router_protocol import BlindRouter
from pimserve.scheduler.sessions import Sessions


class Lookahead:
    """Conservative simulation of replicas that send each other requests (Chandy and Misra, IEEE TSE SE-5(5), 1979).

    A replica's bound is the earliest time at which somebody may come, to whatever replica, after an end there that is
    not known yet: for a while none ends there, and then somebody thinks, unless a session that waits begins at once.
    The replica with the least bound is run up to the next one's, or to the next arrival that is known; it stops by
    itself for whoever follows on an end there. An arrival before all bounds can be routed.

    Args:
        engines: of all replicas.
        quiet_fs: of each, a time before which no request leaves; kept so.
        outstanding: of each, how many requests have not left; kept so for a router that looks at replicas.
        table: requests of the run.
        sessions: told of ends by the engines.
        deal: tells which of so many replicas the next request goes to, with a router that does not look at them.
    """

    def __init__(
        self,
        engines: Sequence[ReplicaEngine],
        quiet_fs: list[int],
        outstanding: list[int],
        table: RequestTable,
        sessions: Sessions,
        deal: Callable[[int], int],
    ) -> None:
        self._engines = engines
        self._quiet_fs = quiet_fs
        self._outstanding = outstanding
        self._table = table
        self._sessions = sessions
        self._deal = deal
        self._looks = False
        self.restore()

    def restore(self) -> None:
        """Go on from what the engines have in hand."""
        # Of each a heap of (least think time of a follower, request), from which who has ended is taken out late.
        self._under_way: list[list[tuple[int, int]]] = [[] for _ in self._engines]
        self._bounds_ps = [FOREVER] * len(self._engines)
        self._first: list[tuple[int, int]] = []  # heap: (bound, engine), also with bounds that hold no more
        for index, engine in enumerate(self._engines):
            for request in engine.in_hand():
                self._sent(index, request)

    def run(self, requests: IntArray, until_fs: int, books: RouterBooks) -> None:
        """Let all come that do before a time, and run engines as far as that takes.

        Args:
            requests: those who do so by themselves.
            until_fs: nobody comes then or later.
            books: of the router that tells where they go, if it looks at replicas.
        """
        self._looks = not isinstance(books.router, BlindRouter)
        choose, coming, first, bounds_ps = self._choice(books), self._sessions.coming, self._first, self._bounds_ps
        coming += zip(self._table["arrival_ps"][requests].tolist(), requests.tolist(), strict=True)
        heapify(coming)
        until_ps = -(-until_fs // FS_PER_PS)
        while True:
            at_ps = coming[0][0] if coming and coming[0][0] < until_ps else until_ps
            while first and bounds_ps[first[0][1]] != first[0][0]:
                heappop(first)  # it holds no more
            if first and first[0][0] <= at_ps and first[0][0] < until_ps:
                index = heappop(first)[1]
                bounds_ps[index] = FOREVER
                # The next bound may hold no more either: then the engine stops earlier than it must.
                known_ps = first[0][0] if first and first[0][0] < at_ps else at_ps
                self._advance(index, min(known_ps * FS_PER_PS, until_fs))
            elif at_ps < until_ps:
                self._arrives(at_ps, choose)
            else:
                return

    def _arrives(self, at_ps: int, choose: Callable[[int, int], int]) -> None:
        """The next of those to come does so."""
        request, now_fs = self._sessions.arrives(self._sessions.coming), at_ps * FS_PER_PS
        chosen = choose(request, now_fs)
        engine = self._engines[chosen]
        if self._table.views["arrival_ps"][request] != at_ps:  # that is when it was due
            engine.expect(Move(request, -1, now_fs, 0))
        engine.submit((request,))
        self._outstanding[chosen] += 1
        self._quiet_fs[chosen] = min(self._quiet_fs[chosen], now_fs)
        self._sent(chosen, request)

    def _choice(self, books: RouterBooks) -> Callable[[int, int], int]:
        """What tells to which engine a request goes, given it and the time, fs."""
        everywhere = range(len(self._engines))
        if not self._looks:
            return lambda _, __: self._deal(len(everywhere))
        books.session_of = self._sessions.session.item
        return ExactRouting(self._engines, self._quiet_fs, self._outstanding, books, None).choice(everywhere)

    def _sent(self, index: int, request: int) -> None:
        """A request is under way on that engine."""
        least_ps = self._sessions.least_ps[request]
        if least_ps < FOREVER or self._sessions.held_ps < FOREVER:
            heappush(self._under_way[index], (least_ps, request))
        self._bound(index)

    def _advance(self, index: int, until_fs: int) -> None:
        engine = self._engines[index]
        self._quiet_fs[index] = quiet_fs = engine.advance(until_fs, lazily=True)
        if self._looks:  # whoever leaves at the engine's clock does so at that time
            self._outstanding[index] = engine.outstanding(quiet_fs - 1)
        self._bound(index)

    def _bound(self, index: int) -> None:
        """Find an engine's bound anew."""
        under_way, sessions = self._under_way[index], self._sessions
        ended = sessions.ended
        while under_way and ended[under_way[0][1]]:
            heappop(under_way)
        if not under_way:
            self._bounds_ps[index] = FOREVER
            return
        end_fs, quiet_fs = self._engines[index].next_end_fs(), self._quiet_fs[index]
        answer_ps = (end_fs if end_fs > quiet_fs else quiet_fs) // FS_PER_PS + sessions.beside_ps
        bound_ps, held_ps = answer_ps + under_way[0][0], sessions.held_ps
        if bound_ps > held_ps:
            bound_ps = max(answer_ps, held_ps)
        self._bounds_ps[index] = bound_ps
        heappush(self._first, (bound_ps, index))
