"""What a scenario leaves open: numbers of devices, and of hot experts.

`devices_per_node: auto` are the fewest devices that hold a model, with room for the longest request in its KV cache.

Whatever the kind of device, its own fit decides: numbers are tried from 1 upwards, and the first one counts on which
the model divides and fits, and on which the KV cache of a data-parallel group holds one request of the longest length:
what vLLM asks for before it starts. Where a fit tells how many devices it takes at least, numbers below are skipped;
where a fit tells that no number of them has room for that request, the search ends.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pimserve.cluster.scenario.document import MOST_DEVICES, Scenario
from pimserve.cluster.scenario.hot_count import best_count
from pimserve.cluster.scenario.one_group import place_one
from pimserve.cluster.scenario.placement import PlacedPool, most_tokens
from pimserve.cluster.scenario.pools import of_pool, place_pool, routing_of
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.routing import Routing
from pimserve.errors import DoesNotFitError, InputError
from pimserve.scheduler.config import SchedulerSpec

_Group = Literal["", "attention", "hot_experts", "experts"]
_ONE: tuple[_Group, ...] = ("",)
_WITHOUT_CACHE = ("experts", "hot_experts")
_OF_SIZE = ("cluster", "scheduler")  # sections whose errors another number of devices may mend


def sized(scenario: Scenario) -> Scenario:
    """The scenario with a number in place of every `devices_per_node: auto`, and of `hot_experts.count: auto`.

    Raises:
        InputError: no number of devices up to MOST_DEVICES will do, or parts of the scenario do not go together.
    """
    for name in scenario.pools:
        placement = scenario.of_pool(name).cluster.two_groups
        if placement is not None and placement.hot_experts is not None and placement.hot_experts.count == "auto":
            scenario = _with(scenario, name, "hot_experts", {"count": _hot_count(scenario, name)})
        for group in _ONE if placement is None else placement.groups:
            if _of(scenario, name, group).cluster.devices_per_node == "auto":
                scenario = _with(scenario, name, group, {"devices_per_node": _fewest(scenario, name, group)})
    return scenario


def _hot_count(scenario: Scenario, name: str) -> int:
    """Hot experts of a pool; each number is tried with the fewest devices that hold all else, where these are open."""
    if _of(scenario, name, "hot_experts").cluster.devices_per_node == "auto":
        message = "must be a number, or count: the devices that hold hot experts, and how many, cannot both be auto"
        raise InputError(_where(name, "hot_experts"), message)
    alone, model = scenario.of_pool(name), scenario.load_model()
    routing = routing_of(scenario, model)
    return best_count(alone, model, routing, lambda count: sized(_with(alone, "", "hot_experts", {"count": count})))


def _of(scenario: Scenario, name: str, group: _Group) -> Scenario:
    """The scenario as if devices of a pool, or of a group of its replicas, were all there are."""
    alone = scenario.of_pool(name)
    return alone.of_group(group) if group else alone


def _with(scenario: Scenario, name: str, group: _Group, change: dict[str, Any]) -> Scenario:
    """The scenario with something changed there."""
    cluster = scenario.cluster
    in_pool = cluster.pools is not None and name
    if group:
        placement = scenario.of_pool(name).cluster.two_groups
        assert placement is not None
        spec = getattr(placement, group).model_copy(update=change)
        change = {"placement": placement.model_copy(update={group: spec})}
    if not in_pool:
        return scenario.model_copy(update={"cluster": cluster.model_copy(update=change)})
    pool = getattr(cluster.pools, name).model_copy(update=change)
    pools = cluster.pools.model_copy(update={name: pool})  # type: ignore[union-attr]
    return scenario.model_copy(update={"cluster": cluster.model_copy(update={"pools": pools})})


def _placed(scenario: Scenario, name: str, group: _Group, model: ModelSpec, routing: Routing) -> PlacedPool:
    if not group:
        return place_pool(scenario, name, model, routing)
    try:
        return place_one(scenario.of_pool(name), group, model, routing)
    except InputError as error:
        raise of_pool(error, scenario, name) from None


def _fewest(scenario: Scenario, name: str, group: _Group) -> int:
    """Devices in each node there."""
    model = scenario.load_model()
    routing = routing_of(scenario, model)
    wanted = min(scenario.scheduler.max_model_len or model.max_model_len_tokens, model.max_model_len_tokens)
    reasons: dict[int, str] = {}
    refused: InputError | None = None
    number = 1
    while number <= MOST_DEVICES:
        try:
            pool = _placed(_with(scenario, name, group, {"devices_per_node": number}), name, group, model, routing)
        except DoesNotFitError as error:
            reasons[number] = str(error)
            if error.least is None:
                break
            number = max(number + 1, -(-error.least // _of(scenario, name, group).cluster.nodes))
            continue
        except InputError as error:
            if error.where.partition(".")[0] not in _OF_SIZE:
                raise
            reasons[number], refused = str(error), error
        else:
            fits = wanted if group in _WITHOUT_CACHE else pool.request_tokens(scenario.scheduler)
            if fits >= wanted:
                return number
            if pool.kv_blocks_override is not None:
                raise _too_few_blocks(pool, scenario.scheduler, wanted, fits)
            reasons[number] = f"the KV cache holds {fits:,} tokens, and the longest request has {wanted:,}"
            most = most_tokens(pool.kv_capacity_tokens, pool.replica.kv_growth)
            if most is not None and replace(pool, kv_capacity_tokens=most).request_tokens(scenario.scheduler) < wanted:
                break
        number += 1
    first, last = (reasons[at] for at in (min(reasons), max(reasons)))
    if refused is not None and first == last == str(refused):  # whatever the number, where the model divides at all
        raise refused
    raise InputError(_where(name, group), _none_does(model.name, reasons))


def _too_few_blocks(pool: PlacedPool, spec: SchedulerSpec, wanted: int, fits: int) -> InputError:
    """That `kv_blocks`, which are what they are on any number of devices, hold no request of the longest length."""
    slots = pool.lookahead_tokens(spec)
    chunk = wanted if spec.chunk_tokens is None else spec.chunk_tokens
    blocks = pool.kv_groups.blocks(wanted + slots, spec.block_size, chunk + slots)
    shorter = f", or scheduler.max_model_len to {fits:,} at most" if fits > 0 else ""
    held = f"{spec.kv_blocks:,} blocks of {spec.block_size} tokens hold a request of {max(0, fits):,} tokens"
    return InputError(
        "scheduler.kv_blocks",
        f"{held} on any number of devices, and devices_per_node: auto wants room for the longest, {wanted:,} tokens: "
        f"set it to {blocks:,} at least{shorter}; or give devices_per_node a number",
    )


def _where(name: str, group: _Group) -> str:
    pool, of_group = f"pools.{name}." if name else "", f"placement.{group}." if group else ""
    return f"cluster.{pool}{of_group}devices_per_node"


def _none_does(model: str, reasons: dict[int, str]) -> str:
    """The first and the last reason."""
    shown = dict.fromkeys((next(iter(reasons)), next(reversed(reasons))))
    told = "; ".join(f"with {number:,}: {reasons[number]}" for number in shown)
    return f"auto finds no number up to {MOST_DEVICES:,} that holds {model} ({told})"
