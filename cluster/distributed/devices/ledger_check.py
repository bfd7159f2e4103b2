"""What devices have done must be what the engine says that they did, to the last unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

from pimserve.cluster.base.rpc.statuses import DeviceMismatchError
from pimserve.cluster.distributed.devices.conservation import Exchanged
from pimserve.cluster.distributed.devices.flows import KV
from pimserve.cluster.distributed.devices.ledgers import DeviceLedger
from pimserve.device_models.mixed_plan import units_of_groups
from pimserve.scheduler.steplog import StepLog

Sum = tuple[str, int, int]  # what, by the devices, by the engine


def check_ledgers(ledgers: Sequence[DeviceLedger], log: StepLog, last_blocks: int, sizes: Sequence[int]) -> None:
    """Compare the devices of a replica with the log of its engine.

    Args:
        ledgers: of all devices of the replica, in their order.
        log: of the replica.
        last_blocks: KV blocks in use during its last step.
        sizes: of its groups of devices, of which the first one has attention.

    Raises:
        DeviceMismatchError: a sum differs, or the figures of one device.
    """
    ends = accumulate(sizes)
    groups = [ledgers[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    for sums, of in ((_of_each(groups, log), "device {}"), (_of_all(groups, log, last_blocks), "all devices")):
        for place, (what, own, engine) in sums:
            if own != engine:
                raise DeviceMismatchError(
                    f"replica {log.costs.replica}, {of.format(place)}: {own:,} {what}, by the engine {engine:,}"
                )


def check_hand_overs(ledgers: Sequence[DeviceLedger], traffic: Exchanged, blocks: int, size: int) -> None:
    """Compare KV caches that left devices, and that came to them, with those that were handed over.

    Args:
        ledgers: of all devices.
        traffic: that they exchanged.
        blocks: KV blocks that went with requests, once for each part of a cache.
        size: bytes of KV caches that the engine handed over, without those that were lost on the way.

    Raises:
        DeviceMismatchError: they differ.
    """
    for name in ("kv_blocks_sent", "kv_blocks_received"):
        own = sum(getattr(ledger, name) for ledger in ledgers)
        if own != blocks:
            raise DeviceMismatchError(f"all devices: {own:,} {name}, by the engine {blocks:,}")
    passed = sum(entry_size for key, (_, entry_size) in traffic.totals().items() if key[4] == KV)
    if passed != size:
        raise DeviceMismatchError(f"all devices: {passed:,} bytes of KV caches, by the engine {size:,}")


def _of_each(groups: Sequence[Sequence[DeviceLedger]], log: StepLog) -> Iterator[tuple[int, Sum]]:
    """What all devices of a replica, or of a group, have the same, as all take part in each step."""
    for ledgers, units in zip(groups, units_of_groups(log.costs.plan), strict=True):
        unit_fs = {unit: busy_fs for unit, busy_fs in log.unit_fs.items() if unit in units}
        for ledger in ledgers:
            times: list[tuple[str, Mapping[str, int], Mapping[str, int]]] = [
                ("fs of {}", ledger.unit_fs, unit_fs),
                ("fs of {} operators", ledger.category_fs, log.category_fs),
            ]
            yield ledger.device, ("steps", ledger.steps, log.steps)
            yield ledger.device, ("fs in steps", ledger.busy_fs, log.busy_fs)
            for name, own, engine in times:
                for key in sorted(own.keys() | engine.keys()):
                    yield ledger.device, (name.format(key), own.get(key, 0), engine.get(key, 0))


def _of_all(groups: Sequence[Sequence[DeviceLedger]], log: StepLog, last_blocks: int) -> Iterator[tuple[int, Sum]]:
    """What the devices of a replica share; of tokens and KV blocks, those that have attention."""
    own_pj: Counter[tuple[str, str]] = Counter()
    engine_pj: Mapping[Any, int] = log.energy_pj
    for ledger in chain(*groups):
        own_pj.update(ledger.energy_pj)
    sums: list[Sum] = [
        (f"pJ of {part} for {category}", own_pj[category, part], engine_pj.get((category, part), 0))
        for category, part in sorted(own_pj.keys() | engine_pj.keys())
    ]
    attention, *others = groups
    sums.append(("tokens", sum(ledger.tokens for ledger in attention), log.computed_tokens))
    sums.append(("sampled outputs", sum(ledger.outputs for ledger in attention), log.tokens))
    tensor = len(attention) // log.costs.plan.data_parallel
    for rank in range(tensor):  # each holds its part of all blocks of its data-parallel group
        some = attention[rank::tensor]
        now, peak = sum(ledger.kv_blocks for ledger in some), sum(ledger.peak_kv_blocks for ledger in some)
        sums.append((f"KV blocks in the last step, rank {rank}", now, last_blocks))
        sums.append((f"KV blocks at the most, rank {rank}", peak, log.peak_blocks))
    sums += [
        (f"{what} on device {ledger.device}, of the experts", getattr(ledger, what), 0)
        for ledger in chain(*others)
        for what in ("tokens", "outputs", "kv_blocks", "peak_kv_blocks")
    ]
    for entry in sums:
        yield 0, entry
