"""One plan of two groups of devices that hold routed experts: hot ones here, cold ones there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pimserve.device_models.expert_layout import Slots
from pimserve.device_models.pipeline import passive_of_both
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.split_experts import SideUnit, SplitExperts

HOT = "hot"  # before the names of units of devices with hot experts


def split_plan(hot: CostPlan, cold: CostPlan, top_k: int, slots: Sequence[tuple[Slots, Slots]]) -> CostPlan:
    """What both groups cost together.

    Args:
        hot: plan of the devices with hot experts, which have nothing else.
        cold: plan of those with cold experts, and what else is with these.
        top_k: experts that a token picks.
        slots: the expert in each slot of the hot ones and of the cold ones, for all layers or for each.
    """
    sides = hot.experts, cold.experts
    assert not isinstance(sides[0], SplitExperts | None)
    assert not isinstance(sides[1], SplitExperts | None)
    assert not hot.rows
    units = [f"{HOT}_{unit.unit}" for unit in sides[0].units] + [unit.unit for unit in sides[1].units]
    experts = SplitExperts(
        sides[0].experts + sides[1].experts,
        top_k,
        sides[0],
        sides[1],
        tuple(map(SideUnit, units)),
        tuple((*hot_ones, *cold_ones) for hot_ones, cold_ones in slots),
    )
    return replace(
        cold,
        devices=hot.devices + cold.devices,
        units=(*(f"{HOT}_{unit}" for unit in hot.units), *cold.units),
        experts=experts,
        passive=passive_of_both(hot.passive, cold.passive),
    )
