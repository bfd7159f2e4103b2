"""How a run is spread over processes: shards of its engines, and actors of its devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pimserve.cluster.base.supervisor import SILENCE_S
from pimserve.errors import InputError
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.exact_routing import check_shards

DeviceMode = Literal["planned", "lockstep"]
Spelling = Callable[[str], str]  # how whoever gives an option writes its name


def as_option(name: str) -> str:
    """An option's name on the command line, where units are not part of it."""
    return f"--{name.removesuffix('_s').replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class Spread:
    """How a run is spread over processes.

    Args:
        shards: processes that run engines; 0: they run in this one.
        devices: how device actors are driven; None: there are none.
        devices_per_actor: simulated devices in one process, of one pool; None: one in lockstep, else all of a replica.
        audit_share: share of the executed spans that planned devices evaluate again step by step.
        resources: of a Ray cluster that a device actor holds, such as {"duplex": 1}.
        host_timeout_s: a host that is silent for so long is replaced.
    """

    shards: int = 1
    devices: DeviceMode | None = None
    devices_per_actor: int | None = None
    audit_share: float = 1 / 64
    resources: tuple[tuple[str, float], ...] = ()
    host_timeout_s: float = SILENCE_S

    def actor_size(self, devices_per_replica: int) -> int:
        """Devices of an actor, where a replica has so many."""
        return self.devices_per_actor or (1 if self.devices == "lockstep" else devices_per_replica)

    def checked(self, replicas: int, scheduler: SchedulerSpec, spelling: Spelling = as_option) -> Spread:
        """The same, if a run of that many replicas, with these settings, can be spread so.

        Raises:
            InputError: it cannot.
        """
        if self.shards > replicas:
            message = f"{self.shards} shards for {replicas} replicas; a shard needs one at least"
            raise InputError(spelling("shards"), message)
        if self.devices == "lockstep" and self.shards > 1:
            raise InputError(spelling("shards"), "in lockstep each step waits for its devices: use 1 shard")
        check_shards(scheduler, self.shards)
        return self


def dealt_out(replicas: int, spread: Spread) -> list[range]:
    """Replicas of each shard."""
    count = max(1, spread.shards)
    return [range(index, replicas, count) for index in range(count)]
