"""What a replica's steps come to: sums of time, energy and busy time by operator and unit, to the last unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pimserve.arrays import IntArray
from pimserve.device_models.evaluate import units_of
from pimserve.device_models.operators import CATEGORIES, EXPERT_REBALANCING, EnergyCategory
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.rebalancing import rebalances
from pimserve.device_models.routed_link import LinkKey
from pimserve.device_models.routing import ExpertPools
from pimserve.device_models.step import StageTime, StepCosts
from pimserve.scheduler.exact import exact_sum
from pimserve.scheduler.plan_tables import LINK_SCALE

EnergyPart = tuple[EnergyCategory, Literal["dram", "compute"]]


class CostTotals:
    """Sums over what steps cost on one replica.

    `category_fs`: how long steps waited for operators of each category. `energy_pj`: of all devices, by category and
    kind ("dram" or "compute"), and where experts are rebalanced, of that. `layouts`: of experts, that have followed the
    first one by the last step. `link_more`: bytes and tokens over the link between groups of devices, beyond those that
    popularities of experts at the beginning would have made.
    """

    def __init__(self, plan: CostPlan) -> None:
        self.category_fs: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        self.energy_pj: dict[EnergyPart, int] = {
            key: 0 for category in energy_categories(plan) for key in ((category, "dram"), (category, "compute"))
        }
        self.layouts = 0
        self._link_more: Counter[LinkKey] = Counter()  # 1 / LINK_SCALE
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

    @property
    def link_more(self) -> dict[LinkKey, float]:
        """In bytes, and tokens."""
        return {key: more / LINK_SCALE for key, more in self._link_more.items()}

    def pass_link(self, more: Mapping[LinkKey, int], tokens: int) -> None:
        """Count tokens of which each has so much more that passes, in 1 / LINK_SCALE."""
        for key, each in more.items():
            self._link_more[key] += each * tokens

    def rebalance(self, pools: ExpertPools | None) -> int:
        """Count what brought experts to where they are in the steps that come next; returns that energy, pJ."""
        if pools is None or pools.layouts == self.layouts:
            return 0
        energy_pj = pools.moves_pj(self.layouts)
        self.energy_pj[EXPERT_REBALANCING, "compute" if pools.term.weight_stationary else "dram"] += energy_pj
        self.layouts = pools.layouts
        return energy_pj

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
            "layouts": self.layouts,
            "link_more": [[*key, more] for key, more in self._link_more.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.category_fs.update(state["category_fs"])
        self.energy_pj.update({(category, kind): value for category, kind, value in state["energy_pj"]})
        self._unit_fs.update(state["unit_fs"])
        self._prefill_fs = state["_pipeline_prefill_fs"]
        self.stage_fs.update(state["stage_fs"])
        self.layouts = state["layouts"]
        self._link_more = Counter({(direction, what): more for direction, what, more in state["link_more"]})


def energy_categories(plan: CostPlan) -> tuple[EnergyCategory, ...]:
    """Of what replicas of a plan count their energy."""
    return (*CATEGORIES, EXPERT_REBALANCING) if rebalances(plan.experts) else CATEGORIES
