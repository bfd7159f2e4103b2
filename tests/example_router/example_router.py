"""A router as a package of its own: the power of two choices (Mitzenmacher, IEEE TPDS 12(10), 2001)."""

from __future__ import annotations

import random
from collections.abc import Sequence


class TwoChoices:
    """Of two replicas drawn at random, the one with fewer requests outstanding.

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
