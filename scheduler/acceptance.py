"""How many drafts are accepted: whole numbers by a law and a seed, known of all steps at once.

A table of many steps has each number as often as the law says, in an order that the seed draws. A request reads it from
a place of its own on, an entry for each step of its replica, so that what it has emitted by any step, and when it will
have all, are differences of prefix sums, and hang on nothing but seed, request and step.
"""

from __future__ import annotations

import numpy as np

from pimserve.arrays import IntArray
from pimserve.scheduler.seeded_draws import mixed64
from pimserve.scheduler.speculative_spec import SpeculativeSpec

STEPS = 2**14  # of the table
_TAG = 7  # of the random stream


class Acceptance:
    """Tokens that requests emit in steps that verify drafts.

    Args:
        spec: the law.
        seed: of the run.
    """

    def __init__(self, spec: SpeculativeSpec, seed: int) -> None:
        self.spec = spec
        self._seed = seed
        accepted = np.repeat(np.arange(spec.verify_tokens), _counts(spec.law))
        self.emitted: IntArray = 1 + np.random.default_rng([seed, _TAG]).permutation(accepted)  # (STEPS,)
        self._twice = np.concatenate([self.emitted, self.emitted])
        self._mean = float(self.emitted.mean())

    def place(self, request: int) -> int:
        """Where in the table a request has step 0 of its replica."""
        return mixed64(self._seed * 0x9E3779B97F4A7C15 + request * 0xD1B54A32D192ED03 + _TAG) % STEPS

    def from_step(self, request: int, step: int, left: int) -> IntArray:
        """(n,) tokens that a request with `left` to emit has in this step and the following ones, the last of which
        emits no more than are left."""
        begin = (self.place(request) + step) % STEPS
        most = min(left, int(1.25 * left / self._mean) + 64)
        while True:
            if most <= STEPS:
                tokens = self._twice[begin : begin + most].copy()
            else:
                tokens = self.emitted.take(np.arange(begin, begin + most), mode="wrap")
            passed = tokens.cumsum()
            if passed[-1] >= left:
                break
            most = left
        n = int(passed.searchsorted(left)) + 1
        tokens[n - 1] -= int(passed[n - 1]) - left
        return np.asarray(tokens[:n])


def _counts(law: tuple[float, ...]) -> IntArray:
    """(numbers,): how often each number is in the table; what whole ones leave goes to the largest remainders."""
    exact = np.asarray(law) * STEPS
    counts = np.floor(exact + 1e-9).astype(np.int64)
    short = STEPS - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    return counts
