"""The memory of a device host, without any network: plans, books, windows, and what came from where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.base.rpc.statuses import WrongStateError
from pimserve.cluster.distributed.devices.book import ReplicaBook
from pimserve.cluster.distributed.devices.compile import DevicePool, compile_pool, parse_scenario
from pimserve.cluster.distributed.devices.exchange import Flows, KvBook, Sums
from pimserve.cluster.distributed.devices.span_rows import Spans
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from pimserve.scheduler.steplog import SpanColumns

SNAPSHOT_VERSION = 1
DeviceKey = tuple[int, int]  # replica, device
_DURATION = SpanColumns._fields.index("duration_fs")


class Step(NamedTuple):
    """A step of the lockstep mode that a host has evaluated.

    `row`: (1, fields of SpanColumns); `slowdown`: thousandths of its normal time that it takes; `repeated`: it was
    executed before; `traffic`: (cells, 2), what passes between devices.
    """

    row: IntArray
    number: int
    slowdown: int
    repeated: bool
    traffic: IntArray

    @property
    def duration_fs(self) -> int:
        """By the devices' own plan."""
        return int(self.row[0, _DURATION])


class HostState:
    """What a host has in hand. Not safe for several threads at a time.

    Args:
        name: of the host.
        pools: what its devices are, by pool.
        books: by replica.
        lockstep: whether every step waits for its devices.
    """

    def __init__(
        self, name: str, pools: dict[str, DevicePool], books: dict[int, ReplicaBook], *, lockstep: bool
    ) -> None:
        self.name = name
        self.pools = pools
        self.books = books
        self.lockstep = lockstep
        self.peers: dict[str, frozenset[DeviceKey]] = {}
        self.closed = -1  # the last window that was closed
        self.kv = KvBook()
        self._open: int | None = None
        self._sequence = 0  # of the next batch
        self._totals: dict[str, tuple[int, Flows]] = {}  # by sending host: window, entries
        self._stepped = Sums()
        self._home = dict.fromkeys(self.devices, name)

    @classmethod
    def compiled(
        cls,
        name: str,
        scenario: str,
        devices: Mapping[str, Sequence[DeviceKey]],
        *,
        lockstep: bool,
        audit_share: float,
    ) -> HostState:
        """A host that takes over devices, by the name of their pool.

        Raises:
            InputError: the scenario or a device is not acceptable.
        """
        prepared = prepare(parse_scenario(scenario))
        pools = {pool: compile_pool(prepared, pool) for pool in devices}
        books: dict[int, ReplicaBook] = {}
        for pool_name, keys in devices.items():
            pool = pools[pool_name].placed
            for replica in sorted({replica for replica, _ in keys}):
                mine = [device for other, device in keys if other == replica]
                if replica not in pool.numbers or replica in books:
                    some = f"from {pool.numbers.start} to {pool.numbers.stop - 1}, in one pool"
                    raise InputError("pools.devices.replica", f"must be {some} (got {replica})")
                if len(set(mine)) != len(mine) or not all(0 <= device < pool.devices_per_replica for device in mine):
                    raise InputError(
                        "pools.devices.device",
                        f"must be different ones of {pool.devices_per_replica} devices (got {mine})",
                    )
                books[replica] = ReplicaBook(pools[pool_name], replica, mine, audit_share)
        if not books:
            raise InputError("pools", "must have a device")
        return cls(name, pools, books, lockstep=lockstep)

    @property
    def devices(self) -> list[DeviceKey]:
        """Devices on this host."""
        return [(replica, device) for replica, book in self.books.items() for device in book.devices]

    def home(self, replica: int, device: int) -> str | None:
        """The host of a device; None where it is unknown."""
        return self._home.get((replica, device))

    def here(self, replica: int, device: int) -> bool:
        """Whether a device is on this host."""
        return self._home.get((replica, device)) == self.name

    def set_peers(self, peers: Mapping[str, Iterable[DeviceKey]]) -> None:
        """Which devices are on which other host.

        Raises:
            InputError: a device is in two places.
        """
        home = dict.fromkeys(self.devices, self.name)
        known: dict[str, frozenset[DeviceKey]] = {}
        for host, keys in peers.items():
            known[host] = frozenset(keys)
            for key in known[host]:
                if home.setdefault(key, host) != host:
                    raise InputError("peers.devices", f"device {key[1]} of replica {key[0]} is on two hosts")
        self.peers, self._home = known, home

    def peers_of(self, replica: int) -> list[str]:
        """Other hosts with devices of a replica."""
        return [host for host, keys in self.peers.items() if any(key[0] == replica for key in keys)]

    def most_tokens(self) -> dict[int, int]:
        """Of each replica here, tokens that its KV cache holds."""
        return {replica: book.pool.placed.kv_capacity_tokens for replica, book in self.books.items()}

    def most_steps(self) -> int:
        """Steps that a span can have."""
        return min((pool.costs.max_span for pool in self.pools.values()), default=1)

    def record(self, window: int, sequence: int, batch: Iterable[Spans]) -> None:
        """Take a batch of executed spans.

        Raises:
            WrongStateError: a batch before it is missing.
            DeviceMismatchError: a time is not what a device's plan says.
        """
        if window <= self.closed or (window == self._open and sequence < self._sequence):
            return  # a repetition
        if self.lockstep:
            raise WrongStateError("steps are recorded in planned mode")
        if self._open is not None and window != self._open:
            raise WrongStateError(f"window {self._open} is not closed, and window {window} begins")
        if sequence != self._sequence:
            raise WrongStateError(f"window {window}: batch {self._sequence} is missing, batch {sequence} came")
        self._open = window
        for spans in batch:
            self.books[spans.replica].take(spans.rows, spans.first_steps, spans.slowdowns)
        self._sequence += 1

    def evaluate(self, replica: int, row: IntArray, number: int, slowdown: int) -> Step:
        """A single step of the lockstep mode; `row` (1, fields of SpanColumns) gets its time.

        Raises:
            WrongStateError: a step before it is missing.
        """
        book = self.books[replica]
        if not self.lockstep:
            raise WrongStateError("steps are executed in lockstep mode")
        if number > book.next_step:
            raise WrongStateError(f"replica {replica}: step {book.next_step} is missing, step {number} came")
        repeated = number < book.next_step
        row[0, _DURATION] = book.evaluate(row, np.array([number]), np.array([slowdown]))[0]
        return Step(row, number, slowdown, repeated, book.step_traffic(row[0], number))

    def outgoing(self, replica: int, step: Step) -> dict[str, Flows]:
        """What devices here send to devices of each other host in a step."""
        flows: dict[str, Flows] = {}
        for sender, receiver, kind, count, size in _flows(self.books[replica], step.traffic):
            if self.here(replica, sender) and (host := self.home(replica, receiver)) not in {None, self.name}:
                assert host is not None
                flows.setdefault(host, []).append((sender, receiver, kind, count, size))
        return flows

    def senders(self, replica: int, step: Step) -> set[str]:
        """Other hosts whose devices send something here in a step."""
        hosts = {
            self.home(replica, sender)
            for sender, receiver, *_ in _flows(self.books[replica], step.traffic)
            if self.here(replica, receiver)
        }
        return {host for host in hosts if host is not None and host != self.name}

    def executed(self, replica: int, step: Step, flows: Iterable[tuple[int, ...]]) -> None:
        """A step is done: `flows` (sender, receiver, kind, count, bytes) came from peers for it."""
        book = self.books[replica]
        if step.number != book.next_step:
            return
        book.take(step.row, np.array([step.number]), np.array([step.slowdown]))
        for source, target, kind, count, size in flows:
            self._stepped.add((replica, source, replica, target, kind), count, size)

    def close(self, window: int, batches: int) -> None:
        """End a window.

        Raises:
            WrongStateError: batches of it are missing, or it is over for long.
            DeviceMismatchError: a time is not what a device's plan says.
        """
        if window == self.closed:
            return
        if window < self.closed or (self._open is not None and window != self._open):
            at = self.closed if self._open is None else self._open
            raise WrongStateError(f"window {window} cannot be closed at window {at}")
        if batches != self._sequence:
            raise WrongStateError(f"window {window} has {batches} batches, of which {self._sequence} came")
        for book in self.books.values():
            book.flush()
        self.closed, self._open, self._sequence = window, None, 0

    def totals_for(self, host: str) -> list[tuple[int, ...]]:
        """(*key, count, bytes) of all tokens that devices here have sent to devices of `host`."""
        return [entry for entry in self._entries() if self.home(entry[2], entry[3]) == host]

    def take_totals(self, host: str, window: int, entries: Flows) -> None:
        """What a peer says to have sent here by the end of a window; an older one changes nothing."""
        if host not in self._totals or self._totals[host][0] <= window:
            self._totals[host] = (window, entries)

    def sent(self) -> list[tuple[int, ...]]:
        """(*key, count, bytes) of all that devices here have sent."""
        return [*self._entries(), *self.kv.sent.entries()]

    def received(self) -> list[tuple[int, ...]]:
        """(*key, count, bytes) of all that devices here have received."""
        received = [entry for entry in self._entries() if self.here(entry[2], entry[3])]
        for _, entries in self._totals.values():
            received += entries
        return [*received, *self._stepped.entries(), *self.kv.received.entries()]

    def _entries(self) -> list[tuple[int, ...]]:
        return [
            (replica, sender, replica, receiver, *amount)
            for replica, book in self.books.items()
            for sender, receiver, *amount in _flows(book, book.traffic)
            if sender in book.devices
        ]

    def snapshot(self) -> bytes:
        """All of it but peers, as JSON with version and checksum."""
        state = json.dumps(
            {
                "plans": self._plans(),
                "lockstep": self.lockstep,
                "books": [book.state() for book in self.books.values()],
                "closed": self.closed,
                "open": self._open,
                "sequence": self._sequence,
                "kv": self.kv.state(),
                "totals": self._totals,
                "stepped": self._stepped.entries(),
            }
        )
        checksum = hashlib.sha256(state.encode()).hexdigest()
        return json.dumps({"version": SNAPSHOT_VERSION, "sha256": checksum, "state": state}).encode()

    def restore(self, snapshot: bytes) -> None:
        """Go on from a snapshot of these devices.

        Raises:
            InputError: it is damaged, or of other devices.
        """
        state = _checked_snapshot(snapshot)
        fresh = {replica: book.fresh() for replica, book in self.books.items()}
        kv, stepped = KvBook(), Sums()
        with _refusing_nonsense():
            same = state["plans"] == self._plans() and state["lockstep"] == self.lockstep
            of = [(book["replica"], tuple(book["devices"])) for book in state["books"]]
            if not same or of != [(replica, book.devices) for replica, book in self.books.items()]:
                raise InputError("state", "is a snapshot of other devices, plans or mode")
            for book in state["books"]:
                fresh[book["replica"]].restore(book)
            kv.restore(state["kv"])
            stepped.restore(state["stepped"])
            totals = {
                host: (int(window), [tuple(map(int, entry)) for entry in entries])
                for host, (window, entries) in state["totals"].items()
            }
            closed, sequence = int(state["closed"]), int(state["sequence"])
            opened = None if state["open"] is None else int(state["open"])
        self.books, self.kv, self._stepped, self._totals = fresh, kv, stepped, totals
        self.closed, self._sequence, self._open = closed, sequence, opened

    def _plans(self) -> dict[str, str]:
        return {name: pool.placed.plan.digest() for name, pool in self.pools.items()}


def _checked_snapshot(snapshot: bytes) -> dict[str, Any]:
    """The state in a snapshot."""
    with _refusing_nonsense():
        document = json.loads(snapshot)
        version, checksum, text = document["version"], document["sha256"], document["state"]
        if version != SNAPSHOT_VERSION:
            raise InputError("state", f"is a snapshot of version {version}; this is version {SNAPSHOT_VERSION}")
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            raise InputError("state", "is damaged: its checksum does not fit")
        return dict(json.loads(text))


@contextmanager
def _refusing_nonsense() -> Iterator[None]:
    """What cannot be read is no snapshot."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        raise InputError("state", "is not a snapshot of a device host") from None


def _flows(book: ReplicaBook, traffic: IntArray) -> Flows:
    """(sender, receiver, kind, count, bytes) of what passes between devices, (cells, 2)."""
    cells = zip(*(column.tolist() for column in book.cells), traffic.tolist(), strict=True)
    return [(sender, receiver, kind, count, size) for sender, receiver, kind, (count, size) in cells if count or size]
