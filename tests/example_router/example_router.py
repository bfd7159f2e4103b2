"""Two routers as a package of its own: one by numbers of requests, and one that sees more of the replicas."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pimserve.scheduler.router_protocol import ReplicaView, RequestView


class TwoChoices:
    """Of two replicas drawn at random, the one with fewer requests outstanding (Mitzenmacher, IEEE TPDS 12(10), 2001).

    It has a generator of its own, seeded by how often it was asked: the same run picks the same replicas again, on
    any number of processes, and `state` is one number.
    """

    def __init__(self) -> None:
        self._asked = 0

    def state(self) -> int:
        """What must be kept to go on after an interruption, as JSON can hold it."""
        return self._asked

    def restore(self, state: int) -> None:
        """Go on from that."""
        self._asked = state

    def pick(self, outstanding: Sequence[int]) -> int:
        """Number of the replica, from 0 to len(outstanding) - 1."""
        draw = random.Random(self._asked)
        self._asked += 1
        return min(draw.choices(range(len(outstanding)), k=2), key=outstanding.__getitem__)


class ShortestQueue:
    """The replica where fewest requests wait, or were sent since its report; of equals, that with the fewest tokens."""

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """Number of the replica in `replicas`, those that may take the request."""
        load = [(replica.waiting + replica.sent, replica.tokens_in_flight) for replica in replicas]
        return load.index(min(load))
