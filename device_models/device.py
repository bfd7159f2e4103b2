"""What the rest of pimserve knows of a device, whatever its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from pimserve.device_models.operators import Operator, Parallelism
from pimserve.device_models.plan import CostPlan
from pimserve.quantity import GigabytesPerSecond, Microseconds


class DeviceSpec(BaseModel):
    """What every description of a device says; a kind adds `kind`, a literal of its name, and its own figures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "custom"
    title: str = ""
    link_gb_per_s: GigabytesPerSecond = Field(description="device-to-device bandwidth inside a node, one way")
    link_latency_us: Microseconds = Field(description="one ring hop inside a node")
    sources: tuple[str, ...] = ()


class Device(Protocol):
    """One device: compiles what it is to compute into cost terms.

    Its class is registered by its kind, has its description's schema as `Spec` (a `DeviceSpec`), and is made from that.
    """

    memory_bytes: float

    @property
    def spec(self) -> DeviceSpec:
        """The device's description."""

    @property
    def units(self) -> tuple[str, ...]:
        """Names of its processing units."""

    def compile(self, operators: Sequence[Operator], split: Parallelism) -> CostPlan:
        """Cost plan of all operators but collectives, which belong to the links."""
