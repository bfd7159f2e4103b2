"""Routers that see how many requests each replica has outstanding."""

from __future__ import annotations

from collections.abc import Sequence

from pimserve.scheduler.least_in_turn import LeastInTurn
from pimserve.scheduler.router_protocol import LOAD
from pimserve.scheduler.seeded_draws import Drawing


class LeastOutstanding(LeastInTurn):
    """The replica with the fewest outstanding requests; among equals, the next in turn."""

    reason = LOAD

    def pick(self, outstanding: Sequence[int]) -> int:
        """Fewest outstanding."""
        return self.least(outstanding)


class PowerOfTwo(Drawing):
    """Of two replicas drawn at random, the one with fewer outstanding requests; of equals the one drawn first.

    The power of two choices (Mitzenmacher, IEEE TPDS 12(10), 2001), of two that are never the same.

    Args:
        seed: of the draws.
    """

    reason = LOAD

    def pick(self, outstanding: Sequence[int]) -> int:
        """The better of two."""
        replicas = len(outstanding)
        if replicas == 1:
            return 0
        first, second = self._draws.below(replicas), self._draws.below(replicas - 1)
        second += second >= first
        return second if outstanding[second] < outstanding[first] else first
