"""Which devices of a replica do what: with attention and experts on groups of devices of their own, or all the same."""

from __future__ import annotations

from collections.abc import Set
from typing import Literal, NamedTuple, get_args

from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.placement_spec import GroupName
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import ALL_PARTS, Part


class DeviceGroup(NamedTuple):
    """Devices of one kind in each replica of a pool.

    `name`: "" where there is no other group; `numbers`: of the devices in their replica; `placed`: what they are, as if
    they were alone; `parts`: of the model that are on them.
    """

    name: GroupName | Literal[""]
    numbers: range
    placed: PlacedPool
    parts: tuple[Part, ...]


def device_groups(pool: PlacedPool, model: ModelSpec) -> list[DeviceGroup]:
    """Groups of the devices of a pool's replicas, which have that model; attention first."""
    if not pool.groups:
        return [DeviceGroup("", range(pool.devices_per_replica), pool, parts_in(model, ALL_PARTS))]
    on_experts = frozenset(pool.replica.facts["placement"]["on_experts"])
    parts_of: dict[GroupName, frozenset[Part]] = {"attention": ALL_PARTS - on_experts, "experts": on_experts}
    if len(pool.members) > len(pool.groups):
        parts_of = {
            "attention": parts_of["attention"],
            "hot_experts": frozenset({"routed_experts"}),
            "experts": on_experts,
        }
    groups, first = [], 0
    for (name, parts), placed in zip(parts_of.items(), pool.members, strict=True):
        end = first + placed.devices_per_replica
        groups.append(DeviceGroup(name, range(first, end), placed, parts_in(model, parts)))
        first = end
    return groups


def parts_in(model: ModelSpec, parts: Set[Part]) -> tuple[Part, ...]:
    """Those of them that the model has, in the order of a layer."""
    moe = model.moe
    absent = {
        "dense_ffn": not model.dense_layers,
        "shared_experts": moe is None or not moe.shared_intermediate,
        "routed_experts": moe is None,
    }
    return tuple(part for part in get_args(Part) if part in parts and not absent.get(part))
