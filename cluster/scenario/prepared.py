"""A scenario made ready to run: its model, the pools of replicas that serve it, and what a request may have."""

from __future__ import annotations

from collections.abc import Sequence

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.placement import Replica
from pimserve.cluster.scenario.pools import PlacedPool, place_pool, routing_of
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.routing import Routing
from pimserve.errors import InputError
from pimserve.scheduler.faults import FaultSpec
from pimserve.scheduler.simulation import check_together


def prepare_pools(scenario: Scenario) -> tuple[ModelSpec, tuple[PlacedPool, ...], Routing]:
    """The model, the pools of replicas that serve it (one, or prefill and decode), and how its tokens choose experts.

    Raises:
        InputError: parts of the scenario do not go together.
    """
    check_together(
        scenario.scheduler,
        faults_of(scenario),
        closed=scenario.workload.mode == "closed",
        pools=scenario.cluster.pools is not None,
        replicas=scenario.cluster.replicas,
    )
    model = scenario.load_model()
    routing = routing_of(scenario, model)
    return model, tuple(place_pool(scenario, name, model, routing) for name in scenario.pools), routing


def prepare(scenario: Scenario) -> tuple[ModelSpec, Replica, Routing]:
    """The model, a replica of the (first) pool, and how its tokens choose experts.

    Raises:
        InputError: parts of the scenario do not go together.
    """
    model, pools, routing = prepare_pools(scenario)
    return model, pools[0].replica, routing


def max_model_len(scenario: Scenario, model: ModelSpec, replicas: Sequence[Replica]) -> int:
    """What the scenario asks for, else the most that the model takes, tokens. The KV cache may hold less of the latter.

    Raises:
        InputError: it asks for more than the model or the KV cache takes.
    """
    wanted = scenario.scheduler.max_model_len
    fits = min(replica.request_tokens for replica in replicas)
    if wanted is None:
        return model.max_model_len_tokens
    if wanted > model.max_model_len_tokens:
        raise InputError(
            "scheduler.max_model_len", f"{wanted} exceeds the {model.max_model_len_tokens} tokens of {model.name}"
        )
    if wanted > fits:
        raise InputError(
            "scheduler.max_model_len", f"{wanted} exceeds the {fits} tokens that the KV cache holds for a request"
        )
    return wanted


def longest_request(scenario: Scenario, model: ModelSpec, replicas: Sequence[Replica]) -> int:
    """Tokens that a request may have: `max_model_len`, or what the KV cache holds.

    Raises:
        InputError: the scenario asks for more.
    """
    return min(max_model_len(scenario, model, replicas), *(replica.request_tokens for replica in replicas))


def faults_of(scenario: Scenario) -> FaultSpec:
    """The faults that a scenario asks for, none by default."""
    return scenario.faults or FaultSpec()
