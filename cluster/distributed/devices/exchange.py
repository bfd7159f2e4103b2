"""What passes between hosts, as the receiving one has it: token flows per step or per window, and KV caches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.base.wire import from_table, to_table
from pimserve.cluster.distributed.devices.flows import ACTIVATIONS, ALL_GATHER, ALL_REDUCE, COMBINE, DISPATCH, KV
from pimserve.errors import InputError
from pimserve.v1 import device_pb2 as pb
from pimserve.v1.columns_pb2 import Table

Key = tuple[int, int, int, int, int]  # sending replica and device, receiving replica and device, kind
Flows = list[tuple[int, ...]]  # sender, receiver, kind, count, bytes
Home = Callable[[int, int], str | None]  # the host of a replica's device; None where it is unknown
_TOKEN_KINDS = (DISPATCH, COMBINE, ALL_REDUCE, ALL_GATHER, ACTIVATIONS)
_Columns = dict[str, np.dtype[Any]]
_ENDS = ("from_replica", "from_device", "to_replica", "to_device")
_TRAFFIC: _Columns = {
    **dict.fromkeys(_ENDS, np.dtype(np.int32)),
    "kind": np.dtype(np.int8),
    **dict.fromkeys(("count", "bytes"), np.dtype(np.int64)),
}
_HAND_OVERS: _Columns = {
    **dict.fromkeys(("request", "bytes"), np.dtype(np.int64)),
    **dict.fromkeys(_ENDS, np.dtype(np.int32)),
}


def device_ids(keys: Iterable[tuple[int, int]]) -> list[pb.DeviceId]:
    """Devices (replica, number in the replica) on the wire."""
    return [pb.DeviceId(replica=replica, device=device) for replica, device in keys]


class Sums:
    """Counts and bytes by devices and kind."""

    def __init__(self) -> None:
        self._sums: defaultdict[Key, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, key: Key, count: int, size: int) -> None:
        """Count what passed."""
        total = self._sums[key]
        total[0] += count
        total[1] += size

    def entries(self) -> list[tuple[int, ...]]:
        """(*key, count, bytes) each, by key."""
        return [(*key, *values) for key, values in sorted(self._sums.items())]

    def restore(self, entries: Iterable[Iterable[int]]) -> None:
        """Go on from these entries."""
        self._sums.clear()
        for entry in entries:
            a, b, c, d, kind, count, size = map(int, entry)
            self._sums[a, b, c, d, kind] = [count, size]


def traffic_table(entries: Iterable[tuple[int, ...]]) -> Table:
    """(*key, count, bytes) each, as a table."""
    return _table(np.array(list(entries), np.int64), _TRAFFIC)


def from_traffic_table(table: Table, where: str) -> list[tuple[int, ...]]:
    """(*key, count, bytes) of such a table.

    Raises:
        InputError: it is not one.
    """
    columns = [column.tolist() for column in _checked(table, where, _TRAFFIC).values()]
    return list(zip(*columns, strict=True))


def check_totals(entries: Iterable[tuple[int, ...]], where: str, sender: str, receiver: str, home: Home) -> None:
    """Refuse totals that are not of tokens from devices of host `sender` to devices of host `receiver`.

    Raises:
        InputError: it is so.
    """
    for from_replica, from_device, to_replica, to_device, kind, *_ in entries:
        _of_host(f"{where}.from_device", home, from_replica, from_device, sender)
        _of_host(f"{where}.to_device", home, to_replica, to_device, receiver)
        if kind not in _TOKEN_KINDS or from_replica != to_replica:
            raise InputError(f"{where}.kind", "must be tokens between devices of one replica")


def to_flows(flows: Flows) -> list[pb.Flow]:
    """Flows of a step on the wire."""
    return [
        pb.Flow(from_device=sender, to_device=receiver, kind=kind, count=count, bytes=size)  # type: ignore[arg-type]
        for sender, receiver, kind, count, size in flows
    ]


def check_flows(
    flows: Iterable[pb.Flow], replica: int, sender: str, receiver: str, home: Home
) -> list[tuple[int, ...]]:
    """(sender, receiver, kind, count, bytes) of a step's message from host `sender`.

    Raises:
        InputError: it names devices of other hosts, or numbers below zero.
    """
    checked: Flows = []
    for flow in flows:
        _of_host("flows.from_device", home, replica, flow.from_device, sender)
        _of_host("flows.to_device", home, replica, flow.to_device, receiver)
        if flow.kind not in _TOKEN_KINDS or flow.count < 0 or flow.bytes < 0:
            raise InputError("flows", "must have a kind of token flows, and counts of 0 or more")
        checked.append((flow.from_device, flow.to_device, int(flow.kind), flow.count, flow.bytes))
    return checked


class KvBook:
    """KV caches that left devices of a host, and that came to them; each sender's of a window once."""

    def __init__(self) -> None:
        self.sent = Sums()
        self.received = Sums()
        self._seen: set[tuple[int, str]] = set()

    def knows(self, window: int, sender: str) -> bool:
        """Whether the hand-overs that `sender` orders or makes in a window were counted."""
        return (window, sender) in self._seen

    def take(self, window: int, sender: str, entries: Iterable[IntArray], here: Callable[[int, int], bool]) -> None:
        """Count hand-overs, (request, bytes, sending replica and device, receiving replica and device) each."""
        if (window, sender) in self._seen:
            return
        self._seen.add((window, sender))
        for entry in entries:
            _, size, *ends = entry.tolist()
            from_replica, from_device, to_replica, to_device = ends
            key = (from_replica, from_device, to_replica, to_device, KV)
            if not sender:
                self.sent.add(key, 1, size)
            if here(to_replica, to_device):
                self.received.add(key, 1, size)

    def state(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "sent": self.sent.entries(),
            "received": self.received.entries(),
            "seen": sorted([window, sender] for window, sender in self._seen),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.sent.restore(state["sent"])
        self.received.restore(state["received"])
        self._seen = {(int(window), str(sender)) for window, sender in state["seen"]}


def to_hand_over_table(entries: IntArray) -> Table:
    """(n, 6) hand-overs as a table: request, bytes, sending replica and device, receiving replica and device."""
    return _table(entries, _HAND_OVERS)


def from_hand_over_table(table: Table, where: str, sender: str, receiver: str | None, home: Home) -> IntArray:
    """(n, 6): hand-overs from devices of host `sender`, to those of `receiver` or, with None, of any host.

    Raises:
        InputError: the table is not one of these, or names other or unknown devices.
    """
    entries = np.column_stack(list(_checked(table, where, _HAND_OVERS).values()))
    for *_, from_replica, from_device, to_replica, to_device in np.unique(entries[:, 2:], axis=0).tolist():
        _of_host(f"{where}.from_device", home, from_replica, from_device, sender)
        _of_host(f"{where}.to_device", home, to_replica, to_device, receiver)
    return entries


def _table(entries: IntArray, columns: _Columns) -> Table:
    filled = zip(columns.items(), entries.reshape(-1, len(columns)).T, strict=True)
    return to_table({name: column.astype(dtype) for (name, dtype), column in filled})


def _checked(table: Table, where: str, expected: _Columns) -> dict[str, IntArray]:
    """Columns of whole numbers of 0 or more, in the order that is expected."""
    raw = from_table(table, where, expected)
    columns = {name: raw[name].astype(np.int64) for name in expected}
    for name, column in columns.items():
        if (column < 0).any():
            raise InputError(f"{where}.{name}", "must be 0 or more")
    return columns


def _of_host(where: str, home: Home, replica: int, device: int, host: str | None) -> None:
    actual = home(replica, device)
    if actual is None or (host is not None and actual != host):
        place = "on no known host" if actual is None else f"on host {actual}"
        raise InputError(where, f"device {device} of replica {replica} is {place}")
