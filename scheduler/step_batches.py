"""Tokens and energy of a replica by stretches of its steps, for the confidence intervals of a run's rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.experts import FEATURES
from pimserve.device_models.operators import Rows as RowKind
from pimserve.device_models.plan import CostPlan
from pimserve.scheduler.attention import seen_columns

if TYPE_CHECKING:
    from pimserve.scheduler.steplog import Rows

_MOST = 32
_MOST_NJ = 2**50  # of a span: beyond any device
_ENERGY = [FEATURES.index("dram_pj"), FEATURES.index("compute_pj")]
IntArray = NDArray[np.int64]


def active_pj(
    plan: CostPlan,
    rows: Rows,
    every: Mapping[RowKind, IntArray],
    taken: Sequence[NDArray[np.bool_]],
    experts: IntArray | None,
) -> NDArray[np.float64]:
    """Energy of the operators of each span, (n,), pJ: to floating point, where the step log's sums are exact.

    Args:
        plan: what steps cost.
        rows: spans, (n,).
        every: what row terms count in a step of each span.
        taken: by way to run decode attention, the spans that take it.
        experts: of the single steps, (steps, features).
    """
    found = rows.prefill_dram_pj.astype(np.float64) + rows.prefill_compute_pj
    for term in plan.rows:
        energy, wanted = term.energy, every[term.rows]
        groups = np.minimum(plan.data_parallel, np.minimum(wanted, every["requests"]))
        each = float(energy.dram_const) * groups + float(energy.dram_per_row + energy.compute_per_row) * wanted
        found += each * rows.steps
    for way, mine in zip(plan.decode_ways, taken, strict=True):
        for attention in way.terms:
            seen = seen_columns(attention.window_tokens, rows.decodes, rows.context, rows.steps)
            found += float(attention.dram_per_token + attention.compute_per_token) * seen * mine
    if experts is not None:
        begins = np.cumsum(rows.steps) - rows.steps
        found += np.add.reduceat(experts[:, _ENERGY].sum(axis=1, dtype=np.float64), begins)
    return found


class StepBatches:
    """At most 32 stretches of equally many steps, and at least 16 once there are as many spans.

    A span counts in the stretch in which it begins. When they are full, pairs of them become one: so that nothing hangs
    on how many spans came at a time.
    """

    def __init__(self) -> None:
        self._steps = 1  # of a stretch
        self._sums = np.zeros((_MOST, 2), np.int64)  # tokens, nJ
        self._begins_ps = np.full(_MOST, -1, np.int64)  # of the first span

    def add(self, first_steps: IntArray, begins_ps: IntArray, tokens: IntArray, energy_pj: NDArray[np.float64]) -> None:
        """Take spans in their order, (n,) each: number of the first step, when it begins, tokens emitted and energy."""
        if not len(first_steps):
            return
        while first_steps[-1] >= self._steps * _MOST:
            self._join()
        stretch = first_steps // self._steps
        energy_nj = np.minimum(energy_pj / 1000, _MOST_NJ).astype(np.int64)  # whole, so that no sum hangs on its order
        np.add.at(self._sums, stretch, np.stack([tokens, energy_nj], axis=1))
        first, at = np.unique(stretch, return_index=True)
        fresh = self._begins_ps[first] < 0
        self._begins_ps[first[fresh]] = begins_ps[at[fresh]]

    def table(self) -> tuple[IntArray, IntArray, IntArray]:
        """When stretches began, ps, their tokens and their energy, nJ, (k,) each; without empty ones."""
        filled = self._begins_ps >= 0
        return self._begins_ps[filled], self._sums[filled, 0], self._sums[filled, 1]

    def state(self) -> dict[str, Any]:
        """What it holds, as JSON can hold it."""
        return {"steps": self._steps, "sums": self._sums.tolist(), "begins_ps": self._begins_ps.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Hold what `state` says."""
        self._steps = state["steps"]
        self._sums[:] = state["sums"]
        self._begins_ps[:] = state["begins_ps"]

    def _join(self) -> None:
        half = _MOST // 2
        sums, begins = self._sums, self._begins_ps
        sums[:half], sums[half:] = sums[::2] + sums[1::2], 0
        begins[:half], begins[half:] = np.where(begins[::2] >= 0, begins[::2], begins[1::2]), -1
        self._steps *= 2
