"""Hot routed experts on devices of one kind, and cold ones on devices of another: which are which, by popularity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.expert_placement import expert_weights
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.placement_spec import GroupName, HotExpertsSpec
from pimserve.device_models.expert_layout import Slots, layout
from pimserve.device_models.expert_picks import expert_share
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.routing import Routing
from pimserve.device_models.split_experts import hottest
from pimserve.device_models.split_plan import split_plan
from pimserve.errors import InputError

_WHERE = "cluster.placement.hot_experts"
_Weights = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class SomeExperts:
    """Of a model's routed experts those that are on some devices, in the order of their slots.

    `model`: as if it had no others; `weights`: popularity of each, a row for all MoE layers or for each; `picks`: of a
    token's picks those that fall on each, in the mean over layers.
    """

    model: ModelSpec
    weights: tuple[tuple[float, ...], ...]
    picks: tuple[float, ...]

    @classmethod
    def of(cls, model: ModelSpec, weights: _Weights, chosen: Sequence[Slots]) -> Self:
        """Those that `chosen` names, for all MoE layers or for each; `weights` of all experts, likewise."""
        moe = model.moe
        assert moe is not None
        some = moe.model_copy(update={"experts": len(chosen[0]), "top_k": min(moe.top_k, len(chosen[0]))})
        shares = [expert_share(row, moe.top_k) for row in weights]
        picks = np.mean([[row[e] for e in experts] for row, experts in zip(shares, chosen, strict=True)], axis=0)
        return cls(
            model.model_copy(update={"moe": some}),
            tuple(tuple(row[e] for e in experts) for row, experts in zip(weights, chosen, strict=True)),
            tuple(picks.tolist()),
        )


def hot_and_cold(scenario: Scenario, model: ModelSpec, routing: Routing) -> tuple[tuple[Slots, Slots], ...]:
    """(hot, cold) experts in the order of their slots, for all MoE layers or for each.

    Raises:
        InputError: none is more popular than others, none is left to be cold, or it is said otherwise where they are.
    """
    spec = _hot(scenario)
    assert model.moe is not None
    assert spec.count != "auto"
    weights = expert_weights(model, routing, scenario.run.seed)
    check_hot(scenario, weights)
    if spec.count >= model.moe.experts:
        raise InputError(
            f"{_WHERE}.count",
            f"must be less than the {model.moe.experts} experts of {model.name} (got {spec.count}): to have all on "
            "these devices, put these into placement.experts",
        )
    placement = scenario.cluster.expert_placement
    rows = hottest(weights, spec.count)
    if placement is None or placement.order == "contiguous":
        return rows
    sides: tuple[GroupName, ...] = ("hot_experts", "experts")
    groups = [
        scenario.of_group(side).cluster.split.expert_groups(len(rows[0][place])) for place, side in enumerate(sides)
    ]
    ordered = []
    for row, (hot, cold) in zip(weights, rows, strict=True):
        share = expert_share(row, model.moe.top_k)
        laid = [
            tuple(here[place] for place in layout(placement.order, [share[e] for e in here], number))
            for here, number in zip((hot, cold), groups, strict=True)
        ]
        ordered.append((laid[0], laid[1]))
    return tuple(ordered)


def check_hot(scenario: Scenario, weights: _Weights) -> None:
    """See that there can be hot experts.

    Raises:
        InputError: there cannot.
    """
    if any(min(row) == max(row) for row in weights):
        raise InputError(
            _WHERE,
            "no expert is hotter than others where all are picked alike: give routing.popularity: zipf or given, or "
            "leave this out",
        )
    placement = scenario.cluster.expert_placement
    if placement is not None and (placement.redundant_experts or placement.slots or placement.rebalance):
        raise InputError(
            "cluster.expert_placement",
            "with placement.hot_experts each expert is in one place, by popularity: leave out slots, redundant_experts "
            "and rebalance (order is that among the devices of each group)",
        )
    if scenario.costs.measured_with is not None:
        raise InputError(
            "costs.setting",
            "nobody has measured experts on two kinds of devices: with placement.hot_experts, use ideal",
        )


def both(
    hot: PlacedPool, cold: PlacedPool, model: ModelSpec, rows: Sequence[tuple[Slots, Slots]], some: SomeExperts
) -> PlacedPool:
    """Devices of hot and of cold experts as one pool, whose groups they are.

    Args:
        hot: the pool of hot experts.
        cold: of cold ones.
        model: the model.
        rows: experts of both, as `hot_and_cold` gives them.
        some: the hot ones.
    """
    assert model.moe is not None
    facts: dict[str, Any] = {**hot.facts, "count": len(some.picks), "picks_per_token": sum(some.picks)}
    if len(rows) == 1:
        facts["numbers"] = sorted(rows[0][0])
    one, other = hot.replica, cold.replica
    devices = hot.devices_per_replica + cold.devices_per_replica
    held = one.weight_bytes_per_device * hot.devices_per_replica
    held += other.weight_bytes_per_device * cold.devices_per_replica
    kinds = dict.fromkeys(each.precision.routed_weights or "" for each in (one, other))
    replica = replace(
        other,
        weight_bytes_per_device=held / devices,
        facts={**cold.facts, "hot_experts": facts},
        precision=replace(other.precision, routed_weights=" + ".join(kinds)),
        warnings=(*one.warnings, *other.warnings),
        traffic=(*one.traffic, *other.traffic),
    )
    return replace(
        cold,
        plan=split_plan(hot.plan, cold.plan, model.moe.top_k, rows),
        label=f"{hot.label} + {cold.label}",
        devices_per_replica=devices,
        replica=replica,
        groups=(hot, cold),
    )


def _hot(scenario: Scenario) -> HotExpertsSpec:
    assert scenario.cluster.placement is not None
    assert scenario.cluster.placement.hot_experts is not None
    return scenario.cluster.placement.hot_experts
