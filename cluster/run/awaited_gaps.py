"""Requests that have left, until the longest gaps between their tokens are known, where a limit is of these.

Step logs know the gaps of all that have left once they are looked at, which costs the run some milliseconds: so with
such a limit requests are judged when the ledgers are, once in a while and at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.control import Ledger
from pimserve.scheduler.longest_gaps import LongestGaps


class AwaitedGaps:
    """Holds requests back; `wanted`: whether there is such a limit. Without, nobody waits."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._held: list[IntArray] = []

    def known(self, left: IntArray, ledgers: Sequence[Ledger], n: int) -> tuple[IntArray, IntArray | None]:
        """Those of all that have left so far who are not held back any more, and their longest gaps.

        Args:
            left: numbers of requests that have left, or that the end of the run has cut off.
            ledgers: of all replicas, where they were looked at after that; else none.
            n: requests of the run.

        Returns:
            Numbers (m,), and gaps (m,), ps; None where nobody asks for them.
        """
        if not self._wanted:
            return left, None
        self._held.append(left)
        longest_fs = LongestGaps.of_all((ledger.longest for ledger in ledgers), n)
        if longest_fs is None:
            return left[:0], left[:0]
        requests, self._held = np.concatenate(self._held), []
        return requests, longest_fs[requests] // FS_PER_PS
