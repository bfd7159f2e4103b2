"""What goes between the clock and a shard of replicas: an order for each window, and a report of what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from pimserve.arrays import IntArray
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import Ledger, ReplicaState
from pimserve.scheduler.departures import Move
from pimserve.scheduler.faults import Condition, Effect
from pimserve.scheduler.kv_tiers import KvTiers
from pimserve.scheduler.requests import FOREVER
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
        shown: the router sees tokens and KV blocks as they are at the end of the window: spans are cut there.
        exact: somebody sees all replicas, those for decode too, as they are at the end of the window: likewise.
        first_tokens: tell who had a first token, in every window.
        sessions: of each request that the shard routes, the session that it is a turn of, if of any.
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
    shown: bool = False
    exact: bool = False
    first_tokens: bool = False
    sessions: tuple[int | None, ...] = ()
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
        quiet_fs: before this time none leaves the replicas that the order was for, if no other is routed there.
        kv_events: by replica and tier, 0 for the devices, what became of cached blocks (`PrefixIndex.heard`), for a
            router elsewhere that wants it.
        decisions: of the shard's router, how many requests went to which replica, and why.
        first_tokens: requests that had theirs, at a time that may be ahead, if the order asks for them.
    """

    window: int
    left: IntArray
    states: tuple[ReplicaState, ...]
    moved: tuple[Move, ...] = ()
    lost: tuple[Move, ...] = ()
    effects: tuple[Effect, ...] = ()
    quiet_fs: int = FOREVER
    kv_events: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    decisions: tuple[tuple[int, str, int], ...] = ()
    first_tokens: IntArray = field(default_factory=lambda: NONE)

    @property
    def ended(self) -> IntArray:
        """Requests that finished or were rejected."""
        elsewhere = [move.request for move in (*self.moved, *self.lost)]
        return self.left[~np.isin(self.left, elsewhere)] if elsewhere else self.left


class ShardPort(Protocol):
    """A shard, wherever it lives.

    `has_devices`: its state holds that of devices too. `writes_table`: its engines write into the run's table at once,
    not when the shard reports.
    """

    has_devices: bool

    @property
    def writes_table(self) -> bool:
        """As above."""

    @property
    def replicas(self) -> Sequence[int]:
        """Numbers of its replicas."""

    @property
    def logs(self) -> Sequence[StepLog]:
        """Logs of the replicas; after the last window."""

    def send(self, order: Order) -> None:
        """Begin a window."""

    def receive(self) -> Report:
        """Wait for its end; the table then has what happened to the requests that left, or had their first token."""

    def latest_fs(self) -> int:
        """The latest time that any of its replicas has reached, even in a window that failed."""

    def rebind(self) -> None:
        """Requests were added to the table."""

    def ledgers(self) -> list[Ledger]:
        """Per replica: its number, busy seconds per unit, energy and tokens so far."""

    def tiers(self) -> Mapping[int, KvTiers]:
        """By replica, the tiers below its prefix cache; of those that have some, after the last window."""

    def state(self) -> dict[str, Any]:
        """All that the shard has in hand, as JSON can hold it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
