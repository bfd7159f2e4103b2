"""Replicas of a model, or of parts of one, on devices of one kind."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.drafting import with_speculation
from pimserve.cluster.scenario.expert_placement import copies_together, expert_weights, placement_facts
from pimserve.cluster.scenario.hot_experts import SomeExperts, both, hot_and_cold
from pimserve.cluster.scenario.placement import PlacedPool, place
from pimserve.cluster.scenario.placement_spec import GroupName
from pimserve.device_models.device import Demand
from pimserve.device_models.expert_layout import Slots
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import ALL_PARTS, Part
from pimserve.device_models.routing import Routing
from pimserve.errors import InputError

_WHERE = "cluster.placement"
_INHERITED = ("device", "placement", "expert_placement")  # sections that come from `cluster` as a whole, if left out


def place_group(
    scenario: Scenario,
    model: ModelSpec,
    routing: Routing,
    parts: Set[Part] = ALL_PARTS,
    chosen: Sequence[Slots] = (),
) -> PlacedPool:
    """Replicas of parts of a model on the devices that the scenario's cluster names.

    Args:
        scenario: of which these are all devices of a replica.
        model: the model.
        routing: how tokens choose experts.
        parts: of the model that are there.
        chosen: of its routed experts those that are there, in the order of their slots, for all MoE layers or for each;
            empty: all.

    Raises:
        InputError: they do not go on these devices.
    """
    device, split, spec = scenario.load_device(), scenario.cluster.split, scenario.cluster.expert_placement
    if "routed_experts" not in parts or chosen:
        spec = None
    weights = expert_weights(model, routing, scenario.run.seed)
    picks: tuple[float, ...] = ()
    if chosen:
        some = SomeExperts.of(model, weights, chosen)
        model, weights, picks = some.model, some.weights, some.picks
    slots = () if spec is None else spec.slots_of(model, split, weights)
    demand = Demand(
        model,
        split,
        lm_head=scenario.costs.lm_head,
        memory_utilization=scenario.scheduler.memory_utilization,
        reserve_gb=scenario.scheduler.reserve_gb,
        max_num_seqs=scenario.scheduler.max_num_seqs,
        max_step_tokens=scenario.scheduler.max_step_tokens(model.max_model_len_tokens),
        expert_weights=weights,
        expert_picks=picks,
        expert_slots=slots,
        rebalance_every=0 if spec is None else spec.rebalance_every(routing.drift),
        backend=scenario.costs.measured_with,
        kernels=scenario.costs.kernels,
        expert_decision=scenario.costs.expert_decision,
        passive_power=scenario.costs.passive_power,
        parts=frozenset(parts),
        verify_tokens=scenario.scheduler.verify_tokens,
    )
    links, settings = scenario.interconnect(device), scenario.scheduler
    if "attention" not in parts:
        settings = settings.model_copy(update={"kv_blocks": None})
    pool = place(device, links, demand, settings, replicas=scenario.cluster.replicas)
    pool = with_speculation(pool, scenario, device, links, demand)
    if spec is None or model.moe is None or pool.plan.experts is None:
        return pool
    facts = {**pool.replica.facts, "expert_placement": placement_facts(spec, model, split, weights, slots)}
    notes = (*pool.replica.warnings, *copies_together(slots, split.expert_groups(model.moe.experts)))
    return replace(pool, replica=replace(pool.replica, facts=facts, warnings=notes))


def place_below(where: str, section: str, given: object) -> str:
    """Where a scenario has what an error says of `cluster`, of a pool or a group of devices.

    Args:
        where: the error's place.
        section: of the pool or group.
        given: what stands there.
    """
    top, _, rest = where.partition(".")
    key = rest.partition(".")[0]
    if top != "cluster" or (key in _INHERITED and getattr(given, key, None) is None):
        return where
    return section + where.removeprefix("cluster")


def place_one(scenario: Scenario, group: GroupName, model: ModelSpec, routing: Routing) -> PlacedPool:
    """One group of devices by itself, with its parts of the model.

    Raises:
        InputError: they do not go on its devices.
    """
    spec = scenario.cluster.two_groups
    assert spec is not None
    if model.moe is None:
        raise InputError(_WHERE, f"{model.name} has no routed experts to put on devices of their own: leave it out")
    chosen: tuple[Slots, ...] = ()
    if group != "attention" and spec.hot_experts is not None:
        chosen = tuple(row[group == "experts"] for row in hot_and_cold(scenario, model, routing))
    try:
        return place_group(scenario.of_group(group), model, routing, spec.parts_of(group), chosen)
    except InputError as error:
        given = getattr(spec, group)
        raise error.moved(lambda where: place_below(where, f"{_WHERE}.{group}", given)) from None


def place_experts(scenario: Scenario, model: ModelSpec, routing: Routing) -> PlacedPool:
    """The devices of routed experts: of all, or of hot and of cold ones.

    Raises:
        InputError: these do not go on their devices.
    """
    spec = scenario.cluster.two_groups
    cold = place_one(scenario, "experts", model, routing)
    if spec is None or spec.hot_experts is None:
        return cold
    rows = hot_and_cold(scenario, model, routing)
    hot = place_one(scenario, "hot_experts", model, routing)
    weights = expert_weights(model, routing, scenario.run.seed)
    pool = both(hot, cold, model, rows, SomeExperts.of(model, weights, [row[0] for row in rows]))
    if routing.drift is None:
        return pool
    notes = (*pool.replica.warnings, "hot experts are the most popular ones at the beginning: routing.drift moves none")
    return replace(pool, replica=replace(pool.replica, warnings=notes))
