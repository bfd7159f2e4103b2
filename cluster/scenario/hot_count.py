"""`hot_experts.count: auto`: how many experts of a layer are on the devices of hot ones, by the time of steps.

Numbers are tried that these devices and those of the cold ones hold, each with the devices and micro-batches that it
would have, in steps of a full batch of decoding requests: the mean over a pool of outcomes. The shortest counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.expert_placement import expert_weights
from pimserve.cluster.scenario.hot_experts import check_hot
from pimserve.cluster.scenario.two_groups import full_batch, place_two_groups
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.routing import POOL_SIZE, Routing
from pimserve.errors import InputError

_FEW = 16  # each number takes a fit on all devices, seconds for large models on crossbars


def best_count(scenario: Scenario, model: ModelSpec, routing: Routing, of_count: Callable[[int], Scenario]) -> int:
    """Of one pool's replicas; `of_count` gives the scenario with so many hot experts, and nothing left open.

    Raises:
        InputError: there are no hot experts, or none of the numbers that are tried goes on the devices.
    """
    if model.moe is None:
        raise InputError("cluster.placement", f"{model.name} has no routed experts: leave it out")
    check_hot(scenario, expert_weights(model, routing, scenario.run.seed))
    step_fs: dict[int, Fraction] = {}
    refused: InputError | None = None
    for count in candidates(model.moe.experts, scenario.of_group("hot_experts").cluster.split.devices):
        try:
            step_fs[count] = mean_step_fs(of_count(count), model, routing)
        except InputError as error:
            refused = refused or error
    if not step_fs:
        raise refused or InputError("cluster.placement.hot_experts", f"{model.name} has too few experts to part them")
    return min(step_fs, key=lambda count: (step_fs[count], count))


def candidates(experts: int, devices: int) -> list[int]:
    """Numbers that are tried: all of few experts; else powers of two, of experts of a device or of all of them."""
    if experts <= _FEW:
        return list(range(1, experts))
    numbers = {times * 2**power for power in range(experts.bit_length()) for times in (1, devices)}
    return sorted(number for number in numbers if number < experts)


def mean_step_fs(scenario: Scenario, model: ModelSpec, routing: Routing) -> Fraction:
    """Mean time of steps of a full batch of decoding requests.

    Raises:
        InputError: the model does not go on the devices.
    """
    pool = place_two_groups(scenario, model, routing)
    requests, context = full_batch(scenario, pool)
    costs = pool.costs(replace(routing, mode="pooled"), scenario.run.seed)
    span = costs.decode_span(0, requests, requests * context, POOL_SIZE)
    return Fraction(span.duration_fs(span.steps), span.steps)
