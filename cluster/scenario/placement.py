"""A pool of replicas: which devices hold a copy of the model each, what a step costs on them, and how much KV cache is
left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pimserve.cluster.scenario.interconnect import Interconnect, beyond_measured
from pimserve.device_models.catalogue import device_names
from pimserve.device_models.device import (
    Demand,
    Device,
    Fitted,
    OperatorDevice,
    PointToPoint,
    Precision,
    Roof,
    kv_pool_bytes_per_token,
)
from pimserve.device_models.expert_programming import ExpertProgramming
from pimserve.device_models.operators import Parallelism, Traffic
from pimserve.device_models.registry import load_device
from pimserve.errors import DoesNotFitError, InputError
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.fleet import Pool


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of the model: how devices share it, what they hold it in, what they say, the setting of their costs,
    what passes between them, the roofs of one, what writing experts anew takes, and how much its KV cache can grow (as
    `Fitted` has them)."""

    weight_bytes_per_device: float
    reserved_bytes_per_device: float
    parallelism: Mapping[str, Any]
    precision: Precision
    facts: Mapping[str, Any]
    warnings: tuple[str, ...]
    costs: Mapping[str, Any]
    traffic: tuple[Traffic, ...]
    point_to_point: Callable[[], PointToPoint] | None
    roofs: tuple[Roof, ...]
    expert_programming: Callable[[], ExpertProgramming | None] | None
    kv_growth: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPool(Pool):
    """Replicas of one kind, and the devices that they are on; `label` says what these are.

    Where attention and experts have groups of devices of their own, these are the `groups`, attention first, each as if
    it were alone; `device` is of the first. Hot and cold experts' devices are groups of the experts' in turn.
    `draft_layers`, `draft_kv_bytes_per_token`: of a model that drafts beside this one, and of its KV cache; 0: there is
    none.
    """

    label: str
    device: Device
    replica: Replica
    devices_per_replica: int
    groups: tuple[PlacedPool, ...] = ()
    draft_layers: int = 0
    draft_kv_bytes_per_token: float = 0.0

    @property
    def devices(self) -> int:
        """Devices of all replicas."""
        return self.replicas * self.devices_per_replica

    @property
    def members(self) -> tuple[PlacedPool, ...]:
        """Its groups and theirs, or itself: devices of one kind each."""
        return tuple(member for group in self.groups for member in group.members) or (self,)

    def member_of(self, device: int) -> tuple[int, int]:
        """(number of its group, 0 where there are none; its number there) of a device of a replica."""
        for number, member in enumerate(self.members):
            if device < member.devices_per_replica:
                return number, device
            device -= member.devices_per_replica
        raise IndexError(device)

    @property
    def silicon_mm2(self) -> float | None:
        """Silicon of all devices, where it is known."""
        return _total([(each.device.area_mm2, each.devices) for each in self.members])

    @property
    def tdp_w(self) -> float | None:
        """Power at which all devices are sold, where it is known."""
        return _total([(each.device.spec.tdp_w, each.devices) for each in self.members])

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
        """What the devices say of themselves; of attention's and experts', attention's."""
        if self.plan.micro_batches is not None:
            return self.groups[0].facts
        facts = self.replica.facts
        return {**facts, **({"preset": self.label} if "preset" in facts and not self.groups else {})}


def _total(each: Sequence[tuple[float | None, int]]) -> float | None:
    """Sum over (of one device, devices), where it is known of all."""
    known = [figure * devices for figure, devices in each if figure is not None]
    return sum(known) if len(known) == len(each) else None


def place(
    device: Device,
    interconnect: Interconnect,
    demand: Demand,
    spec: SchedulerSpec = SchedulerSpec(),  # noqa: B008 frozen
    *,
    name: str = "",
    replicas: int = 1,
    first: int = 0,
) -> PlacedPool:
    """Put copies of a model on devices of one kind, with links between those of each.

    Args:
        device: one of them.
        interconnect: the links.
        demand: the model, and what is wanted of a replica.
        spec: scheduler settings, which may state the KV blocks.
        name: of the pool.
        replicas: how many copies.
        first: number of the first one.

    Raises:
        InputError: the model does not divide over the devices, or does not fit them.
    """
    fitted = device.fit(demand)
    host_is_here = "attention" in demand.parts
    if demand.backend is not None and host_is_here and fitted.costs.get("setting") != "measured":
        raise InputError(
            "costs.setting", f"devices of this kind ({device.spec.name}) have no measured costs; use ideal"
        )
    links = interconnect.compile(fitted.collectives, demand.split, fitted.collective_kernels)
    passive = fitted.plan.passive if demand.passive_power else None
    blocks, tokens = _kv_cache(device, demand, fitted, spec)
    return PlacedPool(
        name=name,
        plan=replace(fitted.plan, rows=fitted.plan.rows + links, passive=passive),
        kv_capacity_tokens=tokens,
        replicas=replicas,
        first=first,
        kv_groups=fitted.kv_groups,
        kv_blocks_override=blocks,
        device_kv_bytes_per_token=_swapped_bytes_per_token(device, demand) if spec.preemption == "swap" else 0.0,
        label=device_label(device),
        device=device,
        replica=_replica(device, interconnect, demand, fitted),
        devices_per_replica=demand.split.devices,
    )


