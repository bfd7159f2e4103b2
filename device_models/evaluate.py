"""What steps cost by a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class DecodeSpan(NamedTuple):
    """Time of decode steps that follow each other, in closed form.

    Step number k of them takes `first_fs` + k x `growth_fs`, and what its experts take: `experts`[i] is the time of
    those of the first i steps of a sequence in which the span begins at `at` (empty: there are none).
    """

    steps: int  # for which that holds
    busiest_tokens: int  # of each step, in the busiest data-parallel group
    first_fs: int
    growth_fs: int
    experts: Sequence[int] = ()
    at: int = 0

    def duration_fs(self, steps: int) -> int:
        """Time of the first so many steps."""
        _, _, first, growth, experts, at = self
        time = steps * first + growth * (steps * (steps - 1) // 2)
        return time + experts[at + steps] - experts[at] if experts else time

    def first_reaching(self, limit_fs: int, most: int, duration_fs: int) -> tuple[int, int]:
        """(n, time of n steps) for the smallest n of at most `most` whose time is at least `limit_fs`.

        `duration_fs` is the time of `most` steps, which is more than `limit_fs`.
        """
        mean = duration_fs // most
        n = max(1, limit_fs * most // duration_fs)
        time = self.duration_fs(n)
        while time < limit_fs:
            n = min(most, n + 1 + (limit_fs - time) // (mean + 1))
            time = self.duration_fs(n)
        while n > 1:
            before = self.duration_fs(n - 1)
            if before < limit_fs:
                break
            n, time = n - 1, before
        return n, time
