"""What the replicas of two pools are told in a window: those for prefill go first, and hand over to the others.

Nothing flows back before the window's end. Requests of which a failure took the KV cache, wherever it was, come to the
router again, and start over on a prefill replica with prompt and tokens so far:

- on a prefill replica that fails, those that wait or run there, and those whose caches have not left it;
- on a decode replica that fails, those that run there or wait, and those whose caches are on their way there.

A replica that leaves finishes what it has: one for prefill what runs, and hands it over; one for decode also what waits
there or is on its way, as that has brought its KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.scheduler.conditional_disagg import ConditionalDisagg
from pimserve.scheduler.control import ReplicaState
from pimserve.scheduler.departures import Move
from pimserve.scheduler.faults import Faults
from pimserve.scheduler.fleet import DECODE, PREFILL, Fleet
from pimserve.scheduler.handover import Handovers, Link, held_tokens
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.shard_port import Order, Report, ShardPort


class PoolOrders:
    """Makes the orders of both pools out of that of a window, and has them carried out.

    Args:
        fleet: the replicas.
        link: from the pool for prefill to that for decode.
        faults: what happens to the replicas.
        table: all requests.
    """

    def __init__(self, fleet: Fleet, link: Link, faults: Faults, table: RequestTable) -> None:
        decode, size = fleet.pools[1], fleet.spec.block_size
        lookahead = decode.lookahead_tokens(fleet.spec)
        self.handovers = Handovers(link, decode.numbers, decode.kv_blocks(size), size, decode.kv_groups, lookahead)
        self._decode_cores = decode.plan.engine_cores
        self._numbers = {pool.name: pool.numbers for pool in fleet.pools}
        self._faults = faults
        self._table = table
        self._conditional = None if decode.conditional is None else ConditionalDisagg(decode.conditional, table)

    @property
    def to_hand_over(self) -> bool:
        """Whether requests wait between the pools, not in vain."""
        return self.handovers.waiting > 0 and self._taken_over

    @property
    def full_for_good(self) -> bool:
        """Whether a prefill replica that has nothing to do, but requests that wait, will never have room for them."""
        return not self._taken_over and not self.handovers.releases

    def reset(self) -> None:
        """Nothing is anywhere."""
        self.handovers.reset()
        if self._conditional is not None:
            self._conditional.reset()

    def reported(self, state: ReplicaState) -> None:
        """How a replica is."""
        if state.pool == DECODE:
            self.handovers.reported(state)
        elif self._conditional is not None:
            self._conditional.reported(state)

    def for_prefill(self, requests: IntArray, moves: tuple[Move, ...]) -> tuple[IntArray, tuple[Move, ...]]:
        """Those of the requests that come, and of the moves among them, that go to prefill replicas."""
        if self._conditional is None:
            return requests, moves
        remote, moved, local = self._conditional.split(requests, moves)
        self.handovers.add(local)
        return remote, moved

    def carry_out(
        self,
        order: Order,
        shards: Sequence[ShardPort],
        tell: Callable[[Order, Sequence[ShardPort]], list[Report]],
        reported_fs: int,
        max_num_seqs: int,
    ) -> tuple[list[Report], list[Move]]:
        """Reports of all replicas, and who was lost on the way to those for decode.

        Args:
            order: of the window, with requests for prefill replicas.
            shards: every replica is in one of them.
            tell: gives an order to shards.
            reported_fs: when pools last heard of each other.
            max_num_seqs: requests that a data-parallel group has at most.
        """
        first = tell(self._prefill(order, reported_fs), self._shards_of(PREFILL, shards))
        there, lost = self._decode(order, first, reported_fs, max_num_seqs)
        then = tell(there, self._shards_of(DECODE, shards))
        self._ended(order, then)
        return [*first, *then], lost

    def state(self) -> dict[str, Any]:
        """What is between the pools, as JSON can hold it."""
        conditional = None if self._conditional is None else self._conditional.state()
        return {"handovers": self.handovers.state(), "conditional": conditional}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.handovers.restore(state["handovers"])
        if self._conditional is not None:
            self._conditional.restore(state["conditional"])

    def _shards_of(self, pool: str, shards: Sequence[ShardPort]) -> list[ShardPort]:
        """Shards with replicas of a pool."""
        return [shard for shard in shards if any(replica in self._numbers[pool] for replica in shard.replicas)]

    def _prefill(self, order: Order, reported_fs: int) -> Order:
        """What of it is for prefill replicas, which hear at `reported_fs` of caches that have left them."""
        released, replicas = self.handovers.released(reported_fs)
        return replace(
            self._of(PREFILL, order),
            released=released,
            released_replicas=replicas,
            released_fs=reported_fs,
            targets=None,
        )

    def _decode(
        self, order: Order, reports: Sequence[Report], reported_fs: int, max_num_seqs: int
    ) -> tuple[Order, list[Move]]:
        """What is for decode replicas, and who was lost on the way to them; with the reports of prefill replicas."""
        handovers = self.handovers
        for report in reports:
            handovers.add(report.moved)
        takers = self._faults.takers(handovers.targets)
        most = max_num_seqs * self._decode_cores
        sent = handovers.route(order.until_fs, reported_fs, takers, most, self._table)
        lost: list[Move] = []
        revoked: list[tuple[int, int]] = []
        for replica, at_fs in _failures(self._of(PREFILL, order), reports):
            moves, ended = handovers.sender_failed(replica, at_fs)
            lost += moves
            revoked += [(transfer.request, transfer.target) for transfer in ended]
        self._faults.lost_tokens += sum(held_tokens(self._table, move.request) for move in lost)
        there = replace(
            self._of(DECODE, order),
            requests=np.array([move.request for _, move in sent], np.int64),
            replicas=np.array([replica for replica, _ in sent], np.int64),
            moves=tuple(move for _, move in sent),
            targets=None,
            revoked=np.array([request for request, _ in revoked], np.int64),
            revoked_replicas=np.array([replica for _, replica in revoked], np.int64),
        )
        return there, lost

    def _ended(self, order: Order, reports: Sequence[Report]) -> None:
        """All replicas have gone through the window, decode replicas with these reports."""
        decode = self._of(DECODE, order)
        for replica, at_fs in _failures(decode, reports):
            self.handovers.receiver_failed(replica, at_fs)
        if any(condition.takes_requests for condition in decode.conditions):
            self.handovers.opened(order.until_fs)

    @property
    def _taken_over(self) -> bool:
        """Whether a decode replica takes requests over, or will again."""
        return self._faults.any_left(self.handovers.targets)

    def _of(self, pool: str, order: Order) -> Order:
        """The order with what changes in one pool."""
        numbers = self._numbers[pool]
        conditions = tuple(condition for condition in order.conditions if condition.replica in numbers)
        return replace(order, pool=pool, conditions=conditions)


def _failures(order: Order, reports: Sequence[Report]) -> list[tuple[int, int]]:
    """(replica, when it took effect) of those of an order that are down from its end on."""
    at_fs = {effect.replica: effect.at_fs for report in reports for effect in report.effects}
    return [(condition.replica, at_fs[condition.replica]) for condition in order.conditions if not condition.up]