def _swapped_bytes_per_token(device: Device, demand: Demand) -> float:
    """What a token takes of a device's KV cache, of which it has its part as it has of the weights.

    Raises:
        InputError: that is not known of such devices.
    """
    if not isinstance(device, OperatorDevice):
        raise InputError("scheduler.preemption", f"swap is not modelled on devices of the kind of {device.spec.name}")
    return kv_pool_bytes_per_token(demand.model, demand.split)


def _replica(device: Device, interconnect: Interconnect, demand: Demand, fitted: Fitted) -> Replica:
    warnings = fitted.warnings
    if demand.backend is not None and demand.split.nodes > 1:
        warnings = (*warnings, "links between nodes are ideal")
    if fitted.collective_kernels is not None:
        warnings += beyond_measured(fitted.collectives, demand.split, fitted.collective_kernels)
    if fitted.expert_decision not in {None, demand.expert_decision}:
        warnings = (
            *warnings,
            f"costs.expert_decision: {demand.expert_decision} changes nothing: {device.spec.name} does not divide "
            f"the work of {demand.model.name} among two units side by side",
        )
    return Replica(
        weight_bytes_per_device=fitted.weight_bytes_per_device,
        reserved_bytes_per_device=fitted.reserved_bytes_per_device,
        parallelism=_parallelism(demand.split) if fitted.parallelism is None else fitted.parallelism,
        precision=fitted.precision or Precision.of(demand.model),
        facts=fitted.facts,
        warnings=warnings,
        costs=fitted.costs,
        traffic=interconnect.traffic(fitted.collectives, demand.split, fitted.collective_kernels) + fitted.traffic,
        point_to_point=fitted.point_to_point,
        roofs=fitted.roofs,
        expert_programming=fitted.expert_programming,
        kv_growth=fitted.kv_growth,
    )


def _parallelism(split: Parallelism) -> dict[str, Any]:
    """How devices share a model; copies of experts where there are some."""
    return {key: value for key, value in asdict(split).items() if value or key != "redundant_experts"}


def _kv_cache(device: Device, demand: Demand, fitted: Fitted, spec: SchedulerSpec) -> tuple[int | None, int]:
    """(blocks that the settings state, None if they do not; tokens) of a replica's KV cache.

    Raises:
        InputError: devices cannot hold them, with nothing but weights beside them.
    """
    if spec.kv_blocks is None:
        return None, fitted.kv_capacity_tokens
    size, groups = spec.block_size, fitted.kv_groups
    tokens = fitted.kv_memory_tokens
    if tokens is None:
        tokens = device.fit(replace(demand, memory_utilization=1.0, reserve_gb=0.0)).kv_capacity_tokens
    most = groups.pool_blocks(tokens, size) // demand.split.data
    if spec.kv_blocks > most:
        where, message = (
            "scheduler.kv_blocks",
            f"must be at most {most}, the blocks of {size} tokens that the memory of {device.spec.name} holds beside "
            f"the weights (got {spec.kv_blocks})",
        )
        on_any = most_tokens(tokens, fitted.kv_growth)
        if on_any is not None and spec.kv_blocks > groups.pool_blocks(on_any, size) // demand.split.data:
            raise DoesNotFitError(where, message, None)
        raise InputError(where, message)
    blocks = spec.kv_blocks * demand.split.data
    return blocks, -(-blocks * size // groups.full)


def most_tokens(tokens: int, growth: float | None) -> int | None:
    """Of a KV cache of so many, those that it keeps on any number of devices; None: not known.

    Args:
        tokens: on these, rounded down.
        growth: as `Fitted.kv_growth`.
    """
    return None if growth is None else math.ceil((tokens + 1) * growth) - 1


def device_label(device: Device) -> str:
    """The device's name, which says so if it is one of the catalogue's and the device is not the same."""
    spec = device.spec
    if spec.name in device_names() and spec != load_device(spec.name).spec:
        return f"{spec.name} (changed)"
    return str(spec.name)
