"""How far replicas may run before it is known who comes next, where turns of sessions follow on ends on any of them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace

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
    not known yet. Nobody ends before the replica says so, nor before the steps that they still need are over, of which
    none takes less than `CostPlan.least_step_fs`; then who follows thinks, or, if nobody does, a session that waits
    begins at once.
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
        costs = engines[0].costs
        self._step_fs = costs.least_step_fs
        self._step_tokens = costs.plan.verify_tokens  # of a request in a step, at most
        self._outputs, self._arrival_ps = table.views["output_tokens"], table.views["arrival_ps"]
        self._running = [_running(engine) for engine in engines]
        self.restore()

    def restore(self) -> None:
        """Go on from what the engines have in hand."""
        # Of each two heaps, from which who has ended is taken out late: of those whom somebody follows, by when that is
        # at the earliest if step 0 of the engine begins at 0, fs, and whether their last step is known; and of those
        # with whom a session may be over, by when they end then.
        self._followed: list[list[tuple[int, int, bool]]] = [[] for _ in self._engines]
        self._last: list[list[tuple[int, int]]] = [[] for _ in self._engines]
        self._bounds_ps = [FOREVER] * len(self._engines)
        self._by_bound = [(FOREVER, len(self._engines))]  # in order; the last one is nobody
        for index, engine in enumerate(self._engines):
            for request in engine.in_hand():
                self._goes(index, request, 1)
            self._bound(index)

    def run(self, requests: IntArray, until_fs: int, books: RouterBooks) -> None:
        """Let all come that do before a time, and run engines as far as that takes.

        Args:
            requests: those who do so by themselves.
            until_fs: nobody comes then or later.
            books: of the router that tells where they go, if it looks at replicas.
        """
        self._looks = not isinstance(books.router, BlindRouter)
        choose, coming, by_bound = self._choice(books), self._sessions.coming, self._by_bound
        coming += zip(self._table["arrival_ps"][requests].tolist(), requests.tolist(), strict=True)
        heapify(coming)
        until_ps = -(-until_fs // FS_PER_PS)
        while True:
            at_ps = coming[0][0] if coming and coming[0][0] < until_ps else until_ps
            bound_ps, index = by_bound[0]
            if bound_ps <= at_ps and bound_ps < until_ps:
                del by_bound[0]
                known_ps = by_bound[0][0] if by_bound[0][0] < at_ps else at_ps
                self._advance(index, known_ps * FS_PER_PS if known_ps < until_ps else until_fs)
            elif at_ps < until_ps:
                self._arrives(at_ps, choose)
            else:
                return

    def _arrives(self, at_ps: int, choose: Callable[[int, int], int]) -> None:
        """The next of those to come does so."""
        request, now_fs = self._sessions.arrives(self._sessions.coming), at_ps * FS_PER_PS
        chosen = choose(request, now_fs)
        engine = self._engines[chosen]
        if self._arrival_ps[request] != at_ps:  # that is when it was due
            engine.expect(Move(request, -1, now_fs, 0))
        engine.submit((request,))
        self._outstanding[chosen] += 1
        quiet_fs = self._quiet_fs[chosen]
        self._quiet_fs[chosen] = now_fs if now_fs < quiet_fs else quiet_fs
        self._goes(chosen, request, -(-self._outputs[request] // self._step_tokens))
        del self._by_bound[bisect_left(self._by_bound, (self._bounds_ps[chosen], chosen))]
        self._bound(chosen)

    def _choice(self, books: RouterBooks) -> Callable[[int, int], int]:
        """What tells to which engine a request goes, given it and the time, fs."""
        everywhere = range(len(self._engines))
        if not self._looks:
            return lambda _, __: self._deal(len(everywhere))
        books.session_of = self._sessions.session.item
        return ExactRouting(self._engines, self._quiet_fs, self._outstanding, books, None).choice(everywhere)

    def _goes(self, index: int, request: int, steps: int) -> None:
        """A request is under way on that engine, and needs at least so many steps from the next one on."""
        ends_fs, least_ps = (self._engines[index].steps + steps) * self._step_fs, self._sessions.least_ps[request]
        if least_ps < FOREVER:
            heappush(self._followed[index], (ends_fs + least_ps * FS_PER_PS, request, False))
        elif self._sessions.held_ps < FOREVER:
            heappush(self._last[index], (ends_fs, request))

    def _advance(self, index: int, until_fs: int) -> None:
        engine = self._engines[index]
        self._quiet_fs[index] = quiet_fs = engine.advance(until_fs, lazily=True)
        if self._looks:  # whoever leaves at the engine's clock does so at that time
            self._outstanding[index] = engine.outstanding(quiet_fs - 1)
        self._bound(index)

    def _bound(self, index: int) -> None:
        """Find an engine's bound anew."""
        engine, sessions, quiet_fs = self._engines[index], self._sessions, self._quiet_fs[index]
        followed, last, ended = self._followed[index], self._last[index], sessions.ended
        while followed:
            _, request, known = followed[0]
            if ended[request]:
                heappop(followed)
            elif not known and (finish_step := self._running[index].get(request)):  # it decodes now
                finish_step += engine.steps - engine.step  # of all, also those in which nobody decodes
                after_fs = finish_step * self._step_fs + sessions.least_ps[request] * FS_PER_PS
                heapreplace(followed, (after_fs, request, True))
            else:
                break
        begin_fs, bound_ps = engine.clock - engine.steps * self._step_fs, FOREVER  # of step 0, at the latest
        if followed:
            end_fs = begin_fs + followed[0][0]
            bound_ps = (end_fs if end_fs > quiet_fs else quiet_fs) // FS_PER_PS + sessions.beside_ps
        while last and ended[last[0][1]]:
            heappop(last)
        if last:
            end_fs = begin_fs + last[0][0]
            answer_ps = (end_fs if end_fs > quiet_fs else quiet_fs) // FS_PER_PS + sessions.beside_ps
            if answer_ps < bound_ps:
                bound_ps = min(bound_ps, max(answer_ps, sessions.held_ps))
        self._bounds_ps[index] = bound_ps
        insort(self._by_bound, (bound_ps, index))


def _running(engine: ReplicaEngine) -> Mapping[int, int]:
    """By request, the step before which one that decodes there ends, whatever group it is in."""
    cores = engine.cores
    return cores[0].running if len(cores) == 1 else ChainMap(*(core.running for core in cores))
