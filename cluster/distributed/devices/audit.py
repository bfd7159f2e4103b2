"""Which steps a device evaluates again one by one, and what it says when they differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.errors import InputError
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.ledger import TimesDifferError
from pimserve.scheduler.steplog import SpanColumns, expand

_MASK = 2**64 - 1


class Audit:
    """A share of a replica's spans, sampled by a hash of seed, replica, device and first step.

    So it does not depend on how spans came, and devices look at different ones.

    Args:
        costs: the replica's costs.
        seed: of the run.
        devices: that look.
        share: of the spans, for each device; from 0 to 1.
    """

    def __init__(self, costs: ReplicaCosts, seed: int, devices: Sequence[int], share: float) -> None:
        if not 0 <= share <= 1:
            raise InputError("audit_share", f"must be from 0 to 1 (got {share})")
        self._costs = costs
        self._keys = [_key(seed, costs.replica, device) for device in devices]
        self._limit = round(share * 2**64)
        self.rows = 0  # looked at so far

    def use(self, costs: ReplicaCosts) -> None:
        """What comes from here on costs this."""
        self._costs = costs

    def check(self, rows: SpanColumns, first_steps: IntArray) -> None:
        """Evaluate the sampled ones of these spans.

        Raises:
            TimesDifferError: a span's steps add up to another time than it came with.
        """
        chosen = self._sampled(first_steps)
        if not len(chosen):
            return
        some, first = SpanColumns(*(column[chosen] for column in rows)), first_steps[chosen]
        own = durations(self._costs, some, first)
        differ = np.flatnonzero(own != some.duration_fs)
        if len(differ):
            at = int(differ[0])
            raise TimesDifferError(int(first[at]), int(some.steps[at]), int(own[at]), int(some.duration_fs[at]))
        self.rows += len(chosen)

    def _sampled(self, first_steps: IntArray) -> NDArray[np.intp]:
        if self._limit > _MASK:
            return np.arange(len(first_steps))
        chosen = np.zeros(len(first_steps), bool)
        for key in self._keys:
            chosen |= _mixed(first_steps.astype(np.uint64) + np.uint64(key)) < np.uint64(self._limit)
        return np.flatnonzero(chosen)


def durations(costs: ReplicaCosts, rows: SpanColumns, first_steps: IntArray) -> IntArray:
    """(n,): time of each span, its steps evaluated one by one."""
    if not len(first_steps):
        return np.zeros(0, np.int64)
    begins = np.cumsum(rows.steps) - rows.steps
    steps = expand(costs, rows, first_steps)
    return np.asarray(np.add.reduceat(steps.duration_fs, begins))


def _key(seed: int, replica: int, device: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + replica * 0xD1B54A32D192ED03 + device * 0x8CB92BA72F3D8DD7) & _MASK


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
