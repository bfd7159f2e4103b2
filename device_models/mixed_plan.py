"""One plan of two groups of devices, of which one has attention and the other the experts, and of the link between."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any

from pimserve.device_models.evaluate import units_of
from pimserve.device_models.expert_layout import Slots
from pimserve.device_models.micro_batches import BETWEEN, MicroBatches, Visit
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import Part, Runs, Stage
from pimserve.device_models.pipeline import passive_of_both
from pimserve.device_models.plan import HOST, CostPlan, Pieces, RowTerm
from pimserve.device_models.routed_link import DIRECTIONS, RoutedLink
from pimserve.device_models.slowdown import in_repeats
from pimserve.device_models.split_experts import SplitExperts
from pimserve.device_models.split_plan import HOT

EXPERTS = "experts"  # before the names of units of the experts' devices


def mixed_plan(
    model: ModelSpec,
    attention: CostPlan,
    experts: CostPlan,
    link: Sequence[RowTerm],
    routed_link: RoutedLink,
    *,
    on_experts: Set[Part],
    cuts: tuple[tuple[int, int], ...],
) -> CostPlan:
    """What steps cost on both groups.

    Args:
        model: the model.
        attention: plan of the group that has the KV cache, with the collectives among its devices.
        experts: of the other one, likewise.
        link: what dispatch and combine take, as terms of these stages.
        routed_link: what these of MoE layers follow from.
        on_experts: parts of the model that the other group has.
        cuts: (tokens, micro-batches of a step with at least so many), as `MicroBatches` has them.
    """
    assert experts.experts is not None
    units = {unit: f"{EXPERTS}_{unit}" for unit in experts.units} | {HOST: HOST}
    rows = [
        replace(_of_all_tokens(row, experts.data_parallel), unit=units.get(row.unit, f"{EXPERTS}_{row.unit}"))
        for row in experts.rows
        if row.unit != HOST  # there is one serving engine, with attention
    ]
    routed: Any = experts.experts
    term = replace(routed, units=tuple(replace(unit, unit=units[unit.unit]) for unit in routed.units))
    visits, closing = _visits(model, on_experts)
    plan = replace(
        attention,
        devices=attention.devices + experts.devices,
        units=(*attention.units, *(units[unit] for unit in experts.units)),
        rows=(*attention.rows, *rows, *link),
        experts=term,
        passive=passive_of_both(attention.passive, experts.passive),
        micro_batches=MicroBatches(cuts, (model.layers, model.dense_layers, model.moe_layers), tuple(visits), closing),
        link=routed_link,
    )
    return in_repeats(plan)


def plan_at(plan: CostPlan, weights: Sequence[Sequence[float]], slots: Sequence[Slots]) -> CostPlan:
    """The plan while experts have these popularities and are in these slots, which times of its link follow.

    Args:
        plan: at normal speed.
        weights: popularity of each expert, a row for all MoE layers or for each.
        slots: the expert in each slot, likewise; empty: experts in order.
    """
    if plan.link is None:
        return plan
    link = plan.link.at(weights, slots)
    pieces: dict[Stage, Pieces] = {direction: (link.time_fs(direction),) for direction in DIRECTIONS}
    rows = [
        replace(row, pieces=pieces[row.stage]) if row.runs == "moe_layers" and row.stage in pieces else row
        for row in plan.rows
    ]
    return in_repeats(replace(plan, rows=tuple(rows), link=link))


def units_of_groups(plan: CostPlan) -> tuple[frozenset[str], ...]:
    """What is busy on attention's devices, on those of hot experts where these have their own, and on the experts'; the
    link between them on all. All of it for a plan in which devices do both."""
    units = frozenset(units_of(plan))
    if plan.micro_batches is None:
        return (units,)
    experts = frozenset(unit for unit in units if unit.startswith(f"{EXPERTS}_"))
    groups = [experts]
    if isinstance(plan.experts, SplitExperts):
        hot = frozenset(unit for unit in experts if unit.startswith(f"{EXPERTS}_{HOT}_"))
        groups = [hot, experts - hot]
    return units - experts, *(group | {*BETWEEN} for group in groups)


def _of_all_tokens(row: RowTerm, groups: int) -> RowTerm:
    """A term of the experts' devices for all rows of a step, given that for rows of one of their data-parallel groups,
    which take turns."""

    def shared(pieces: Pieces) -> Pieces:
        return tuple((const, -(-slope // groups)) for const, slope in pieces)

    energy = replace(row.energy, dram_const=row.energy.dram_const * groups)
    alternatives = tuple(map(shared, row.alternatives))
    return replace(row, pieces=shared(row.pieces), alternatives=alternatives, energy=energy, stage="experts")


def _visits(model: ModelSpec, on_experts: Set[Part]) -> tuple[list[Visit], tuple[int, int]]:
    """Visits to the experts' devices, in the order of the pass, and (layers, dense layers) after the last one."""
    visits: list[Visit] = []
    layers = dense = 0
    for layer in range(model.layers):
        layers += 1
        is_moe = model.moe is not None and layer >= model.moe.first_layer
        is_moe = is_moe and model.moe is not None and (layer - model.moe.first_layer) % model.moe.every == 0
        calls: Runs | None = "moe_layers" if is_moe else "dense_layers" if "dense_ffn" in on_experts else None
        dense += not is_moe and calls is None
        if calls is not None:
            visits.append(Visit(layers, dense, int(is_moe), calls))
            layers = dense = 0
    if "lm_head" in on_experts:
        visits.append(Visit(layers, dense, 0, "last"))
        layers = dense = 0
    return visits, (layers, dense)
