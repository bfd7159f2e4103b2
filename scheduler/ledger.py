"""A replica's ledger: what its executed spans come to, in closed form.

The step log looks at every single step, for latencies and the digest. Whoever only wants times, energies and counts
needs a few operations per span: inside a span everything is affine in the step, and the experts' outcomes are
differences of prefix sums. The sums are those of the log to the last unit, and each span's own time is compared with
the one that it came with.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.evaluate import evaluate
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.routing import POOL_SIZE
from pimserve.device_models.step import each_step
from pimserve.errors import PimserveError
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.exact import exact_dot, exact_sum
from pimserve.scheduler.steplog import SpanColumns
from pimserve.scheduler.totals import CostTotals

_SUMS = ("steps", "busy_fs", "tokens", "outputs", "kv_blocks", "peak_kv_blocks")
_TABLES_KEPT = 2048  # token counts whose outcomes are kept summed up, 10 kB each


class TimesDifferError(PimserveError):
    """Steps took another time than they are said to have."""

    def __init__(self, first_step: int, steps: int, own_fs: int, given_fs: int) -> None:
        which = f"step {first_step}" if steps == 1 else f"steps {first_step} to {first_step + steps - 1}"
        super().__init__(f"{which}: {given_fs:,} fs by the engine, {own_fs:,} fs by the device's own plan")
        self.first_step = first_step


class ReplicaLedger(CostTotals):
    """Sums over one replica's executed spans.

    Args:
        costs: the replica's costs.
    """

    def __init__(self, costs: ReplicaCosts) -> None:
        super().__init__(costs.plan)
        self.costs = costs
        self.steps = 0
        self.busy_fs = 0
        self.tokens = 0  # that passed through the layers
        self.outputs = 0  # that were sampled
        self.kv_blocks = 0  # in use during the last step
        self.peak_kv_blocks = 0

    def take(self, rows: SpanColumns, first_steps: IntArray, experts: IntArray | None = None) -> None:
        """Add up spans.

        Args:
            rows: spans of the replica, in their order; those with prompts are single steps.
            first_steps: (n,), the number of each one's first step.
            experts: (n, features) of routed experts in them; None where the plan has none.

        Raises:
            TimesDifferError: a span's time is not what the plan says; the ledger is then of no use any more.
        """
        n = rows.steps
        costs = evaluate(self.costs.plan, rows.shape, None if experts is None else list(experts.T))
        own = costs.duration_fs
        differ = np.flatnonzero(own != rows.duration_fs)
        if len(differ):
            at = int(differ[0])
            raise TimesDifferError(int(first_steps[at]), int(n[at]), int(own[at]), int(rows.duration_fs[at]))
        self.add(costs)
        self.rebalance(self.costs.pools)
        self.steps += int(n.sum())
        self.busy_fs += exact_sum(rows.duration_fs)
        self.tokens += exact_dot(self.costs.plan.tokens_of(rows.shape), n)
        self.outputs += exact_dot(rows.outputs, n)
        if len(n):
            self.kv_blocks = int(rows.blocks_end[-1])
            self.peak_kv_blocks = max(self.peak_kv_blocks, int(rows.blocks_end.max()))

    def use(self, costs: ReplicaCosts) -> None:
        """What comes from here on costs this, on the same units."""
        self.costs = costs

    def state(self) -> dict[str, Any]:
        """All that was added up so far, as JSON can hold it."""
        return {
            **{name: getattr(self, name) for name in _SUMS},
            **super().state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        super().restore(state)
        for name in _SUMS:
            setattr(self, name, state[name])


def mixed_features(costs: ReplicaCosts, rows: SpanColumns, first_steps: IntArray) -> IntArray:
    """(n, mixed features): routed experts of spans, and what their steps wait for, of a plan with micro-batches.

    Args:
        costs: the replica's costs.
        rows: (n,) spans.
        first_steps: (n,), the number of each one's first step.
    """
    begins = np.cumsum(rows.steps) - rows.steps
    numbers = np.arange(int(rows.steps.sum())) + np.repeat(first_steps - begins, rows.steps)
    features = costs.experts_features(each_step(rows.shape), numbers)
    return np.add.reduceat(features, begins) if len(begins) else features


class PooledSpans:
    """Routed experts of spans, from the pools of a replica's costs, as differences of prefix sums.

    Args:
        costs: the replica's costs, with pools.
    """

    def __init__(self, costs: ReplicaCosts) -> None:
        self._costs = costs
        self._table = np.zeros((0, 2 * POOL_SIZE + 1, len(FEATURES)), np.int64)
        self._place: dict[int, int] = {}

    def outcomes(self, first_steps: IntArray) -> IntArray:
        """(n,): numbers of the outcomes with which spans begin."""
        return (self._costs.offset + first_steps) % POOL_SIZE

    def features(self, tokens: IntArray, outcomes: IntArray, steps: IntArray) -> IntArray:
        """(n, features): of spans of so many steps, at most POOL_SIZE, each of `tokens` tokens.

        Args:
            tokens: (n,), of each step.
            outcomes: (n,), number of the outcome of the first step; the next steps take the next ones.
            steps: (n,).
        """
        pools = self._costs.pools
        assert pools is not None
        features = np.empty((len(tokens), len(FEATURES)), np.int64)
        long = steps > 1
        if not long.all():  # such as steps with prompts, whose token counts seldom come again
            features[~long] = pools.features(tokens[~long], outcomes[~long])
        if long.any():
            features[long] = self._of_prefixes(tokens[long], outcomes[long], steps[long])
        return features

    def _of_prefixes(self, tokens: IntArray, outcomes: IntArray, steps: IntArray) -> IntArray:
        distinct, which = np.unique(tokens, return_inverse=True)
        if missing := [t for t in distinct.tolist() if t not in self._place]:
            if len(self._place) + len(missing) > _TABLES_KEPT:
                self._place, self._table = {}, self._table[:0]
                missing = distinct.tolist()
            for t in missing:
                self._place[t] = len(self._place)
            self._table = np.concatenate([self._table, np.stack([self._prefix(t) for t in missing])])
        place = np.array([self._place[t] for t in distinct.tolist()], np.int64)[which]
        # Sums over two pools may leave 64 bit, but not their differences.
        return np.asarray(self._table[place, outcomes + steps] - self._table[place, outcomes])

    def _prefix(self, tokens: int) -> IntArray:
        """(2 POOL_SIZE + 1, features): of the first i outcomes of the endless repetition of the pool."""
        pools = self._costs.pools
        assert pools is not None
        once = pools.features(np.full(POOL_SIZE, tokens), np.arange(POOL_SIZE))
        return np.concatenate([np.zeros((1, len(FEATURES)), np.int64), np.cumsum(np.tile(once, (2, 1)), axis=0)])
