"""Picks of experts that pass over the link between attention's devices and the experts', MoE layer by MoE layer.

Those who dispatch count them when they send, and those who have the experts when they come. Both must agree, and in
each layer every token of the executed steps goes to as many experts as it picks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.base.rpc.statuses import DeviceMismatchError
from pimserve.cluster.base.wire import from_table, to_table
from pimserve.cluster.distributed.devices.expert_work import Pair
from pimserve.errors import InputError
from pimserve.v1.columns_pb2 import Table

Entry = tuple[int, int, int, int, int]  # replica, sending and receiving device, MoE layer, picks
_COLUMNS: dict[str, np.dtype[Any]] = {
    **dict.fromkeys(("replica", "from_device", "to_device", "layer"), np.dtype(np.int32)),
    "picks": np.dtype(np.int64),
}


class LayerPicks:
    """Sums of a replica, by devices and layer."""

    def __init__(self, entries: Iterable[Sequence[int]] = ()) -> None:
        self._sums: dict[Pair, dict[int, int]] = {}
        for sender, receiver, layer, picks in entries:
            self._sums.setdefault((int(sender), int(receiver)), {})[int(layer)] = int(picks)

    def add(self, passed: Mapping[Pair, IntArray]) -> None:
        """Count what passed, (layers,) from device to device."""
        for pair, picks in passed.items():
            sums = self._sums.setdefault(pair, {})
            for layer, count in enumerate(picks.tolist()):
                sums[layer] = sums.get(layer, 0) + count

    def entries(self) -> list[tuple[int, int, int, int]]:
        """(sending device, receiving one, layer, picks) each."""
        return [(*pair, *found) for pair, sums in sorted(self._sums.items()) for found in sorted(sums.items())]


def to_picks_table(entries: Iterable[Entry]) -> Table:
    """Entries as a table."""
    filled = np.array(list(entries), np.int64).reshape(-1, len(_COLUMNS))
    return to_table(
        {name: column.astype(dtype) for (name, dtype), column in zip(_COLUMNS.items(), filled.T, strict=True)}
    )


def from_picks_table(table: Table, where: str) -> list[Entry]:
    """Entries of such a table.

    Raises:
        InputError: it is not one.
    """
    columns = {name: column.astype(np.int64) for name, column in from_table(table, where, _COLUMNS).items()}
    for name, column in columns.items():
        if (column < 0).any():
            raise InputError(f"{where}.{name}", "must be 0 or more")
    return list(zip(*(columns[name].tolist() for name in _COLUMNS), strict=True))


def check_layers(sent: Iterable[Entry], received: Iterable[Entry], layers: int, picks: Mapping[int, int]) -> None:
    """Compare what was dispatched with what came, and with the steps.

    Args:
        sent: of all hosts.
        received: likewise.
        layers: MoE layers.
        picks: of each replica whose experts have devices of their own, picks of its executed steps in a layer.

    Raises:
        DeviceMismatchError: something was lost or came twice, or does not go on its way.
    """
    there, here = ({entry[:4]: entry[4] for entry in entries} for entries in (sent, received))
    passed = dict.fromkeys(((replica, layer) for replica in picks for layer in range(layers)), 0)
    for key in sorted(there.keys() | here.keys()):
        replica, sender, receiver, layer = key
        one, other = there.get(key, 0), here.get(key, 0)
        if one != other:
            raise DeviceMismatchError(
                f"replica {replica}, dispatch over the link between attention and experts, MoE layer {layer}, from "
                f"device {sender} to device {receiver}: {one:,} picks were sent, {other:,} received"
            )
        passed[replica, layer] = passed.get((replica, layer), 0) + one
    for (replica, layer), count in passed.items():
        if count != (wanted := picks.get(replica, 0)):
            raise DeviceMismatchError(
                f"replica {replica}, dispatch over the link between attention and experts, MoE layer {layer}: "
                f"{count:,} picks passed, its steps have {wanted:,}"
            )
