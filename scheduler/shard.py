"""Some replicas of a run, advanced window by window.

A shard knows nothing of other shards, nor of what comes after the present window, and does the same whenever it is
given the same orders: so it may live in this process or in another, and be restored from its state and later orders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.device_models.slowdown import NORMAL
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import Ledger
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.data_parallel import DataParallelEngine
from pimserve.scheduler.departures import Move
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.exact_routing import ExactRouting
from pimserve.scheduler.faults import Condition, Effect
from pimserve.scheduler.fleet import DECODE, Fleet, ReplicaEngine, RowSink
from pimserve.scheduler.kv_tiers import KvTiers
from pimserve.scheduler.lookahead import Lookahead
from pimserve.scheduler.requests import FOREVER, RequestTable
from pimserve.scheduler.router_books import Decisions, RouterBooks
from pimserve.scheduler.sessions import Sessions
from pimserve.scheduler.shard_port import Order, Report
from pimserve.scheduler.shared_kv_tier import SharedKvTier
from pimserve.scheduler.steplog import StepLog
from pimserve.scheduler.tier_turns import TierTurns


class Shard:
    """Engines and logs of some replicas.

    Args:
        fleet: what the run's replicas are.
        replicas: numbers of those in this shard.
        table: requests of the run, of which the engines write those that are routed to them.
        on_rows: takes executed steps.
        rows_per_flush: how many spans of steps of a replica `on_rows` gets at a time at most; None: thousands.
        sessions: whose turns are all served by its replicas; None: whoever follows comes with an order.
    """

    has_devices = False
    writes_table = True

    def __init__(
        self,
        fleet: Fleet,
        replicas: Sequence[int],
        table: RequestTable,
        on_rows: RowSink | None = None,
        rows_per_flush: int | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        self.fleet = fleet
        self.replicas = tuple(replicas)
        self.table = table
        made = fleet.engines(self.replicas, table, on_rows, rows_per_flush, sessions)
        self._pools = [pool.name for pool, _, _ in made]
        self.engines: list[ReplicaEngine] = [engine for _, engine, _ in made]
        self.logs: list[StepLog] = [log for _, _, log in made]
        self._slowdown = [NORMAL] * len(made)
        self._costs: list[ReplicaCosts] = [engine.costs for engine in self.engines]  # at their normal speed
        self._index = {replica: index for index, replica in enumerate(self.replicas)}
        self._quiet = [0] * len(made)  # before this time no request leaves
        self._outstanding = [0] * len(made)
        self._share_tier()
        self._spec = fleet.spec
        self._decisions: Decisions = Counter()  # since the last report
        self._route_by(fleet.spec)
        self._lookahead: Lookahead | None = None

    def follow(self, sessions: Sessions, deal: Callable[[int], int]) -> None:
        """Route all requests, and those who follow as they come, to the replicas, which are all of the run.

        Args:
            sessions: those that the shard was made with.
            deal: tells which of so many replicas the next request goes to, with a router that does not look at them.
        """
        self._lookahead = Lookahead(self.engines, self._quiet, self._outstanding, self.table, sessions, deal)

    def advance(self, order: Order) -> Report:
        """Run a window."""
        if order.spec is not None:
            self._use(order.spec)
        if order.first_tokens:
            for engine in self.engines:
                engine.departures.first_tokens = engine.departures.first_tokens or []
        for request, replica in _pairs(order.released, order.released_replicas):
            self._changed(replica).release(request, order.released_fs)
        if self._lookahead is not None:
            self._lookahead.run(order.requests, order.until_fs, self._books)
        elif len(order.requests) and not len(order.replicas):
            self._route(order)
        elif len(order.requests):
            self._submit(order)
        for request, replica in _pairs(order.revoked, order.revoked_replicas):
            self._changed(replica).revoke(request)
        wanted = [index for index, pool in enumerate(self._pools) if order.pool is None or pool == order.pool]
        may_wait = self._may_wait(order, wanted)
        if any(index in self._turns for index in wanted):
            self._turns.advance(order.until_fs, may_wait)
        for index in wanted:
            engine = self.engines[index]
            lazily = index in may_wait
            waits = lazily and self._quiet[index] > order.until_fs  # it would come to the same as in the last window
            waits = waits or index in self._turns  # it is there
            if engine.clock < order.until_fs and not waits:
                self._quiet[index] = engine.advance(order.until_fs, lazily=lazily)
            engine.arrive(order.until_fs)
            if order.last:
                engine.settle()
            if order.last or order.flush:
                self.logs[index].flush()
        if self._shared_tier is not None:
            self._shared_tier.settle(order.until_fs)
            if order.last:
                self._shared_tier.end()
        here = [condition for condition in order.conditions if condition.replica in self._index]
        effects = tuple(self._change(condition, order.until_fs) for condition in here)
        return self._report(order, wanted, effects)

    def latest_fs(self) -> int:
        """The latest time that any replica has reached."""
        return max(engine.clock for engine in self.engines)

    def in_hand(self) -> IntArray:
        """Numbers of the requests that are in the shard, or that its router has not seen leave."""
        here = {request for engine in self.engines for request in engine.in_hand()}
        return np.array(sorted(here.union(self._books.requests())), np.int64)

    def rebind(self) -> None:
        """The table has grown."""
        for engine in self.engines:
            engine.bind(self.table)

    def send(self, order: Order) -> None:
        """Begin a window."""
        self._order = order

    def receive(self) -> Report:
        """Run it."""
        return self.advance(self._order)

    def ledgers(self) -> list[Ledger]:
        """What each replica has done so far."""
        for log in self.logs:
            log.flush()
        return [log.ledger(replica) for replica, log in zip(self.replicas, self.logs, strict=True)]

    def tiers(self) -> dict[int, KvTiers]:
        """By replica, the tiers below its prefix cache, of those that have some."""
        found = {engine.costs.replica: core.kv.tiers for engine in self.engines for core in engine.cores}
        return {replica: tiers for replica, tiers in found.items() if tiers is not None}

    def restore_shared_tier(self, state: dict[str, Any]) -> None:
        """Let the tier that replicas share, if they do, be as in the state of such a shard."""
        if self._shared_tier is not None:
            self._shared_tier.restore(state["shared_tier"])

    def state(self) -> dict[str, Any]:
        """All that the shard has in hand, as JSON can hold it, but for the request table."""
        return {
            "engines": [engine.state() for engine in self.engines],
            "logs": [log.state() for log in self.logs],
            "slowdown": self._slowdown,
            "quiet": self._quiet,
            "outstanding": self._outstanding,
            "spec": self._spec.model_dump(mode="json"),
            "books": self._books.state(),
            "shared_tier": None if self._shared_tier is None else self._shared_tier.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the table must have the rows of that time."""
        self._use(SchedulerSpec.restored(state["spec"]))
        self._books.restore(state["books"])
        for index, slowdown in enumerate(state["slowdown"]):
            self._slow(index, slowdown)
        for engine, engine_state in zip(self.engines, state["engines"], strict=True):
            engine.restore(engine_state)
        self.restore_shared_tier(state)
        for log, log_state in zip(self.logs, state["logs"], strict=True):
            log.restore(log_state)
        self._quiet[:] = state["quiet"]
        self._outstanding[:] = state["outstanding"]
        if self._lookahead is not None:
            self._lookahead.restore()

    def _share_tier(self) -> None:
        """Find the tier that replicas of this shard share, if they do, and who takes turns at it."""
        self._shared_tier: SharedKvTier | None = None
        sharing: list[tuple[int, Engine]] = []
        for index, engine in enumerate(self.engines):  # of one group each, as no tiers go with several
            if isinstance(engine, Engine) and (tiers := engine.kv.tiers) is not None and tiers.part is not None:
                self._shared_tier = tiers.part.shared
                sharing.append((index, engine))
        back = self._shared_tier is not None and self._shared_tier.tier.spec.write == "back"
        self._turns = TierTurns(sharing, self._quiet, written_back=back)

    def _may_wait(self, order: Order, wanted: Sequence[int]) -> set[int]:
        """Of these engines, those that nobody looks at when the window ends."""
        if order.last or order.exact:
            return set()
        changing = {condition.replica for condition in order.conditions}
        return {
            index
            for index in wanted
            if self.replicas[index] not in changing and not (order.shown and self._pools[index] != DECODE)
        }

    def _use(self, spec: SchedulerSpec) -> None:
        if self._shared_tier is not None:  # nobody may look up, as it lets more run, what has passed
            self._turns.advance(self._shared_tier.settled_fs)
        if spec.router != self._spec.router:
            self._route_by(spec)
        self._spec = spec
        self._quiet[:] = [0] * len(self.engines)  # who waits may be admitted earlier now
        for engine in self.engines:
            engine.use(spec)

    def _route_by(self, spec: SchedulerSpec) -> None:
        """Have this router, which knows nothing yet, and is told by KV caches what it wants to know of them."""
        self._books = RouterBooks(self.fleet, spec, self.table, lambda _: None, self._decisions)
        for engine, pool in zip(self.engines, self._pools, strict=True):
            wanted = self._books.hears and pool != DECODE  # where no router sends anybody
            engine.publish(wanted=wanted, of_tiers=self._books.hears_tiers)

    def _route(self, order: Order) -> None:
        """Submit each request on its arrival to the replica that the router picks from the replicas' exact state."""
        engines = self.engines
        arrivals = self.table["arrival_ps"][order.requests].tolist()
        moves = {move.request: move for move in order.moves}
        targets: Sequence[int] = range(len(engines))
        if order.targets is not None:
            targets = [self._index[replica] for replica in order.targets]
        self._books.session_of = dict(zip(order.requests.tolist(), order.sessions, strict=False)).get
        choose = ExactRouting(engines, self._quiet, self._outstanding, self._books, self._turns).choice(targets)
        for request, arrival_ps in zip(order.requests.tolist(), arrivals, strict=True):
            now = arrival_ps * FS_PER_PS
            move = moves.get(request) if moves else None
            if move is not None:
                now = move.since_fs
            chosen = choose(request, now)
            if move is not None:
                engines[chosen].expect(move)
            engines[chosen].submit((request,))
            self._outstanding[chosen] += 1
            self._quiet[chosen] = now

    def _submit(self, order: Order) -> None:
        """Submit requests to the replicas that were picked for them."""
        moves = {move.request: move for move in order.moves}
        of_replica: dict[int, list[int]] = {}
        for request, replica in _pairs(order.requests, order.replicas):
            of_replica.setdefault(replica, []).append(request)
        for replica, requests in of_replica.items():
            engine = self._changed(replica)
            if moves:
                for request in requests:
                    if request in moves:
                        engine.expect(moves[request])
            engine.submit(requests)

    def _changed(self, replica: int) -> ReplicaEngine:
        """The engine of a replica in which something may now happen earlier."""
        index = self._index[replica]
        self._quiet[index] = 0
        return self.engines[index]

    def _change(self, condition: Condition, at_fs: int) -> Effect:
        """Let a replica be in this condition from the step boundary at or after `at_fs` on, to which it has run."""
        index = self._index[condition.replica]
        engine = self.engines[index]
        self._slow(index, condition.slowdown)
        lost = 0
        if not condition.up:
            lost = engine.fail(at_fs)
        elif not condition.takes_requests and self._pools[index] != DECODE:  # there, they have brought their KV caches
            lost = engine.drain(at_fs)
        if condition.fresh:
            _forget(engine, at_fs)
        return Effect(condition.replica, max(engine.clock, at_fs), engine.steps, lost)

    def _slow(self, index: int, slowdown: int) -> None:
        if slowdown != self._slowdown[index]:
            self._slowdown[index] = slowdown
            costs = self._costs[index].slowed(slowdown)
            self.engines[index].costs = costs
            self.logs[index].use(costs)

    def _report(self, order: Order, wanted: Sequence[int], effects: tuple[Effect, ...]) -> Report:
        left: list[int] = []
        moved: list[Move] = []
        lost: list[Move] = []
        began: list[int] = []
        states = []
        events: list[tuple[int, int, tuple[int, ...]]] = []
        for index in wanted:
            engine = self.engines[index]
            departures = engine.departures
            left += departures.left
            moved += departures.moved
            lost += departures.lost
            began += departures.first_tokens or ()
            departures.collected()
            states.append(engine.seen_at(order.until_fs))
            self._outstanding[index] = states[-1].outstanding
            # Not where the shard's own router hears them, nor where nobody comes any more.
            if self._books.hears and self._spec.report_interval_s and not order.last:
                told = enumerate(engine.take_events())
                events += [(self.replicas[index], tier, tuple(each)) for tier, each in told if each]
        # Whatever leaves at the end of the step under way is among those that have left.
        ends = [(self._quiet[index], self.engines[index]) for index in wanted]
        quiet_fs = min((max(fs, each.clock + 1, each.next_end_fs()) for fs, each in ends), default=FOREVER)
        gone = np.array(left, np.int64)
        decisions = tuple((*chosen, count) for chosen, count in self._decisions.items())
        self._decisions.clear()
        left_for, firsts = (tuple(moved), tuple(lost), effects), np.array(began, np.int64)
        return Report(order.window, gone, tuple(states), *left_for, quiet_fs, tuple(events), decisions, firsts)


def _forget(engine: ReplicaEngine, at_fs: int) -> None:
    """A replica joins: what was cached went with the one that left, unless that is still finishing."""
    cores = engine.cores if isinstance(engine, DataParallelEngine) else (engine,)
    if all(core.kv.prefixes and not core.kv.used for core in cores):
        for core in cores:
            core.forget(at_fs)


def _pairs(requests: IntArray, replicas: IntArray) -> Iterator[tuple[int, int]]:
    return zip(requests.tolist(), replicas.tolist(), strict=True)
