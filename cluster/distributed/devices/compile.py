"""From the scenario that a host is sent to what it needs to know of its devices, by its own physics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from pimserve.arrays import IntArray
from pimserve.cluster.distributed.devices.flows import Traffic, traffic_of_operators, traffic_of_point_to_point
from pimserve.cluster.distributed.devices.mixed_flows import traffic_of_groups
from pimserve.cluster.scenario.dispatch import transport
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.placement_spec import MOST_MICRO_BATCHES
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.cluster.scenario.two_groups import link_between
from pimserve.device_models.expert_layout import layer_loads
from pimserve.device_models.expert_picks import expert_share
from pimserve.device_models.memo import Memo
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import ALL_PARTS, Part, operators_of
from pimserve.device_models.rebalancing import placed_at
from pimserve.device_models.routing import Routing
from pimserve.device_models.split_experts import Side, sides_of
from pimserve.errors import InputError, validation_error
from pimserve.scheduler.costs import ReplicaCosts

_EPOCHS_KEPT = 16


@dataclass(frozen=True, slots=True)
class DevicePool:
    """A pool, and what its devices know of themselves besides; `costs` are those of its first replica.

    Where popularities of experts drift, expected traffic hangs on the interval, the `epoch`, in which a step begins.
    """

    placed: PlacedPool
    costs: ReplicaCosts
    routing: Routing
    traffic_by_epoch: Memo[int, Traffic]
    seed: int
    picks_per_token: int

    @property
    def traffic(self) -> Traffic:
        """At the beginning: who sends to whom is always the same."""
        return self.traffic_by_epoch[0]

    def epochs(self, begin_ps: IntArray) -> IntArray:
        """(n,): epochs of steps that begin at these times (n,)."""
        drifts = self.placed.plan.experts is not None
        return self.routing.epochs(begin_ps) if drifts else np.zeros_like(begin_ps)

    def epoch(self, begin_ps: int) -> int:
        """The epoch of a step that begins at that time."""
        return int(self.epochs(np.array([begin_ps]))[0])


def parse_scenario(text: str) -> Scenario:
    """The scenario of a JSON document.

    Raises:
        InputError: it is not one.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("scenario", f"is not JSON: {error}") from None
    if not isinstance(document, Mapping):
        raise InputError("scenario", "must be a mapping of keys to values")
    try:
        return Scenario.model_validate(document)
    except ValidationError as error:
        raise validation_error("scenario", error, Scenario) from None


def compile_pool(prepared: Prepared, name: str) -> DevicePool:
    """What the devices of a pool are; "" is the only one.

    Raises:
        InputError: there is no such pool.
    """
    placed = next((pool for pool in prepared.pools if pool.name == name), None)
    if placed is None:
        names = ", ".join(repr(pool.name) for pool in prepared.pools)
        raise InputError("pools.pool", f"must be one of {names} (got {name!r})")
    model, seed = prepared.model, prepared.scenario.run.seed
    alone = prepared.scenario.of_pool(name)

    def traffic(epoch: int) -> Traffic:
        share = _share(placed, model, prepared.routing, seed, epoch)
        if not placed.groups:
            return _traffic_of(placed, alone, model, share)
        return _traffic_of_groups(placed, alone, model, prepared.routing, share, epoch)

    return DevicePool(
        placed=placed,
        costs=placed.costs(prepared.routing, seed),
        routing=prepared.routing,
        traffic_by_epoch=Memo(traffic, _EPOCHS_KEPT),
        seed=seed,
        picks_per_token=picks_per_token(model),
    )


def picks_per_token(model: ModelSpec) -> int:
    """Experts that a token picks in all layers."""
    return model.moe_layers * model.moe.top_k if model.moe is not None else 0


def numbers_per_step(scenario: Scenario, model: ModelSpec) -> int:
    """About how many numbers a device tells another of its routed experts in a step; 0: fewer than of a span.

    Copies for each expert where every layer is drawn; times of all layers of micro-batches, which go round.
    """
    placements = [scenario.of_pool(name).cluster.two_groups for name in scenario.pools]
    wanted = [spec.micro_batches for spec in placements if spec is not None]
    parts = max((MOST_MICRO_BATCHES if number == "auto" else number for number in wanted), default=1)
    drawn = scenario.routing.mode == "exact"
    if model.moe is None or not (drawn or wanted):
        return 0
    return parts * model.moe_layers * (model.moe.experts if drawn else 1)


def _share(placed: PlacedPool, model: ModelSpec, routing: Routing, seed: int, epoch: int) -> tuple[float, ...]:
    """Picks of a token that fall on each slot of routed experts, in the mean over layers."""
    if model.moe is None:
        return ()
    weights = routing.expert_weights(model.moe.experts, seed, epoch).tolist()
    term = placed.plan.experts
    slots = () if term is None else placed_at(term, routing, seed, epoch).slots
    shares = layer_loads(slots, [expert_share(row, model.moe.top_k) for row in weights])
    return tuple(shares.mean(axis=0).tolist())


def _traffic_of(
    placed: PlacedPool, scenario: Scenario, model: ModelSpec, share: tuple[float, ...], parts: Set[Part] = ALL_PARTS
) -> Traffic:
    """What devices that have these parts of a model send each other: what they say, else what their operators'
    collectives do."""
    if placed.replica.point_to_point is not None:
        return traffic_of_point_to_point(placed.replica.point_to_point(), placed.plan.devices)
    split = scenario.cluster.split
    operators = operators_of(model, split, lm_head=scenario.costs.lm_head, parts=parts)
    way = transport(split, scenario.cluster.dispatch, measured=scenario.costs.measured_with is not None)
    return traffic_of_operators(operators, split, share, way)


def _traffic_of_groups(
    placed: PlacedPool, scenario: Scenario, model: ModelSpec, routing: Routing, share: tuple[float, ...], epoch: int
) -> Traffic:
    """What all devices of a replica send each other that has attention and experts on groups of their own."""
    spec, term = scenario.cluster.two_groups, placed.plan.experts
    assert spec is not None
    assert term is not None
    sides = sides_of(term)
    models = [model, *(_with_experts(model, side) for side in sides)]
    inside = []
    for group, pool, of_pool in zip(spec.groups, placed.members, models, strict=True):
        flows = _traffic_of(pool, scenario.of_group(group), of_pool, (), spec.parts_of(group)).flows
        inside.append((flows, pool.devices_per_replica))
    attention, experts = placed.groups
    link = link_between(scenario, model, routing, attention, experts, epoch)
    return traffic_of_groups(inside, link.passing(), sides, term.top_k, share)


def _with_experts(model: ModelSpec, side: Side) -> ModelSpec:
    """The model as if it had the routed experts of one kind of devices alone."""
    assert model.moe is not None
    some = model.moe.model_copy(update={"experts": side.experts, "top_k": side.top_k})
    return model.model_copy(update={"moe": some})
