"""The pools of a scenario: what their replicas are, and the way of KV caches from one to the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.interconnect import ALL_TO_ALL, RING
from pimserve.cluster.scenario.one_group import place_below, place_group
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.placement_spec import PlacementSpec
from pimserve.cluster.scenario.two_groups import check_filled, place_two_groups
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.plan import FS_PER_S
from pimserve.device_models.routing import Routing
from pimserve.errors import InputError
from pimserve.scheduler.faults import FaultSpec
from pimserve.scheduler.fleet import DECODE, PREFILL
from pimserve.scheduler.handover import Link
from pimserve.scheduler.run_requests import dealt_out

_BYTES_PER_GB = 10**9
_BETWEEN_NODES = ("node_gb_per_s", "node_latency_us", "dispatch_us")


def routing_of(scenario: Scenario, model: ModelSpec) -> Routing:
    """How tokens choose experts.

    Raises:
        InputError: the model has no experts to choose from.
    """
    for key, given in (("popularity", scenario.routing.popularity != "uniform"), ("drift", scenario.routing.drift)):
        if model.moe is None and given:
            raise InputError(f"routing.{key}", f"{model.name} has no routed experts")
    return scenario.routing.for_model(model)


def of_pool(error: InputError, scenario: Scenario, name: str) -> InputError:
    """An error in a pool that was placed as if it were all that a scenario has, by the scenario's own places."""
    if not name:
        return error
    given = getattr(scenario.cluster.pools, name)
    return error.moved(lambda where: place_below(where, f"cluster.pools.{name}", given))


def place_pool(scenario: Scenario, name: str, model: ModelSpec, routing: Routing, first: int = 0) -> PlacedPool:
    """A pool of a scenario, "" for the only one; its replicas are numbered from `first` on.

    Raises:
        InputError: there is no such pool, or the model does not go on its devices.
    """
    alone = scenario.of_pool(name)
    try:
        if alone.cluster.two_groups is not None:
            if name != PREFILL:  # prompts are cut by tokens, of which there are enough
                check_filled(alone, dealt_out=_dealt_out(scenario))
            pool = place_two_groups(alone, model, routing)
        else:
            pool = place_group(alone, model, routing)
    except InputError as error:
        raise of_pool(error, scenario, name) from None
    notes = (*pool.replica.warnings, *_assumed(scenario, name), *_without_effect(alone, pool))
    layer = model.attention.kv_elements * pool.replica.precision.kv_bits / 8
    of_layers = layer * (model.layers - model.windowed_layers), layer * model.windowed_layers
    group_bytes = pool.kv_groups.bytes_per_token(*of_layers) / pool.kv_groups.full
    token_bytes = math.ceil(group_bytes + pool.draft_kv_bytes_per_token)
    replica = replace(pool.replica, warnings=notes)
    pools = scenario.cluster.pools
    conditional = pools.conditional_disagg if pools is not None and name == DECODE else None
    return replace(
        pool, name=name, first=first, kv_bytes_per_token=token_bytes, replica=replica, conditional=conditional
    )


def _dealt_out(scenario: Scenario) -> bool:
    """Whether users of a closed loop, if there is one, stay with a replica each."""
    replicas = [scenario.of_pool(name).cluster.replicas for name in scenario.pools]
    think = scenario.workload.think_time_s is not None
    return dealt_out(replicas, scenario.scheduler, scenario.faults or FaultSpec(), think=think)


def _assumed(scenario: Scenario, name: str) -> Iterator[str]:
    """What is assumed of links between a pool's groups of devices, and between pools, where it gives nothing."""
    pools, groups = scenario.cluster.pools, scenario.of_pool(name).cluster.two_groups
    if groups is not None:
        own = pools is not None and getattr(pools, name).placement is not None
        yield from groups.link.assumed(f"cluster.pools.{name}.placement.link" if own else "cluster.placement.link")
    if pools is not None:
        yield from pools.handover.assumed("cluster.pools.handover")


