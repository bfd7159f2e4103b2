"""Ledgers of single devices: their own times, and their shares of what the replica did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pimserve.cluster.distributed.devices.book import ReplicaBook
from pimserve.cluster.distributed.devices.exchange import KvBook
from pimserve.cluster.distributed.devices.flows import share
from pimserve.device_models.mixed_plan import units_of_groups
from pimserve.device_models.operators import EXPERT_REBALANCING
from pimserve.v1 import device_pb2 as pb

_LOW = 2**64 - 1
_COUNTS = (
    "steps",
    "kv_blocks",
    "peak_kv_blocks",
    "kv_blocks_sent",
    "kv_blocks_received",
    "weight_bytes",
    "audited_rows",
)
_SUMS = ("busy_fs", "experts_fs", "tokens", "outputs")  # beyond 64 bits
_TIMES = ("unit_fs", "category_fs")


@dataclass(frozen=True, slots=True)
class DeviceLedger:
    """What a device has done.

    All devices of a replica take part in all of its steps, and are busy for the same time; tokens, outputs and energy
    are the device's share of the replica's: whole numbers that differ by one at most, and add up to it; but energy of
    routed experts is the device's own where the scenario draws which ones are picked. That of bringing experts to their
    places is shared by all devices that have some. Where attention and experts have groups of devices of their own,
    units and energy are those of the device's group, hot and cold experts' apart, and tokens, outputs and KV blocks are
    attention's alone. `experts_fs`: its time for its routed experts, with pooled routing that of the slowest device of
    its kind. `kv_blocks`: blocks of which it holds its part, those of its data-parallel group, in the last step and the
    most so far; `kv_blocks_sent`, `kv_blocks_received`: those of caches that were handed over.
    """

    replica: int
    device: int
    steps: int
    busy_fs: int
    experts_fs: int
    unit_fs: Mapping[str, int]
    category_fs: Mapping[str, int]
    energy_pj: Mapping[tuple[str, str], int]  # of (category, "dram" or "compute")
    tokens: int
    outputs: int
    kv_blocks: int
    peak_kv_blocks: int
    kv_blocks_sent: int
    kv_blocks_received: int
    weight_bytes: int
    audited_rows: int


def ledgers_of(book: ReplicaBook, kv: KvBook) -> list[DeviceLedger]:
    """Ledgers of a replica's devices on this host, whose KV caches were handed over as `kv` says."""
    book.flush()
    return [_ledger(book, kv, device) for device in book.devices]


def _ledger(book: ReplicaBook, kv: KvBook, device: int) -> DeviceLedger:
    ledger, placed = book.ledger, book.pool.placed
    group, place = placed.member_of(device)
    units, member = units_of_groups(placed.plan)[group], placed.members[group]
    devices, data = member.devices_per_replica, member.plan.data_parallel
    attends = group == 0

    def shared(total: int, part: int, parts: int) -> int:
        return share(total, part, parts) if attends else 0

    return DeviceLedger(
        replica=book.replica,
        device=device,
        steps=ledger.steps,
        busy_fs=ledger.busy_fs,
        experts_fs=book.experts_fs[device],
        unit_fs={unit: busy_fs for unit, busy_fs in ledger.unit_fs.items() if unit in units},
        category_fs=dict(ledger.category_fs),
        energy_pj=_energy_pj(book, device),
        tokens=shared(ledger.tokens, place, devices),
        outputs=shared(ledger.outputs, place, devices),
        kv_blocks=shared(ledger.kv_blocks, place * data // devices, data),
        peak_kv_blocks=shared(ledger.peak_kv_blocks, place * data // devices, data),
        kv_blocks_sent=kv.blocks_sent[book.replica, device],
        kv_blocks_received=kv.blocks_received[book.replica, device],
        weight_bytes=round(member.replica.weight_bytes_per_device),
        audited_rows=book.audited_rows,
    )


def _energy_pj(book: ReplicaBook, device: int) -> dict[tuple[str, str], int]:
    """Of a device, by (category, "dram" or "compute")."""
    placed = book.pool.placed
    group, place = placed.member_of(device)
    devices, last = placed.members[group].devices_per_replica, len(placed.members) - 1
    own = dict(zip((("moe", "dram"), ("moe", "compute")), book.experts_pj[device], strict=True))
    routed = dict(zip(own, book.routed_pj, strict=True))
    energy: dict[tuple[str, str], int] = {}
    for key, total in book.ledger.energy_pj.items():
        of_experts = total if last and key[0] == EXPERT_REBALANCING else book.group_pj[key]
        # Hot experts' devices have their own and nothing else; the last group has what else is on the experts' devices.
        shared = total - of_experts if group == 0 else 0
        shared += of_experts - routed.get(key, 0) if group == last else 0
        energy[key] = share(shared, place, devices) + own.get(key, 0)
    return energy


def ledger_message(ledger: DeviceLedger) -> pb.DeviceLedger:
    """A ledger on the wire."""
    energy = ledger.energy_pj
    values: dict[str, Any] = {name: getattr(ledger, name) for name in _COUNTS}
    values |= {name: _whole(getattr(ledger, name)) for name in _SUMS}
    values |= {name: {key: _whole(time) for key, time in getattr(ledger, name).items()} for name in _TIMES}
    return pb.DeviceLedger(
        id=pb.DeviceId(replica=ledger.replica, device=ledger.device),
        energy=[
            pb.CategoryEnergy(
                category=name, dram_pj=_whole(energy[name, "dram"]), compute_pj=_whole(energy[name, "compute"])
            )
            for name in dict.fromkeys(name for name, _ in energy)
        ],
        **values,
    )


def from_ledger_message(message: pb.DeviceLedger) -> DeviceLedger:
    """The ledger of such a message."""
    values: dict[str, Any] = {name: getattr(message, name) for name in _COUNTS}
    values |= {name: _number(getattr(message, name)) for name in _SUMS}
    values |= {name: {key: _number(time) for key, time in getattr(message, name).items()} for name in _TIMES}
    energy = {(entry.category, "dram"): _number(entry.dram_pj) for entry in message.energy}
    energy |= {(entry.category, "compute"): _number(entry.compute_pj) for entry in message.energy}
    return DeviceLedger(replica=message.id.replica, device=message.id.device, energy_pj=energy, **values)


def _whole(value: int) -> pb.Whole:
    return pb.Whole(high=value >> 64, low=value & _LOW)


def _number(whole: pb.Whole) -> int:
    return (whole.high << 64) + whole.low
