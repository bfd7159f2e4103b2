"""A replica's ledger: what its executed spans come to, in closed form.

The step log looks at every single step, for latencies and the digest. Whoever only wants times, energies and counts
needs a few operations per span: inside a span everything is affine in the step, and the experts' outcomes are
differences of prefix sums. The sums are those of the log to the last unit, and each span's own time is compared with
the one that it came with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.evaluate import evaluate
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.routing import POOL_SIZE
from pimserve.errors import PimserveError
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.exact import exact_dot, exact_sum
from pimserve.scheduler.steplog import SpanColumns
from pimserve.scheduler.totals import CostTotals

ExpertsOf = Callable[[IntArray, IntArray], IntArray]
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
        drawn: (n, features) of the experts in single steps with these tokens (n,) and numbers (n,); None: as `costs`
            has them.
    """

    def __init__(self, costs: ReplicaCosts, drawn: ExpertsOf | None = None) -> None:
        super().__init__(costs.plan)
        self.costs = costs
        self._drawn = drawn
        self.steps = 0
        self.busy_fs = 0
        self.tokens = 0  # that passed through the layers
        self.outputs = 0  # that were sampled
        self.kv_blocks = 0  # in use during the last step
        self.peak_kv_blocks = 0
        self._table = np.zeros((0, 2 * POOL_SIZE + 1, len(FEATURES)), np.int64)
        self._place: dict[int, int] = {}

    def take(self, rows: SpanColumns, first_steps: IntArray) -> None:
        """Add up spans.

        Args:
            rows: spans of the replica, in their order; those with prompts are single steps.
            first_steps: (n,), the number of each one's first step.

        Raises:
            TimesDifferError: a span's time is not what the plan says; the ledger is then of no use any more.
        """
        n = rows.steps
        experts = None if self.costs.plan.experts is None else list(self._experts(rows, first_steps).T)
        costs = evaluate(self.costs.plan, rows.shape, experts)
        own = costs.duration_fs
        differ = np.flatnonzero(own != rows.duration_fs)
        if len(differ):
            at = int(differ[0])
            raise TimesDifferError(int(first_steps[at]), int(n[at]), int(own[at]), int(rows.duration_fs[at]))
        self.add(costs)
        self.steps += int(n.sum())
        self.busy_fs += exact_sum(rows.duration_fs)
        self.tokens += exact_dot(rows.decodes + rows.prefill_tokens, n)
        self.outputs += exact_dot(rows.outputs, n)
        if len(n):
            self.kv_blocks = int(rows.blocks_end[-1])
            self.peak_kv_blocks = max(self.peak_kv_blocks, int(rows.blocks_end.max()))

    def use(self, costs: ReplicaCosts) -> None:
        """What comes from here on costs this, on the same units."""
        self.costs = costs
        self._place, self._table = {}, self._table[:0]

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

    def _experts(self, rows: SpanColumns, first_steps: IntArray) -> IntArray:
        """(n, features): routed experts of each span."""
        tokens = rows.decodes + rows.prefill_tokens
        features = np.empty((len(tokens), len(FEATURES)), np.int64)
        long = rows.steps > 1
        if not long.all():
            features[~long] = (self._drawn or self.costs.experts_features)(tokens[~long], first_steps[~long])
        if long.any():
            features[long] = self._pooled(tokens[long], first_steps[long], rows.steps[long])
        return features

    def _pooled(self, tokens: IntArray, first_steps: IntArray, steps: IntArray) -> IntArray:
        """(n, features): of spans of at most POOL_SIZE steps, as differences of prefix sums."""
        distinct, which = np.unique(tokens, return_inverse=True)
        if missing := [t for t in distinct.tolist() if t not in self._place]:
            if len(self._place) + len(missing) > _TABLES_KEPT:
                self._place, self._table = {}, self._table[:0]
                missing = distinct.tolist()
            for t in missing:
                self._place[t] = len(self._place)
            self._table = np.concatenate([self._table, np.stack([self._prefix(t) for t in missing])])
        place = np.array([self._place[t] for t in distinct.tolist()])[which]
        begin = (self.costs.offset + first_steps) % POOL_SIZE
        # Sums over two pools may leave 64 bit, but not their differences.
        return np.asarray(self._table[place, begin + steps] - self._table[place, begin])

    def _prefix(self, tokens: int) -> IntArray:
        """(2 POOL_SIZE + 1, features): of the first i outcomes of the endless repetition of the pool."""
        pools = self.costs.pools
        assert pools is not None
        once = pools.features(np.full(POOL_SIZE, tokens), np.arange(POOL_SIZE))
        return np.concatenate([np.zeros((1, len(FEATURES)), np.int64), np.cumsum(np.tile(once, (2, 1)), axis=0)])
