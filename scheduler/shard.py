"""Some replicas of a run, advanced window by window.

A shard knows nothing of other shards, nor of what comes after the present window, and does the same whenever it is
given the same orders: so it may live in this process or in another, and be restored from its state and later orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.device_models.slowdown import NORMAL
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import Ledger, ReplicaState
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.departures import Move
from pimserve.scheduler.engine import Engine
from pimserve.scheduler.faults import Condition, Effect
from pimserve.scheduler.fleet import DECODE, Fleet, RowSink
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.router import Router, make_router, restore_router, router_state
from pimserve.scheduler.steplog import StepLog

NONE: IntArray = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Order:
    """What a shard is to do in one window.

    Args:
        window: its number, from 0 up.
        until_fs: its end: all steps run that start before it. Decode spans that would end after it are left for later,
            unless this is the `last` window.
        requests: numbers of requests that are routed here, by arrival.
        replicas: of each the replica; empty: the shard routes them, each on its arrival from its replicas' exact state.
        last: nothing comes after it.
        spec: scheduler settings from here on; None leaves them.
        flush: hand on all executed steps at the end of the window.
        pool: only replicas of that pool; None: all.
        moves: of `requests` those that were elsewhere before.
        released, released_replicas: requests whose KV caches have left these replicas, which have their blocks again
            from `released_fs` on.
        revoked, revoked_replicas: requests whose KV caches will not come to these replicas, as they were told.
        targets: replicas that the shard may route requests to; None: all.
        conditions: how replicas are from the end of the window on, or from the end of the step that is under way then.
    """

    window: int
    until_fs: int
    requests: IntArray = field(default_factory=lambda: NONE)
    replicas: IntArray = field(default_factory=lambda: NONE)
    last: bool = False
    spec: SchedulerSpec | None = None
    flush: bool = False
    pool: str | None = None
    moves: tuple[Move, ...] = ()
    released: IntArray = field(default_factory=lambda: NONE)
    released_replicas: IntArray = field(default_factory=lambda: NONE)
    released_fs: int = 0
    revoked: IntArray = field(default_factory=lambda: NONE)
    revoked_replicas: IntArray = field(default_factory=lambda: NONE)
    targets: tuple[int, ...] | None = None
    conditions: tuple[Condition, ...] = ()

    def part(self, replicas: Sequence[int]) -> Order:
        """What of it is for the shard of these replicas."""
        mine, released = np.isin(self.replicas, replicas), np.isin(self.released_replicas, replicas)
        revoked = np.isin(self.revoked_replicas, replicas)
        requests = self.requests[mine]
        here = set(requests.tolist()) if self.moves else set()
        return replace(
            self,
            requests=requests,
            replicas=self.replicas[mine],
            moves=tuple(move for move in self.moves if move.request in here),
            released=self.released[released],
            released_replicas=self.released_replicas[released],
            revoked=self.revoked[revoked],
            revoked_replicas=self.revoked_replicas[revoked],
            conditions=tuple(condition for condition in self.conditions if condition.replica in replicas),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What came of an order.

    Args:
        window: number of the order.
        left: requests that are not here any more: finished, rejected, or among the next two.
        states: of the replicas that the order was for.
        moved: requests that are handed over to the other pool.
        lost: requests that have to be served elsewhere because of a fault.
        effects: when the order's conditions took effect.
    """

    window: int
    left: IntArray
    states: tuple[ReplicaState, ...]
    moved: tuple[Move, ...] = ()
    lost: tuple[Move, ...] = ()
    effects: tuple[Effect, ...] = ()

    @property
    def ended(self) -> IntArray:
        """Requests that finished or were rejected."""
        elsewhere = [move.request for move in (*self.moved, *self.lost)]
        return self.left[~np.isin(self.left, elsewhere)] if elsewhere else self.left


