"""Where a run computes, as whoever starts it says: options of `pimserve run` and of a launch, by the same names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pimserve.cluster.base.supervisor import SILENCE_S
from pimserve.cluster.distributed.run_spread import Spelling, Spread, as_option
from pimserve.errors import InputError, shortened, together

LOCAL, PROCESSES, OWN_RAY = "local", "processes", "ray"
DeviceActors = Literal["planned", "lockstep", "none"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run computes; None is what was left open.

    Args:
        on: local, processes, ray (one of our own on this machine), auto, HOST:PORT or ray://HOST:PORT.
        shards: processes or actors that run engines.
        devices: how device actors are driven.
        devices_per_actor: simulated devices in one of them.
        resource: "NAME=N" each, of a Ray cluster's custom ones that a device holds.
        host_timeout_s: for which a host may be silent before it is replaced.
    """

    on: str = LOCAL
    shards: int | None = None
    devices: DeviceActors | None = None
    devices_per_actor: int | None = None
    resource: Sequence[str] = ()
    host_timeout_s: float | None = None

    def spread(self, spelling: Spelling = as_option) -> Spread:
        """How the run is spread over processes.

        Raises:
            InputError: options mean nothing here; all that do are named, by their spelling.
        """
        if wrong := list(self._wrong(spelling)):
            raise together(wrong)
        resources = (text.partition("=") for text in self.resource)
        return Spread(
            shards=self.shards or 1,
            devices=None if self.devices == "none" else self.devices or "planned",
            devices_per_actor=self.devices_per_actor,
            resources=tuple((name, float(amount)) for name, _, amount in resources),
            host_timeout_s=SILENCE_S if self.host_timeout_s is None else self.host_timeout_s,
        )

    def document(self) -> dict[str, Any]:
        """What was said, as JSON can hold it; of this `Place(**document)` is made again."""
        return {name: value for name, value in asdict(self).items() if value not in (None, (), [])}

    def _wrong(self, spelling: Spelling) -> Iterator[InputError]:
        spreading = {"shards": self.shards, "devices": self.devices, "devices_per_actor": self.devices_per_actor}
        if self.on == LOCAL:
            more = {"resource": self.resource or None, "host_timeout_s": self.host_timeout_s}
            for name, value in {**spreading, **more}.items():
                if value is not None:
                    yield InputError(spelling(name), f"goes with {spelling('on')}: a local run is one process")
            return
        if self.devices == "none" and self.devices_per_actor is not None:
            yield InputError(spelling("devices_per_actor"), f"has no effect with {spelling('devices')} none")
        if self.resource and self.on in {PROCESSES, OWN_RAY}:
            where = f"{spelling('on')} auto, HOST:PORT or ray://HOST:PORT"
            yield InputError(spelling("resource"), f"goes with {where}, whose nodes have resources")
            return
        for text in self.resource:
            if not _is_resource(text):
                message = f"must be NAME=N with N above 0, such as duplex=1 (got {shortened(repr(text))})"
                yield InputError(spelling("resource"), message)


def _is_resource(text: str) -> bool:
    name, _, amount = text.partition("=")
    try:
        return bool(name) and 0 < float(amount) < 1e6
    except ValueError:
        return False
