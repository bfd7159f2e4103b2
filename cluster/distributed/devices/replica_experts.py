"""The routed experts of a replica's devices, as its plan and the scenario's routing have them."""

from __future__ import annotations

from collections.abc import Sequence

from pimserve.cluster.distributed.devices.exact_experts import ExactExperts
from pimserve.cluster.distributed.devices.expert_work import PooledExperts
from pimserve.cluster.distributed.devices.flows import Dispatch
from pimserve.cluster.distributed.devices.mixed_experts import MixedExperts
from pimserve.scheduler.costs import ReplicaCosts
from pimserve.scheduler.mixed_costs import MixedCosts

Experts = PooledExperts | ExactExperts | MixedExperts


def experts_of(costs: ReplicaCosts, dispatch: Dispatch | None, devices: Sequence[int]) -> Experts | None:
    """The routed experts of a replica; None where they are no part of its plan."""
    if costs.plan.experts is None or dispatch is None:
        return None
    if costs.exact:
        return ExactExperts(costs, dispatch, devices)
    return (
        MixedExperts(costs, dispatch, devices)
        if isinstance(costs, MixedCosts)
        else PooledExperts(costs, dispatch, devices)
    )
