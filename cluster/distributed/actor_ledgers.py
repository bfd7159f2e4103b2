"""What the devices of a run say that they have done: per replica in the engine's place, and one by one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pimserve.cluster.distributed.devices.conservation import Exchanged
from pimserve.cluster.distributed.devices.ledgers import DeviceLedger
from pimserve.cluster.scenario.device_groups import DeviceGroup
from pimserve.device_models.plan import FS_PER_S, PJ_PER_J
from pimserve.scheduler.control import Ledger
from pimserve.v1.device_pb2 import FlowKind

_KIND = "FLOW_KIND_"


@dataclass(frozen=True, slots=True)
class Passed:
    """What passed between a device and all others: `count` of tokens, outputs or KV caches, and bytes."""

    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0

    def __add__(self, other: Passed) -> Passed:
        return Passed(
            self.sent + other.sent,
            self.sent_bytes + other.sent_bytes,
            self.received + other.received,
            self.received_bytes + other.received_bytes,
        )


@dataclass(frozen=True, slots=True)
class DeviceActorState:
    """One device: what it has done, where it lives, and what it exchanged.

    Args:
        ledger: of the device.
        host: the process or actor that it is in.
        host_restarts: how often that was replaced.
        traffic: by kind of flow, such as dispatch.
        group: of the devices of its replica to which it belongs.
    """

    ledger: DeviceLedger
    host: str
    host_restarts: int
    traffic: Mapping[str, Passed]
    group: DeviceGroup


def with_actors(ledgers: Sequence[Ledger], devices: Sequence[DeviceLedger]) -> list[Ledger]:
    """Ledgers of replicas in which steps, tokens, times and energy are what their devices say.

    Args:
        ledgers: as the engine has them, which also say what devices do not know: times between tokens, the busiest
            device, passive energy.
        devices: of all of these replicas, as of the same steps.
    """
    by_replica: defaultdict[int, list[DeviceLedger]] = defaultdict(list)
    for device in devices:
        by_replica[device.replica].append(device)
    return [_with_actors(ledger, by_replica[ledger.replica]) for ledger in ledgers]


def _with_actors(ledger: Ledger, devices: Sequence[DeviceLedger]) -> Ledger:
    energy_pj: Counter[tuple[str, str]] = Counter()
    for device in devices:
        energy_pj.update(device.energy_pj)
    return replace(
        ledger,
        steps=max(device.steps for device in devices),
        computed_tokens=sum(device.tokens for device in devices),
        output_tokens=sum(device.outputs for device in devices),
        busy_s=_mean_s(ledger.busy_s, [device.unit_fs for device in devices]),
        operator_s=_mean_s(ledger.operator_s, [device.category_fs for device in devices]),
        joules={key: energy / PJ_PER_J for key, energy in energy_pj.items()},
    )


def _mean_s(names: Iterable[str], times_fs: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """The mean over the devices that have each of these, in their order; to the last bit that of one where all say the
    same."""
    total = Counter(dict.fromkeys(names, 0))
    having: Counter[str] = Counter()
    for times in times_fs:
        total.update(times)
        having.update(times.keys())
    return {name: time / (max(1, having[name]) * FS_PER_S) for name, time in total.items()}


def passed_by_device(exchanged: Exchanged) -> dict[tuple[int, int], dict[str, Passed]]:
    """By device (replica, number in the replica) and kind, what it sent and received."""
    passed: defaultdict[tuple[int, int], defaultdict[str, Passed]] = defaultdict(lambda: defaultdict(Passed))
    for from_replica, from_device, _, _, kind, count, size in exchanged.sent:
        passed[from_replica, from_device][_name(kind)] += Passed(sent=count, sent_bytes=size)
    for _, _, to_replica, to_device, kind, count, size in exchanged.received:
        passed[to_replica, to_device][_name(kind)] += Passed(received=count, received_bytes=size)
    return {device: dict(kinds) for device, kinds in passed.items()}


def _name(kind: int) -> str:
    return FlowKind.Name(kind).removeprefix(_KIND).lower()  # type: ignore[arg-type]
