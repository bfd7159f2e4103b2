"""Which energy of a scenario's devices is farthest above the usual, where together they are too large to be counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.placement_spec import GroupName
from pimserve.device_models.catalogue import device_names
from pimserve.device_models.device import Device
from pimserve.device_models.registry import load_device


def farthest_energy(scenario: Scenario, pools: Sequence[PlacedPool]) -> tuple[str, float]:
    """(place in the scenario, value) of the energy that is farthest above the usual, of all devices.

    Usual are those of the catalogue's device of that name, else those of all of its kind.
    """
    found = []
    for pool in pools:
        placement = scenario.of_pool(pool.name).cluster.two_groups
        groups: tuple[GroupName | None, ...] = (None,) if placement is None else placement.groups
        for group, devices in zip(groups, pool.members, strict=True):
            times, key, value = _farthest(devices.device)
            found.append((times, f"{_place(scenario, pool.name, group)}.device.{key}", value))
    _, place, value = max(found)
    return place, value


def _place(scenario: Scenario, pool: str, group: GroupName | None) -> str:
    """Where the scenario says which devices a pool has, or a group of them."""
    sections: list[tuple[str, Any]] = [("cluster", scenario.cluster)]
    if scenario.cluster.pools is not None:
        sections.append((f"cluster.pools.{pool}", getattr(scenario.cluster.pools, pool)))
    found = [place for place, section in sections if section.device is not None]
    if group is not None:  # the innermost placement stands for all of the others
        place, section = [each for each in sections if each[1].placement is not None][-1]
        if getattr(section.placement, group).device is not None:
            found.append(f"{place}.placement.{group}")
    return found[-1]


def _farthest(device: Device) -> tuple[float, str, float]:
    """(times the usual, key, value) of an energy of a device."""
    spec = device.spec
    known = [spec.name] if spec.name in device_names() else device_names()
    usual = [dict(_energies(load_device(name).spec.model_dump())) for name in known]
    return max(
        (value / max([figures.get(key, 0.0) for figures in usual] + [1e-3]), key, value)
        for key, value in _energies(spec.model_dump())
    )


def _energies(document: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Figures in pJ or nJ, by dotted key."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _energies(value, f"{above}{key}.")
        elif isinstance(value, int | float) and {"pj", "nj"} & set(key.split("_")):
            yield f"{above}{key}", float(value)
