"""What the replicas of two pools are told in a window: those for prefill go first, and hand over to the others.

Nothing flows back before the window's end. Requests of which a failure took the KV cache, wherever it was, come to the
router again, and start over on a prefill replica with prompt and tokens so far:

- on a prefill replica that fails, those that wait or run there, and those whose caches have not left it;
- on a decode replica that fails, those that run there or wait, and those whose caches are on their way there.

A replica that leaves finishes what it has: one for prefill what runs, and hands it over; one for decode also what waits
there or is on its way, as that has brought its KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pimserve.scheduler.departures import Move
from pimserve.scheduler.faults import Faults
from pimserve.scheduler.fleet import DECODE, PREFILL, Fleet
from pimserve.scheduler.handover import Handovers, Link, held_tokens
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.shard_port import Order, Report


class PoolOrders:
    """Makes the orders of both pools out of that of a window.

    Args:
        fleet: the replicas.
        link: from the pool for prefill to that for decode.
        faults: what happens to the replicas.
        table: all requests.
    """

    def __init__(self, fleet: Fleet, link: Link, faults: Faults, table: RequestTable) -> None:
        decode, size = fleet.pools[1], fleet.spec.block_size
        self.handovers = Handovers(link, decode.numbers, decode.kv_blocks(size), size, decode.kv_groups)
        self._decode_cores = decode.plan.engine_cores
        self._numbers = {pool.name: pool.numbers for pool in fleet.pools}
        self._faults = faults
        self._table = table

    @property
    def to_hand_over(self) -> bool:
        """Whether requests wait between the pools, not in vain."""
        return self.handovers.waiting > 0 and self._taken_over

    @property
    def full_for_good(self) -> bool:
        """Whether a prefill replica that has nothing to do, but requests that wait, will never have room for them."""
        return not self._taken_over and not self.handovers.releases

    def prefill(self, order: Order, reported_fs: int) -> Order:
        """What of it is for prefill replicas, which hear at `reported_fs` of caches that have left them."""
        released, replicas = self.handovers.released(reported_fs)
        return replace(
            self._of(PREFILL, order),
            released=released,
            released_replicas=replicas,
            released_fs=reported_fs,
            targets=None,
        )

    def decode(
        self, order: Order, reports: Sequence[Report], reported_fs: int, max_num_seqs: int
    ) -> tuple[Order, list[Move]]:
        """What is for decode replicas, and who was lost on the way to them.

        Args:
            order: of the window.
            reports: of prefill replicas.
            reported_fs: when decode replicas last told what room they have.
            max_num_seqs: requests that a data-parallel group of one of them has at most.
        """
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

    def ended(self, order: Order, reports: Sequence[Report]) -> None:
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