def _without_effect(scenario: Scenario, pool: PlacedPool) -> list[str]:
    """What was asked for and changes nothing: sentences."""
    notes = []
    cluster, device, traffic = scenario.cluster, pool.device, pool.replica.traffic
    if scenario.routing.mode == "exact" and scenario.load_model().moe is not None and pool.plan.experts is None:
        notes.append(
            f"routing.mode: exact changes nothing: the plan of {device.spec.name} has expected loads of experts"
        )
    if scenario.routing.drift is not None and pool.plan.experts is None:
        notes.append(f"routing.drift changes nothing: the plan of {device.spec.name} has expected loads of experts")
    defaults = {key: type(cluster).model_fields[key].default for key in _BETWEEN_NODES}
    given = [f"cluster.{key}" for key, default in defaults.items() if getattr(cluster, key) != default]
    groups = () if cluster.two_groups is None else cluster.two_groups.groups
    nodes = max((cluster.of_group(group).nodes for group in groups), default=cluster.nodes)
    if given and nodes == 1:
        notes.append(f"{', '.join(given)}: no effect, a replica has one node")
    if cluster.expert_placement is not None and pool.plan.experts is None:
        notes.append(f"cluster.expert_placement: no effect, {device.spec.name} places experts itself")
    spec = scenario.scheduler
    budget = type(spec).model_fields["max_num_batched_tokens"].default
    if spec.max_num_batched_tokens != budget and not spec.cuts_prompts:
        notes.append(f"scheduler.max_num_batched_tokens: no effect, batching: {spec.batching} computes whole prompts")
    if spec.attention_dp_balance is not None and pool.plan.engine_cores == 1:
        notes.append("scheduler.attention_dp_balance: no effect, a replica has one data-parallel group, or one queue")
    sent = {part.operator for part in traffic}
    if scenario.costs.collectives == "ring" and RING not in sent:
        notes.append("costs.collectives: no effect, a replica has no all-reduces")
    links = {part.link for part in traffic if part.operator == RING}
    ideal = scenario.costs.collectives == "best" and scenario.costs.measured_with is None
    if ideal and device.spec.one_shot_latency_us is None and links == {"intra_node"}:
        notes.append(
            f"{device.spec.name} has no one_shot_latency_us: with costs.collectives: best, all-reduces are rings only"
        )
    if cluster.dispatch != type(cluster).model_fields["dispatch"].default:
        if ALL_TO_ALL not in sent:
            notes.append("cluster.dispatch: no effect, no tokens pass between data-parallel groups")
        elif nodes == 1 and scenario.costs.measured_with is not None:
            notes.append("cluster.dispatch: no effect, a replica has one node, where collectives are measured")
        elif nodes == 1 and cluster.dispatch == "direct":
            notes.append("cluster.dispatch: no effect, a replica has one node, where forward is direct")
    return notes + _without_effect_on_groups(cluster.two_groups, scenario.load_model())


def _without_effect_on_groups(spec: PlacementSpec | None, model: ModelSpec) -> list[str]:
    """The same of a placement on two groups."""
    if spec is None or model.moe is None:
        return []
    missing = {
        "dense_ffn": "" if model.dense_layers else "dense layers",
        "shared_experts": "" if model.moe.shared_intermediate else "shared experts",
    }
    there = {part for part in spec.on_experts if not missing.get(part)}
    notes = [
        f"cluster.placement.{part}: no effect, {model.name} has no {missing[part]}"
        for part in sorted(spec.on_experts - there)
    ]
    tensor = None if spec.experts == "attention" else spec.experts.tensor_parallel
    if tensor is not None and there == {"routed_experts"}:
        notes.append("cluster.placement.experts.tensor_parallel: no effect, nothing but routed experts is there")
    return notes


def link_of(scenario: Scenario, model: ModelSpec, pools: Sequence[PlacedPool]) -> Link:
    """The way from the first pool to the second.

    Raises:
        InputError: they do not keep the KV cache in the same format.
    """
    assert scenario.cluster.pools is not None
    first, second = (pool.replica.precision.kv_bits for pool in pools)
    if first != second:
        raise InputError(
            "cluster.pools",
            f"a KV cache of {first:g} bits per element ({pools[0].label}) cannot be handed over to one of {second:g} "
            f"({pools[1].label}); set model.kv_dtype or the device's kv_bits so that both have the same",
        )
    drafts, others = (pool.draft_kv_bytes_per_token for pool in pools)
    if drafts != others:
        raise InputError(
            "cluster.pools",
            f"the model that drafts has a KV cache of {drafts:,g} bytes per token on {pools[0].label} and of "
            f"{others:,g} on {pools[1].label}; set its kv_dtype or the device's kv_bits so that both have the same",
        )
    layer = model.attention.kv_elements * first / 8
    handover = scenario.cluster.pools.handover
    return Link(
        bytes_per_s=round(handover.resolved_gb_per_s * _BYTES_PER_GB),
        latency_fs=round(handover.resolved_latency_us * FS_PER_S / 10**6),
        bytes_per_token=math.ceil(layer * (model.layers - model.windowed_layers) + drafts),
        window_bytes_per_token=math.ceil(layer * model.windowed_layers),
        window_tokens=getattr(model.attention, "window_tokens", None) or 0,
        layers=model.layers + pools[0].draft_layers if handover.overlap == "layers" else 0,
    )
