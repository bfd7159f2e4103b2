"""What a replica's steps come to: sums of time, energy and busy time by operator and unit, to the last unit."""

from __future__ import annotations

from typing import Any, get_args

from pimserve.arrays import IntArray
from pimserve.device_models.evaluate import units_of
from pimserve.device_models.operators import CATEGORIES
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.step import EnergyKey, StageTime, StepCosts
from pimserve.scheduler.exact import exact_sum


class CostTotals:
    """Sums over what steps cost on one replica.

    `category_fs`: how long steps waited for operators of each category. `energy_pj`: of all devices, by category and
    kind ("dram" or "compute").
    """

    def __init__(self, plan: CostPlan) -> None:
        self.category_fs: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        self.energy_pj: dict[EnergyKey, int] = {
            key: 0 for category in CATEGORIES for key in ((category, "dram"), (category, "compute"))
        }
        self._unit_fs = dict.fromkeys(units_of(plan), 0)  # without prefill attention
        self._loads = plan.timing.loads
        self._prefill_fs = 0  # prefill attention, of which units have their parts
        # Where experts have devices of their own, as in `StepCosts.stages`; empty otherwise.
        self.stage_fs: dict[StageTime, int] = dict.fromkeys(get_args(StageTime) if plan.micro_batches else (), 0)

    @property
    def unit_fs(self) -> dict[str, int]:
        """Busy time of each unit, in the mean over the devices."""
        busy = dict(self._unit_fs)
        for load in self._loads:
            busy[load.unit] += load.prefill_fs(self._prefill_fs)
        return busy

    def add(self, costs: StepCosts[IntArray]) -> None:
        """Add what some steps cost."""
        for operator in costs.operators:
            self.category_fs[operator.category] += exact_sum(operator.time_fs)
        for (_, unit), coefficient, times in costs.busy:
            if coefficient:
                self._unit_fs[unit] += coefficient * exact_sum(times)
        if costs.prefill_fs is not None:
            self._prefill_fs += exact_sum(costs.prefill_fs)
        for stage, coefficient, times in costs.stages:
            self.stage_fs[stage] += coefficient * exact_sum(times)
        for key, coefficient, times in costs.energy:
            if coefficient:
                self.energy_pj[key] += coefficient * exact_sum(times)

    def state(self) -> dict[str, Any]:
        """All that was added up so far, as JSON can hold it."""
        return {
            "category_fs": dict(self.category_fs),
            "energy_pj": [[*key, value] for key, value in self.energy_pj.items()],
            "unit_fs": dict(self._unit_fs),
            "_pipeline_prefill_fs": self._prefill_fs,  # as checkpoints call it
            "stage_fs": dict(self.stage_fs),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.category_fs.update(state["category_fs"])
        self.energy_pj.update({(category, kind): value for category, kind, value in state["energy_pj"]})
        self._unit_fs.update(state["unit_fs"])
        self._prefill_fs = state["_pipeline_prefill_fs"]
        self.stage_fs.update(state["stage_fs"])
