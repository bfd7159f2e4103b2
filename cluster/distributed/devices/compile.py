"""From the scenario that a host is sent to what it needs to know of its devices, by its own physics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from pimserve.cluster.distributed.devices.flows import Traffic, traffic_of_operators, traffic_of_point_to_point
from pimserve.cluster.scenario.dispatch import transport
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.placement import Replica
from pimserve.cluster.scenario.prepared import prepare_pools
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import operators_of
from pimserve.device_models.routing import ExpertPools, Routing, mean_share
from pimserve.errors import InputError, validation_error
from pimserve.scheduler.costs import ReplicaCosts


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas of one kind: their plan and what else a device knows of itself; `costs` are those of the first."""

    name: str
    device: str
    replica: Replica
    numbers: range  # of its replicas
    costs: ReplicaCosts
    traffic: Traffic
    seed: int
    expert_layers: int
    top_k: int

    @property
    def devices(self) -> int:
        """Devices of a replica."""
        return self.replica.plan.devices

    @property
    def picks_per_token(self) -> int:
        """Experts that a token picks in all layers."""
        return self.expert_layers * self.top_k


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


def compile_pool(scenario: Scenario, name: str) -> Pool:
    """What the devices of a pool are; "" is the only one.

    Raises:
        InputError: there is no such pool, or parts of the scenario do not go together.
    """
    model, pools, routing = prepare_pools(scenario)
    first = 0  # replicas are numbered pool by pool
    for placed in pools:
        if placed.name == name:
            break
        first += placed.replicas
    else:
        raise InputError("pools.pool", f"must be one of {', '.join(repr(pool.name) for pool in pools)} (got {name!r})")
    seed = scenario.run.seed
    plan = placed.replica.plan
    experts = ExpertPools(plan.experts, routing, seed) if plan.experts is not None else None
    alone = scenario.of_pool(name)
    return Pool(
        name=name,
        device=placed.label,
        replica=placed.replica,
        numbers=range(first, first + placed.replicas),
        costs=ReplicaCosts(plan, experts, replica=first, seed=seed, exact=routing.mode == "exact"),
        traffic=_traffic_of(placed.replica, alone, model, _share(model, routing, seed)),
        seed=seed,
        expert_layers=model.moe_layers if model.moe is not None else 0,
        top_k=model.moe.top_k if model.moe is not None else 0,
    )


def _share(model: ModelSpec, routing: Routing, seed: int) -> tuple[float, ...]:
    """Picks of a token that fall on each routed expert, in the mean over layers."""
    if model.moe is None:
        return ()
    return mean_share(routing.expert_weights(model.moe.experts, seed).tolist(), model.moe.top_k)


def _traffic_of(replica: Replica, scenario: Scenario, model: ModelSpec, share: tuple[float, ...]) -> Traffic:
    """What the devices of a replica send each other: what they say, else what their operators' collectives do."""
    if replica.point_to_point is not None:
        return traffic_of_point_to_point(replica.point_to_point(), replica.plan.devices)
    split = scenario.cluster.split
    operators = operators_of(model, split, lm_head=scenario.costs.lm_head)
    way = transport(split, scenario.cluster.dispatch, measured=scenario.costs.measured_with is not None)
    return traffic_of_operators(operators, split, share, way)
