"""What passes between hosts, on the wire and in the books: exchanges of spans, and KV caches."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.base.wire import from_table, to_table
from pimserve.cluster.distributed.devices.expert_work import RESULT, SENT, Matrix
from pimserve.cluster.distributed.devices.flows import KV
from pimserve.cluster.distributed.devices.replica_experts import Experts
from pimserve.cluster.distributed.devices.turn import COMBINED, DISPATCHED, SPAN_STEPS, Exchange
from pimserve.errors import InputError
from pimserve.v1 import device_pb2 as pb
from pimserve.v1.columns_pb2 import Table

Key = tuple[int, int, int, int, int]  # sending replica and device, receiving replica and device, kind
Home = Callable[[int, int], str | None]  # the host of a replica's device; None where it is unknown
_Columns = dict[str, np.dtype[Any]]
_FLOW = ("from_device", "to_device", "kind", "count", "bytes")
_ENDS = ("from_replica", "from_device", "to_replica", "to_device")
_TRAFFIC: _Columns = {
    **dict.fromkeys(_ENDS, np.dtype(np.int32)),
    "kind": np.dtype(np.int8),
    **dict.fromkeys(("count", "bytes"), np.dtype(np.int64)),
}
_HAND_OVERS: _Columns = {
    **dict.fromkeys(("request", "bytes", "blocks"), np.dtype(np.int64)),
    **dict.fromkeys(_ENDS, np.dtype(np.int32)),
    "lost": np.dtype(np.int8),
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


def to_message(exchange: Exchange) -> pb.ExchangeTokensRequest:
    """What passes from host to host in some spans, on the wire."""
    return pb.ExchangeTokensRequest(
        host=exchange.host,
        replica=exchange.replica,
        step=exchange.first_step,
        phase=exchange.phase,  # type: ignore[arg-type]
        span_steps=exchange.span_steps.tobytes(),
        flows=[
            pb.Flow(from_device=sender, to_device=receiver, kind=kind, count=count, bytes=size)
            for sender, receiver, kind, count, size in exchange.flows.tolist()
        ],
        matrices=[
            pb.ExpertMatrix(from_device=sender, to_device=receiver, data=matrix.tobytes())
            for (sender, receiver), matrix in exchange.matrices.items()
        ],
    )


def from_message(message: pb.ExchangeTokensRequest, to: str, experts: Experts | None) -> Exchange:
    """What such a message says; whether that is right is for the receiver's turn to say.

    Args:
        message: from a peer.
        to: the host to which it came.
        experts: of the replica.

    Raises:
        InputError: it cannot be read.
    """
    if message.phase not in {DISPATCHED, COMBINED}:
        raise InputError("phase", "must be dispatch or combine")
    if message.step < 0:
        raise InputError("step", f"must be 0 or more (got {message.step})")
    if len(message.span_steps) % SPAN_STEPS.itemsize:
        raise InputError("span_steps", f"must be whole numbers of {SPAN_STEPS.itemsize} bytes")
    steps = np.frombuffer(message.span_steps, SPAN_STEPS)
    dispatched = message.phase == DISPATCHED
    dtype, rows = SENT if dispatched else RESULT, len(steps)
    if experts is not None and not dispatched:
        rows = experts.result_rows(steps)

    def width(sender: int, receiver: int) -> int:
        if experts is None:
            return 0
        return experts.sent_width(receiver) if dispatched else experts.result_width(sender)

    numbers: defaultdict[tuple[int, int], list[bytes]] = defaultdict(list)  # of the same devices only one should come
    for given in message.matrices:
        numbers[given.from_device, given.to_device].append(given.data)
    return Exchange(
        message.host,
        to,
        message.replica,
        message.phase,
        message.step,
        steps,
        np.array([[getattr(flow, name) for name in _FLOW] for flow in message.flows], np.int64).reshape(-1, len(_FLOW)),
        {pair: _matrix(data, dtype, rows, width(*pair)) for pair, data in numbers.items()},
    )


def _matrix(given: Sequence[bytes], dtype: np.dtype[Any], rows: int, width: int) -> Matrix:
    """(rows, width); where there are several, or of another size, the bytes, which are not what anybody expects."""
    if len(given) > 1 or len(given[0]) != rows * width * dtype.itemsize:
        return np.frombuffer(b"".join(given), np.uint8)
    return np.frombuffer(given[0], dtype).reshape(rows, width)


class KvBook:
    """KV caches that left devices of a host, and that came to them; each sender's of a window once.

    One that was lost on its way is taken out again at both ends.

    `blocks_sent`, `blocks_received`: by replica and device, blocks of which a part was sent, and came.
    """

    def __init__(self) -> None:
        self.sent = Sums()
        self.received = Sums()
        self.blocks_sent: Counter[tuple[int, int]] = Counter()
        self.blocks_received: Counter[tuple[int, int]] = Counter()
        self._seen: set[tuple[int, str]] = set()

    def knows(self, window: int, sender: str) -> bool:
        """Whether the hand-overs that `sender` orders or makes in a window were counted."""
        return (window, sender) in self._seen

    def take(self, window: int, sender: str, entries: Iterable[IntArray], here: Callable[[int, int], bool]) -> None:
        """Count hand-overs, with the columns of `to_hand_over_table`."""
        if (window, sender) in self._seen:
            return
        self._seen.add((window, sender))
        for entry in entries:
            _, size, blocks, from_replica, from_device, to_replica, to_device, lost = entry.tolist()
            key = (from_replica, from_device, to_replica, to_device, KV)
            sign = -1 if lost else 1
            if not sender:
                self.sent.add(key, sign, sign * size)
                self.blocks_sent[from_replica, from_device] += sign * blocks
            if here(to_replica, to_device):
                self.received.add(key, sign, sign * size)
                self.blocks_received[to_replica, to_device] += sign * blocks

    def state(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "sent": self.sent.entries(),
            "received": self.received.entries(),
            "blocks_sent": sorted(self.blocks_sent.items()),
            "blocks_received": sorted(self.blocks_received.items()),
            "seen": sorted([window, sender] for window, sender in self._seen),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.sent.restore(state["sent"])
        self.received.restore(state["received"])
        for name in ("blocks_sent", "blocks_received"):
            setattr(self, name, Counter({(int(a), int(b)): int(blocks) for (a, b), blocks in state[name]}))
        self._seen = {(int(window), str(sender)) for window, sender in state["seen"]}


def to_hand_over_table(entries: IntArray) -> Table:
    """(n, 8) as a table: request, bytes, KV blocks, sending replica and device, receiving ones, whether it was lost."""
    return _table(entries, _HAND_OVERS)


def from_hand_over_table(table: Table, where: str, sender: str, receiver: str | None, home: Home) -> IntArray:
    """(n, 8): hand-overs from devices of host `sender`, to those of `receiver` or, with None, of any host.

    Raises:
        InputError: the table is not one of these, or names other or unknown devices.
    """
    entries = np.column_stack(list(_checked(table, where, _HAND_OVERS).values()))
    for from_replica, from_device, to_replica, to_device in np.unique(entries[:, 3:7], axis=0).tolist():
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
