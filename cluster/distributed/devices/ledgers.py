"""Ledgers of single devices: their own times, and their shares of what the replica did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pimserve.cluster.distributed.devices.book import ReplicaBook
from pimserve.cluster.distributed.devices.exchange import KvBook
from pimserve.cluster.distributed.devices.flows import share
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
    routed experts is the device's own where the scenario draws which ones are picked. `experts_fs`: its time for its
    routed experts, with pooled routing that of the slowest device. `kv_blocks`: blocks of which it holds its part,
    those of its data-parallel group, in the last step and the most so far; `kv_blocks_sent`, `kv_blocks_received`:
    those of caches that were handed over.
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
    ledger, plan = book.ledger, book.pool.placed.plan
    devices, tensor = plan.devices, plan.devices // plan.data_parallel
    return [
        DeviceLedger(
            replica=book.replica,
            device=device,
            steps=ledger.steps,
            busy_fs=ledger.busy_fs,
            experts_fs=book.experts_fs[device],
            unit_fs=ledger.unit_fs,
            category_fs=dict(ledger.category_fs),
            energy_pj=_energy_pj(book, device),
            tokens=share(ledger.tokens, device, devices),
            outputs=share(ledger.outputs, device, devices),
            kv_blocks=share(ledger.kv_blocks, device // tensor, plan.data_parallel),
            peak_kv_blocks=share(ledger.peak_kv_blocks, device // tensor, plan.data_parallel),
            kv_blocks_sent=kv.blocks_sent[book.replica, device],
            kv_blocks_received=kv.blocks_received[book.replica, device],
            weight_bytes=round(book.pool.placed.replica.weight_bytes_per_device),
            audited_rows=book.audited_rows,
        )
        for device in book.devices
    ]


def _energy_pj(book: ReplicaBook, device: int) -> dict[tuple[str, str], int]:
    """Of a device, by (category, "dram" or "compute")."""
    devices = book.pool.placed.plan.devices
    routed = dict(
        zip(
            (("moe", "dram"), ("moe", "compute")),
            zip(book.routed_pj, book.experts_pj[device], strict=True),
            strict=True,
        )
    )
    energy: dict[tuple[str, str], int] = {}
    for key, total in book.ledger.energy_pj.items():
        of_all, own = routed.get(key, (0, 0))
        energy[key] = share(total - of_all, device, devices) + own
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
