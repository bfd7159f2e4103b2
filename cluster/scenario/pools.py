"""The pools of a scenario: what their replicas are, and the way of KV caches from one to the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.interconnect import ALL_TO_ALL, RING
from pimserve.cluster.scenario.placement import Replica, place
from pimserve.device_models.catalogue import device_names
from pimserve.device_models.device import Demand, Device, Roof
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.plan import FS_PER_S
from pimserve.device_models.registry import load_device
from pimserve.device_models.routing import Routing
from pimserve.errors import InputError
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import Pool
from pimserve.scheduler.handover import Link

_BYTES_PER_GB = 10**9
_BETWEEN_NODES = ("node_gb_per_s", "node_latency_us", "dispatch_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPool(Pool):
    """Replicas of one kind, and the devices that they are on; `label` says what these are."""

    label: str
    device: Device
    replica: Replica
    devices_per_replica: int

    @property
    def devices(self) -> int:
        """Devices of all replicas."""
        return self.replicas * self.devices_per_replica

    @property
    def silicon_mm2(self) -> float | None:
        """Silicon of all devices, where it is known."""
        return None if self.device.area_mm2 is None else self.device.area_mm2 * self.devices

    @property
    def tdp_w(self) -> float | None:
        """Power at which all devices are sold, where it is known."""
        return None if self.device.spec.tdp_w is None else self.device.spec.tdp_w * self.devices

    @property
    def roofs(self) -> tuple[Roof, ...]:
        """Nominal ones of the units of a device, the processor first; none where no bandwidth is known."""
        figures, decode = self.device.key_figures, self.plan.decode
        bandwidth, peak = figures.get("memory_gb_per_s"), figures.get("tflop_per_s_16_bit")
        if self.replica.roofs or bandwidth is None:
            return self.replica.roofs
        unit = self.device.units[0] if peak or not decode else decode[0].unit  # that reads the memory
        return (Roof(unit, bandwidth * 1e9, peak * 1e12 if peak else None),)

    @property
    def facts(self) -> dict[str, Any]:
        """What the devices say of themselves."""
        facts = self.replica.facts
        return {**facts, **({"preset": self.label} if "preset" in facts else {})}


def routing_of(scenario: Scenario, model: ModelSpec) -> Routing:
    """How tokens choose experts.

    Raises:
        InputError: the model has no experts to choose from.
    """
    if model.moe is None and scenario.routing.popularity != "uniform":
        raise InputError("routing.popularity", f"{model.name} has no routed experts")
    return scenario.routing.for_model(model)


def _weights(scenario: Scenario, model: ModelSpec, routing: Routing) -> tuple[tuple[float, ...], ...]:
    if model.moe is None:
        return ()
    return tuple(map(tuple, routing.expert_weights(model.moe.experts, scenario.run.seed).tolist()))


def place_pool(scenario: Scenario, name: str, model: ModelSpec, routing: Routing, first: int = 0) -> PlacedPool:
    """A pool of a scenario, "" for the only one; its replicas are numbered from `first` on.

    Raises:
        InputError: there is no such pool, or the model does not go on its devices.
    """
    alone = scenario.of_pool(name)
    try:
        device = alone.load_device()
        demand = Demand(
            model,
            alone.cluster.split,
            lm_head=scenario.costs.lm_head,
            memory_utilization=scenario.scheduler.memory_utilization,
            reserve_gb=scenario.scheduler.reserve_gb,
            max_num_seqs=scenario.scheduler.max_num_seqs,
            max_step_tokens=scenario.scheduler.max_step_tokens(model.max_model_len_tokens),
            expert_weights=_weights(scenario, model, routing),
            backend=scenario.costs.measured_with,
            kernels=scenario.costs.kernels,
            expert_decision=scenario.costs.expert_decision,
            passive_power=scenario.costs.passive_power,
        )
        replica = place(device, alone.interconnect(device), demand)
        if scenario.scheduler.kv_blocks is not None:
            replica = replace(replica, kv_capacity_tokens=_overridden(scenario.scheduler, device, demand, replica))
        replica = replace(replica, warnings=(*replica.warnings, *_without_effect(alone, device, demand, replica)))
    except InputError as error:
        if name and error.where.partition(".")[0] == "cluster":
            raise error.at(f"cluster.pools.{name}{error.where.removeprefix('cluster')}") from None
        raise
    return PlacedPool(
        name=name,
        plan=replica.plan,
        kv_capacity_tokens=replica.kv_capacity_tokens,
        replicas=alone.cluster.replicas,
        first=first,
        kv_groups=replica.kv_groups,
        label=device_label(device),
        device=device,
        replica=replica,
        devices_per_replica=alone.cluster.split.devices,
    )


def _overridden(spec: SchedulerSpec, device: Device, demand: Demand, replica: Replica) -> int:
    """Tokens of `kv_blocks`, which devices must be able to hold when there is nothing but weights beside them."""
    assert spec.kv_blocks is not None
    full = replica.kv_groups.full
    tokens = -(-spec.kv_blocks * spec.block_size * demand.split.data // full)
    most = device.fit(replace(demand, memory_utilization=1.0, reserve_gb=0.0)).kv_capacity_tokens
    if tokens > most:
        raise InputError(
            "scheduler.kv_blocks",
            f"must be at most {most * full // demand.split.data // spec.block_size}, the blocks of {spec.block_size} "
            f"tokens that the memory of {device.spec.name} holds beside the weights (got {spec.kv_blocks})",
        )
    return tokens


def _without_effect(scenario: Scenario, device: Device, demand: Demand, replica: Replica) -> list[str]:
    """What was asked for and changes nothing: sentences."""
    notes = []
    cluster = scenario.cluster
    if scenario.routing.mode == "exact" and scenario.load_model().moe is not None and replica.plan.experts is None:
        notes.append(
            f"routing.mode: exact changes nothing: the plan of {device.spec.name} has expected loads of experts"
        )
    if demand.expert_decision != "exact":
        exact = place(device, scenario.interconnect(device), replace(demand, expert_decision="exact"))
        if exact.plan == replica.plan:
            notes.append(
                f"costs.expert_decision: {demand.expert_decision} changes nothing: {device.spec.name} does not divide "
                f"the work of {demand.model.name} among two units side by side"
            )
    defaults = {key: type(cluster).model_fields[key].default for key in _BETWEEN_NODES}
    given = [f"cluster.{key}" for key, default in defaults.items() if getattr(cluster, key) != default]
    if given and cluster.split.nodes == 1:
        notes.append(f"{', '.join(given)}: no effect, a replica has one node")
    sent = {each.operator for each in replica.traffic}
    if scenario.costs.collectives == "ring" and RING not in sent:
        notes.append("costs.collectives: no effect, a replica has no all-reduces")
    links = {each.link for each in replica.traffic if each.operator == RING}
    ideal = scenario.costs.collectives == "best" and scenario.costs.measured_with is None
    if ideal and device.spec.one_shot_latency_us is None and links == {"intra_node"}:
        notes.append(
            f"{device.spec.name} has no one_shot_latency_us: with costs.collectives: best, all-reduces are rings only"
        )
    if cluster.dispatch != type(cluster).model_fields["dispatch"].default:
        if ALL_TO_ALL not in sent:
            notes.append("cluster.dispatch: no effect, no tokens pass between data-parallel groups")
        elif cluster.split.nodes == 1 and scenario.costs.measured_with is not None:
            notes.append("cluster.dispatch: no effect, a replica has one node, where collectives are measured")
        elif cluster.split.nodes == 1 and cluster.dispatch == "direct":
            notes.append("cluster.dispatch: no effect, a replica has one node, where forward is direct")
    return notes


def energy_key(device: Device) -> tuple[str, float]:
    """The energy of a description that is farthest above the usual: its key, below that of the device, and its value.

    Usual are those of the catalogue's device of that name, else those of all of its kind.
    """
    spec = device.spec
    known = [spec.name] if spec.name in device_names() else device_names()
    usual = [dict(_energies(load_device(name).spec.model_dump())) for name in known]
    energies = dict(_energies(spec.model_dump()))
    return max(energies.items(), key=lambda item: item[1] / max([each.get(item[0], 0.0) for each in usual] + [1e-3]))


def _energies(document: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Figures in pJ or nJ, by dotted key."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _energies(value, f"{above}{key}.")
        elif isinstance(value, int | float) and {"pj", "nj"} & set(key.split("_")):
            yield f"{above}{key}", float(value)


def device_label(device: Device) -> str:
    """The device's name, which says so if it is one of the catalogue's and the device is not the same."""
    spec = device.spec
    if spec.name in device_names() and spec != load_device(spec.name).spec:
        return f"{spec.name} (changed)"
    return str(spec.name)


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
    layer = model.attention.kv_elements * first / 8
    handover = scenario.cluster.pools.handover
    return Link(
        bytes_per_s=round(handover.gb_per_s * _BYTES_PER_GB),
        latency_fs=round(handover.latency_us * FS_PER_S / 10**6),
        bytes_per_token=math.ceil(layer * (model.layers - model.windowed_layers)),
        window_bytes_per_token=math.ceil(layer * model.windowed_layers),
        window_tokens=getattr(model.attention, "window_tokens", None) or 0,
    )
