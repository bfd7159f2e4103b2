"""Where a launched run computes: as the wire says it, as the server allows it, and as files keep it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from pimserve.cluster.distributed.deployment import host_specs
from pimserve.cluster.distributed.hosts.ray_cluster import host_and_port
from pimserve.cluster.distributed.place import LOCAL, OWN_RAY, PROCESSES, DeviceActors, Place
from pimserve.cluster.scenario.prepared import Prepared
from pimserve.cluster.service.run_registry import Record
from pimserve.errors import InputError, shortened, together
from pimserve.v1 import simulation_pb2 as pb

_DEVICES: dict[DeviceActors, pb.DeviceActors.ValueType] = {
    name: pb.DeviceActors.Value(f"DEVICE_ACTORS_{name.upper()}") for name in get_args(DeviceActors)
}
MOST_HOSTS = 64


@dataclass(frozen=True, slots=True)
class AllowedPlaces:
    """Where a server lets runs compute.

    Args:
        on: values of `on` that it takes.
        most_hosts: processes or actors that a run may have beside its own process.
    """

    on: Sequence[str]
    most_hosts: int = MOST_HOSTS

    def check(self) -> None:
        """Refuse what can be no place.

        Raises:
            InputError: so it is.
        """
        for place in self.on:
            if place not in {LOCAL, PROCESSES, OWN_RAY, "auto"}:
                try:
                    host_and_port(place)
                except InputError:
                    message = f"must be local, processes, ray, auto, HOST:PORT or ray://HOST:PORT (got {place!r})"
                    raise InputError("--allow-on", message) from None

    def place_of(self, options: pb.LaunchOptions) -> Place:
        """Where a run is to compute.

        Raises:
            InputError: that is not allowed, or means nothing; fields are named `options.shards` and so on.
        """
        place = _place_of(options)
        wrong = []
        if place.on not in self.on:
            message = f"must be one of {', '.join(self.on)}: this server allows no others"
            wrong.append(InputError("options.on", f"{message} (got {shortened(repr(place.on))})"))
        try:
            place.spread(_field)
        except InputError as error:
            wrong.append(error)
        if wrong:
            raise together(wrong)
        return place

    def check_spread(self, place: Place, prepared: Prepared) -> None:
        """Refuse a run that cannot be spread so.

        Raises:
            InputError: so it is; fields are named likewise.
        """
        if place.on == LOCAL:
            return
        spread = place.spread().checked(prepared.replicas, prepared.scenario.scheduler, _field)
        hosts = len(host_specs(prepared, spread, ""))
        if hosts > self.most_hosts:
            message = f"the run would have {hosts:,} processes or actors; this server allows {self.most_hosts:,}"
            raise InputError("options.devices_per_actor", f"{message}: put more devices into each")


USUAL_PLACES = AllowedPlaces((LOCAL, PROCESSES))


def options_of(record: Record) -> pb.LaunchOptions:
    """How a run was launched."""
    place = Place(**json.loads(record.place))
    options = pb.LaunchOptions(speed=record.speed, paused=record.start_paused, on=place.on)
    if place.on != LOCAL:
        options.shards = place.shards or 1
        options.devices = _DEVICES[place.devices or "planned"]
        options.resource.extend(place.resource)
        if place.devices_per_actor is not None:
            options.devices_per_actor = place.devices_per_actor
        if place.host_timeout_s is not None:
            options.host_timeout_s = place.host_timeout_s
    return options


def _place_of(options: pb.LaunchOptions) -> Place:
    devices = next((name for name, number in _DEVICES.items() if number == options.devices), None)
    return Place(
        on=options.on or LOCAL,
        shards=options.shards if options.HasField("shards") else None,
        devices=devices,
        devices_per_actor=options.devices_per_actor if options.HasField("devices_per_actor") else None,
        resource=tuple(options.resource),
        host_timeout_s=options.host_timeout_s if options.HasField("host_timeout_s") else None,
    )


def _field(name: str) -> str:
    return f"options.{name}"
