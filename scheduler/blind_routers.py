"""Routers that see nothing of the replicas."""

from __future__ import annotations

import numpy as np

from pimserve.arrays import IntArray
from pimserve.scheduler.router_protocol import RANDOM, TURN
from pimserve.scheduler.seeded_draws import Drawing


class RoundRobin:
    """Each replica in turn."""

    reason = TURN

    def __init__(self) -> None:
        self._turn = 0

    def state(self) -> int:
        """Whose turn it is."""
        return self._turn

    def restore(self, state: int) -> None:
        """Go on with that one."""
        self._turn = state

    def deal(self, count: int, replicas: int) -> IntArray:
        """The next ones in turn."""
        if count == 1 and self._turn < replicas:  # the same, sooner
            dealt = np.array([self._turn])
        else:
            dealt = (self._turn + np.arange(count)) % replicas
        self._turn = (self._turn + count) % replicas
        return dealt


class Random(Drawing):
    """Any replica, all equally likely.

    Args:
        seed: of the draws.
    """

    reason = RANDOM

    def deal(self, count: int, replicas: int) -> IntArray:
        """A draw for each."""
        return np.array([self._draws.below(replicas) for _ in range(count)], np.int64)
