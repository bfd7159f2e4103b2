"""Replicas on one group of devices, or on two: attention with the KV cache on one, routed experts on the other."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import Any

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.expert_placement import placement_facts
from pimserve.cluster.scenario.group_link import GroupLink
from pimserve.cluster.scenario.placement import PlacedPool, place
from pimserve.cluster.scenario.placement_spec import Group, PlacementSpec
from pimserve.device_models.device import Demand
from pimserve.device_models.mixed_plan import mixed_plan
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import ALL_PARTS, Part
from pimserve.device_models.plan import FS_PER_S
from pimserve.device_models.routing import Routing
from pimserve.errors import InputError

_WHERE = "cluster.placement"
_AUTO = (1, 2, 3, 4)  # micro-batches that are tried
_AUTO_CONTEXT, _AUTO_STEPS = 4096, 128


def place_group(scenario: Scenario, model: ModelSpec, routing: Routing, parts: Set[Part] = ALL_PARTS) -> PlacedPool:
    """Replicas of parts of a model on the devices that the scenario's cluster names.

    Raises:
        InputError: they do not go on these.
    """
    device, split, spec = scenario.load_device(), scenario.cluster.split, scenario.cluster.expert_placement
    if "routed_experts" not in parts:
        spec = None
    weights = _weights(scenario, model, routing)
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
        expert_slots=slots,
        rebalance_every=0 if spec is None else spec.rebalance_every(routing.drift),
        backend=scenario.costs.measured_with,
        kernels=scenario.costs.kernels,
        expert_decision=scenario.costs.expert_decision,
        passive_power=scenario.costs.passive_power,
        parts=frozenset(parts),
    )
    links, settings = scenario.interconnect(device), scenario.scheduler
    if "attention" not in parts:
        settings = settings.model_copy(update={"kv_blocks": None})
    pool = place(device, links, demand, settings, replicas=scenario.cluster.replicas)
    if spec is None or pool.plan.experts is None:
        return pool
    facts = {**pool.replica.facts, "expert_placement": placement_facts(spec, model, split, weights, slots)}
    return replace(pool, replica=replace(pool.replica, facts=facts))


def _weights(scenario: Scenario, model: ModelSpec, routing: Routing) -> tuple[tuple[float, ...], ...]:
    """Popularity of each routed expert, a row for all MoE layers or for each."""
    if model.moe is None:
        return ()
    return tuple(map(tuple, routing.expert_weights(model.moe.experts, scenario.run.seed).tolist()))


def place_one(scenario: Scenario, group: Group, model: ModelSpec, routing: Routing) -> PlacedPool:
    """One of two groups by itself, with its parts of the model.

    Raises:
        InputError: they do not go on its devices.
    """
    spec = scenario.cluster.two_groups
    assert spec is not None
    if model.moe is None:
        raise InputError(_WHERE, f"{model.name} has no routed experts to put on devices of their own: leave it out")
    try:
        return place_group(scenario.of_group(group), model, routing, spec.parts_of(group))
    except InputError as error:
        if error.where.partition(".")[0] == "cluster":
            raise error.at(f"{_WHERE}.{group}{error.where.removeprefix('cluster')}") from None
        raise


def place_two_groups(scenario: Scenario, model: ModelSpec, routing: Routing) -> PlacedPool:
    """Replicas with attention and experts on groups of their own.

    Raises:
        InputError: a group does not hold its part, or there are more micro-batches than requests.
    """
    spec = scenario.cluster.two_groups
    assert spec is not None
    attention, experts = (place_one(scenario, group, model, routing) for group in ("attention", "experts"))
    most = scenario.scheduler.max_num_seqs
    if spec.micro_batches != "auto" and spec.micro_batches > most:
        raise InputError(
            f"{_WHERE}.micro_batches",
            f"{spec.micro_batches} exceeds scheduler.max_num_seqs, the {most} requests of the largest batch",
        )
    link = GroupLink.of(spec.link, model, attention, experts, _weights(scenario, model, routing))
    if spec.micro_batches != "auto":
        return _joined(spec, link, attention, experts, spec.micro_batches)
    tried = {number: _joined(spec, link, attention, experts, number) for number in _AUTO if number <= most}
    requests, context = _full_batch(scenario, attention)
    pooled, steps_s = replace(routing, mode="pooled"), {}
    for number, pool in tried.items():
        span = pool.costs(pooled, scenario.run.seed).decode_span(0, requests, requests * context, _AUTO_STEPS)
        steps_s[number] = span.duration_fs(span.steps) / span.steps / FS_PER_S
    best = tried[min(steps_s, key=lambda number: (steps_s[number], number))]
    chosen = {"requests": requests, "context_tokens": context, "step_s": {str(m): s for m, s in steps_s.items()}}
    placement = {**best.replica.facts["placement"], "micro_batches_auto": chosen}
    return replace(best, replica=replace(best.replica, facts={**best.replica.facts, "placement": placement}))


def _full_batch(scenario: Scenario, pool: PlacedPool) -> tuple[int, int]:
    """(requests, context of each) of a batch that the scheduler and the KV cache allow."""
    context = min(_AUTO_CONTEXT, pool.request_tokens(scenario.scheduler))
    tokens = pool.kv_tokens(scenario.scheduler.block_size)
    requests = max(1, min(scenario.scheduler.max_num_seqs, tokens // context))
    return requests, max(1, min(context, tokens // requests))


def _joined(
    spec: PlacementSpec, link: GroupLink, attention: PlacedPool, experts: PlacedPool, micro_batches: int
) -> PlacedPool:
    """Both groups as one pool."""
    plan = mixed_plan(
        link.model,
        attention.plan,
        experts.plan,
        link.terms(spec.on_experts),
        on_experts=spec.on_experts,
        micro_batches=micro_batches,
    )
    own, other = attention.replica, experts.replica
    facts: dict[str, Any] = {
        **own.facts,
        "placement": {
            "micro_batches": micro_batches,
            "on_experts": sorted(spec.on_experts),
            "link": link.facts,
            "experts": dict(other.facts),
        },
    }
    replica = replace(
        own,
        precision=replace(own.precision, routed_weights=other.precision.routed_weights),
        facts=facts,
        warnings=tuple(dict.fromkeys((*own.warnings, *other.warnings))),
        traffic=(*own.traffic, *other.traffic, *link.traffic(spec.on_experts)),
    )
    return replace(
        attention,
        plan=plan,
        label=f"{attention.label} + {experts.label}",
        devices_per_replica=attention.devices_per_replica + experts.devices_per_replica,
        replica=replica,
        groups=(attention, experts),
    )
