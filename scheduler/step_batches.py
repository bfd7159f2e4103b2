"""Tokens, energy and gaps of a replica by stretches of its steps, for the confidence intervals of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from pimserve.arrays import FloatArray, IntArray
from pimserve.device_models.experts import FEATURES
from pimserve.device_models.step import StepCosts
from pimserve.scheduler.gap_batches import GapBatches

_MOST = 32
_MOST_NJ = 2**50  # of a span: beyond any device
_ENERGY = [FEATURES.index("dram_pj"), FEATURES.index("compute_pj")]


def active_pj(costs: StepCosts[IntArray], begins: IntArray, experts: IntArray | None) -> FloatArray:
    """Energy of the operators of each span, (n,), pJ: to floating point, where the step log's sums are exact.

    Args:
        costs: of the spans, (n,), without routed experts.
        begins: (n,), where their first steps are among
        experts: (steps, features) of all single steps; None: there are none.
    """
    energy = np.zeros(len(begins))
    for _, coefficient, times in costs.energy:
        if coefficient:
            energy += float(coefficient) * times
    if experts is not None:
        energy += np.add.reduceat(experts[:, _ENERGY].sum(axis=1, dtype=np.float64), begins)
    return energy


class StepBatches:
    """At most 32 stretches of equally many steps, and at least 16 once there are as many spans.

    A span counts in the stretch in which it begins. When they are full, pairs of them become one: so that nothing hangs
    on how many spans came at a time.
    """

    def __init__(self) -> None:
        self._steps = 1  # of a stretch
        self._sums = np.zeros((_MOST, 2), np.int64)  # tokens, nJ
        self._begins_ps = np.full(_MOST, -1, np.int64)  # of the first span
        self.gaps = GapBatches(_MOST)

    def add(self, first_steps: IntArray, begins_ps: IntArray, tokens: IntArray, energy_pj: FloatArray) -> None:
        """Take spans in their order, (n,) each: number of the first step, when it begins, tokens emitted and energy."""
        if not len(first_steps):
            return
        stretch = self._stretches(first_steps)
        energy_nj = np.minimum(energy_pj / 1000, _MOST_NJ).astype(np.int64)  # whole, so that no sum hangs on its order
        np.add.at(self._sums, stretch, np.stack([tokens, energy_nj], axis=1))
        first, at = np.unique(stretch, return_index=True)
        fresh = self._begins_ps[first] < 0
        self._begins_ps[first[fresh]] = begins_ps[at[fresh]]

    def add_gaps(self, first_steps: IntArray, duration_fs: IntArray, weight: IntArray) -> None:
        """Take gaps between tokens, (n,) each: number of the first step of their span, ascending, length and number."""
        if len(first_steps):
            self.gaps.add(self._stretches(first_steps), duration_fs, weight)

    def table(self) -> tuple[IntArray, IntArray, IntArray]:
        """When stretches began, ps, their tokens and their energy, nJ, (k,) each; without empty ones."""
        filled = self._begins_ps >= 0
        return self._begins_ps[filled], self._sums[filled, 0], self._sums[filled, 1]

    def state(self) -> dict[str, Any]:
        """What it holds, as JSON can hold it."""
        return {
            "steps": self._steps,
            "sums": self._sums.tolist(),
            "begins_ps": self._begins_ps.tolist(),
            "gaps": self.gaps.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Hold what `state` says."""
        self._steps = state["steps"]
        self._sums[:] = state["sums"]
        self._begins_ps[:] = state["begins_ps"]
        self.gaps.restore(state["gaps"])

    def _stretches(self, first_steps: IntArray) -> IntArray:
        """The stretches of spans, (n,), that begin with these steps, ascending."""
        while first_steps[-1] >= self._steps * _MOST:
            self._join()
        return np.asarray(first_steps // self._steps)

    def _join(self) -> None:
        half = _MOST // 2
        sums, begins = self._sums, self._begins_ps
        sums[:half], sums[half:] = sums[::2] + sums[1::2], 0
        begins[:half], begins[half:] = np.where(begins[::2] >= 0, begins[::2], begins[1::2]), -1
        self.gaps.join()
        self._steps *= 2
