"""Options that say where a run computes; of `pimserve run` and `pimserve launch`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pimserve.cluster.base.supervisor import SILENCE_S

if TYPE_CHECKING:
    from pimserve.cluster.distributed.place import Place


class DeviceChoice(StrEnum):
    """How device actors are driven."""

    planned = "planned"
    lockstep = "lockstep"
    none = "none"


@dataclass(frozen=True)
class DeploymentOptions:
    """Where a run computes."""

    on: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="local: one process; ray: a Ray of our own on this machine; auto, HOST:PORT or ray://HOST:PORT: "
            "a Ray that runs; processes: plain processes.",
        ),
    ] = "local"
    shards: Annotated[
        int | None, typer.Option(min=1, max=4096, help="With --on: actors that run engines.", show_default="1")
    ] = None
    devices: Annotated[
        DeviceChoice | None,
        typer.Option(
            help="With --on: device actors. planned: they check the engine's steps in batches; lockstep: every step "
            "waits for them; none: there are none.",
            show_default="planned",
        ),
    ] = None
    devices_per_actor: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --on: simulated devices of an actor.", show_default="those of a replica, in lockstep 1"
        ),
    ] = None
    resource: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="With Ray: custom resource that a device holds; repeatable."),
    ] = None
    host_timeout: Annotated[
        float | None,
        typer.Option(
            min=2,
            max=3600,
            metavar="SECONDS",
            help="With --on: replace a host that is stopped or cut off for so long.",
            show_default=f"{SILENCE_S:g}",
        ),
    ] = None

    def place(self) -> Place:
        """Where that is."""
        from pimserve.cluster.distributed.place import Place  # noqa: PLC0415

        return Place(
            on=self.on,
            shards=self.shards,
            devices=None if self.devices is None else self.devices.value,
            devices_per_actor=self.devices_per_actor,
            resource=tuple(self.resource or ()),
            host_timeout_s=self.host_timeout,
        )