class ShardPort(Protocol):
    """A shard, wherever it lives. `has_devices`: its state holds that of devices too."""

    has_devices: bool

    @property
    def replicas(self) -> Sequence[int]:
        """Numbers of its replicas."""

    @property
    def logs(self) -> Sequence[StepLog]:
        """Logs of the replicas; after the last window."""

    def send(self, order: Order) -> None:
        """Begin a window."""

    def receive(self) -> Report:
        """Wait for the window's end; the table then has what happened to the requests that left."""

    def latest_fs(self) -> int:
        """The latest time that any of its replicas has reached, even in a window that failed."""

    def rebind(self) -> None:
        """Requests were added to the table."""

    def ledgers(self) -> list[Ledger]:
        """Per replica: its number, busy seconds per unit, energy and tokens so far."""

    def state(self) -> dict[str, Any]:
        """All that the shard has in hand, as JSON can hold it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


class Shard:
    """Engines and logs of some replicas.

    Args:
        fleet: what the run's replicas are.
        replicas: numbers of those in this shard.
        table: requests of the run, of which the engines write those that are routed to them.
        on_rows: takes executed steps.
        rows_per_flush: how many spans of steps of a replica `on_rows` gets at a time at most; None: thousands.
    """

    has_devices = False

    def __init__(
        self,
        fleet: Fleet,
        replicas: Sequence[int],
        table: RequestTable,
        on_rows: RowSink | None = None,
        rows_per_flush: int | None = None,
    ) -> None:
        self.fleet = fleet
        self.replicas = tuple(replicas)
        self.table = table
        made = fleet.engines(self.replicas, table, on_rows, rows_per_flush)
        self._pools = [pool.name for pool, _, _ in made]
        self.engines: list[Engine] = [engine for _, engine, _ in made]
        self.logs: list[StepLog] = [log for _, _, log in made]
        self._slowdown = [NORMAL] * len(made)
        self._costs: list[ReplicaCosts] = [engine.costs for engine in self.engines]  # at their normal speed
        self._index = {replica: index for index, replica in enumerate(self.replicas)}
        self._quiet = [0] * len(made)  # before this time no request leaves
        self._outstanding = [0] * len(made)
        self._spec = fleet.spec
        self._router: Router | None = make_router(fleet.spec.router)

    def advance(self, order: Order) -> Report:
        """Run a window."""
        if order.spec is not None:
            self._use(order.spec)
        for request, replica in zip(order.released.tolist(), order.released_replicas.tolist(), strict=True):
            self.engines[self._index[replica]].release(request, order.released_fs)
        if len(order.requests) and not len(order.replicas):
            self._route(order)
        elif len(order.requests):
            self._submit(order)
        for request, replica in zip(order.revoked.tolist(), order.revoked_replicas.tolist(), strict=True):
            self.engines[self._index[replica]].revoke(request)
        changing = {condition.replica for condition in order.conditions}
        wanted = [index for index, pool in enumerate(self._pools) if order.pool is None or pool == order.pool]
        for index in wanted:
            engine = self.engines[index]
            if engine.clock < order.until_fs:
                lazily = not order.last and self.replicas[index] not in changing
                self._quiet[index] = engine.advance(order.until_fs, lazily=lazily)
            if order.last:
                engine.settle()
            if order.last or order.flush:
                self.logs[index].flush()
        here = [condition for condition in order.conditions if condition.replica in self._index]
        effects = tuple(self._change(condition, order.until_fs) for condition in here)
        return self._report(order, wanted, effects)

    def latest_fs(self) -> int:
        """The latest time that any replica has reached."""
        return max(engine.clock for engine in self.engines)

    def in_hand(self) -> IntArray:
        """Numbers of the requests that are in the shard."""
        return np.array(sorted({request for engine in self.engines for request in engine.in_hand()}), np.int64)

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

    def state(self) -> dict[str, Any]:
        """All that the shard has in hand, as JSON can hold it, but for the request table."""
        return {
            "engines": [engine.state() for engine in self.engines],
            "logs": [log.state() for log in self.logs],
            "slowdown": self._slowdown,
            "quiet": self._quiet,
            "outstanding": self._outstanding,
            "spec": self._spec.model_dump(mode="json"),
            "router": router_state(self._router),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the table must have the rows of that time."""
        self._use(SchedulerSpec.model_construct(**state["spec"]))
        restore_router(self._router, state["router"])
        for index, slowdown in enumerate(state["slowdown"]):
            self._slow(index, slowdown)
        for engine, engine_state in zip(self.engines, state["engines"], strict=True):
            engine.restore(engine_state)
        for log, log_state in zip(self.logs, state["logs"], strict=True):
            log.restore(log_state)
        self._quiet = list(state["quiet"])
        self._outstanding = list(state["outstanding"])

    def _use(self, spec: SchedulerSpec) -> None:
        if spec.router != self._spec.router:
            self._router = make_router(spec.router)
        self._spec = spec
        self._quiet = [0] * len(self.engines)  # who waits may be admitted earlier now
        for engine in self.engines:
            engine.use(spec)

    def _route(self, order: Order) -> None:
        """Submit each request on its arrival to the replica that the router picks from the replicas' exact state."""
        assert self._router is not None
        engines, quiet, outstanding = self.engines, self._quiet, self._outstanding
        arrivals = self.table["arrival_ps"][order.requests].tolist()
        moves = {move.request: move for move in order.moves}
        targets = None if order.targets is None else [self._index[replica] for replica in order.targets]
        for request, arrival_ps in zip(order.requests.tolist(), arrivals, strict=True):
            now = arrival_ps * FS_PER_PS
            move = moves.get(request) if moves else None
            if move is not None:
                now = move.since_fs
            for index, engine in enumerate(engines):
                if quiet[index] <= now:
                    quiet[index] = engine.advance(now, lazily=True)  # pragma: no mutate (only rows are shorter without)
                    outstanding[index] = engine.outstanding(now)
            if targets is None:
                chosen = self._router.pick(outstanding)
            else:
                chosen = targets[self._router.pick([outstanding[index] for index in targets])]
            if move is not None:
                engines[chosen].expect(move)
            engines[chosen].submit((request,))
            outstanding[chosen] += 1
            quiet[chosen] = now

    def _submit(self, order: Order) -> None:
        """Submit requests to the replicas that were picked for them."""
        moves = {move.request: move for move in order.moves}
        ordered = np.argsort(order.replicas, kind="stable")
        numbers, begins = np.unique(order.replicas[ordered], return_index=True)
        for replica, mine in zip(numbers.tolist(), np.split(order.requests[ordered], begins[1:]), strict=True):
            engine, requests = self.engines[self._index[replica]], mine.tolist()
            if moves:
                for request in requests:
                    if request in moves:
                        engine.expect(moves[request])
            engine.submit(requests)

    def _change(self, condition: Condition, at_fs: int) -> Effect:
        """Let a replica be in this condition from the step boundary at or after `at_fs` on, to which it has run."""
        index = self._index[condition.replica]
        engine = self.engines[index]
        self._slow(index, condition.slowdown)
        lost = 0
        if not condition.up:
            lost = engine.fail(at_fs)
        elif not condition.takes_requests and self._pools[index] != DECODE:  # there, they have brought their KV caches
            engine.drain(at_fs)
        return Effect(condition.replica, max(engine.clock, at_fs), engine.step, lost)

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
        states = []
        for index in wanted:
            engine = self.engines[index]
            departures = engine.departures
            left += departures.left
            moved += departures.moved
            lost += departures.lost
            departures.collected()
            states.append(engine.seen_at(order.until_fs))
            self._outstanding[index] = states[-1].outstanding
        return Report(order.window, np.array(left, np.int64), tuple(states), tuple(moved), tuple(lost), effects)
