"""A replica: which devices hold one copy of the model, what a step costs on them, and how much KV cache is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pimserve.cluster.scenario.interconnect import Interconnect, beyond_measured
from pimserve.device_models.device import Demand, Device, PointToPoint, Precision, Roof
from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.device_models.operators import Traffic
from pimserve.device_models.plan import CostPlan
from pimserve.errors import InputError


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of the model: its cost plan, its KV cache's size in tokens, how devices share it, what they hold it in,
    what they say, the setting of their costs, what passes between them, the roofs of one, and how layers share the KV
    cache (as `Fitted` has them)."""

    plan: CostPlan
    kv_capacity_tokens: int
    weight_bytes_per_device: float
    reserved_bytes_per_device: float
    parallelism: Mapping[str, Any]
    precision: Precision
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    costs: Mapping[str, Any] = field(default_factory=dict)
    traffic: tuple[Traffic, ...] = ()
    point_to_point: Callable[[], PointToPoint] | None = field(default=None, compare=False)
    roofs: tuple[Roof, ...] = ()
    kv_groups: KvGroups = NO_WINDOWS


def place(device: Device, interconnect: Interconnect, demand: Demand) -> Replica:
    """Put one copy of a model on devices of one kind, with links between them.

    Raises:
        InputError: the model does not divide over the devices, or does not fit them.
    """
    fitted = device.fit(demand)
    if demand.backend is not None and fitted.costs.get("setting") != "measured":
        raise InputError(
            "costs.setting", f"devices of this kind ({device.spec.name}) have no measured costs; use ideal"
        )
    links = interconnect.compile(fitted.collectives, demand.split, fitted.collective_kernels)
    warnings = fitted.warnings
    if demand.backend is not None and demand.split.nodes > 1:
        warnings = (*warnings, "links between nodes are ideal")
    if fitted.collective_kernels is not None:
        warnings += beyond_measured(fitted.collectives, demand.split, fitted.collective_kernels)
    passive = fitted.plan.passive if demand.passive_power else None
    plan = replace(fitted.plan, rows=fitted.plan.rows + links, passive=passive)
    return Replica(
        plan,
        fitted.kv_capacity_tokens,
        fitted.weight_bytes_per_device,
        fitted.reserved_bytes_per_device,
        asdict(demand.split) if fitted.parallelism is None else fitted.parallelism,
        fitted.precision or Precision.of(demand.model),
        fitted.facts,
        warnings,
        fitted.costs,
        interconnect.traffic(fitted.collectives, demand.split, fitted.collective_kernels) + fitted.traffic,
        fitted.point_to_point,
        fitted.roofs,
        fitted.kv_groups,
    )
