"""The memory of a device host, without any network: plans, books, windows, and what came from where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from pimserve.cluster.base.rpc.statuses import WrongStateError
from pimserve.cluster.distributed.devices.book import ReplicaBook
from pimserve.cluster.distributed.devices.compile import DevicePool, compile_pool, parse_scenario
from pimserve.cluster.distributed.devices.exchange import KvBook
from pimserve.cluster.distributed.devices.replica_experts import Experts, experts_of
from pimserve.cluster.distributed.devices.span_rows import Spans
from pimserve.cluster.distributed.devices.turn import Routes, Turn
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError
from pimserve.scheduler.steplog import SpanColumns

SNAPSHOT_VERSION = 3
DeviceKey = tuple[int, int]  # replica, device
_Setting = tuple[int, int, int]  # replica, slowdown, epoch of the law of routing
_SETTINGS_KEPT = 64
_DURATION = SpanColumns._fields.index("duration_fs")


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
        self._experts: dict[_Setting, Experts | None] = {}
        self._routes: dict[_Setting, Routes] = {}
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
        self._routes = {}

    def shares(self, host: str, replica: int) -> bool:
        """Whether another host has devices of a replica that has devices here."""
        return replica in self.books and any(key[0] == replica for key in self.peers.get(host, ()))

    def most_tokens(self) -> dict[int, int]:
        """Of each replica here, tokens that its KV cache holds."""
        return {replica: book.pool.placed.kv_capacity_tokens for replica, book in self.books.items()}

    def verify_tokens(self) -> int:
        """Tokens of a decoding request that a step computes."""
        return max((pool.placed.plan.verify_tokens for pool in self.pools.values()), default=1)

    def most_steps(self) -> int:
        """Steps that a span can have."""
        return min((pool.costs.max_span for pool in self.pools.values()), default=1)

    def begin_batch(self, window: int, sequence: int, batch: Iterable[Spans]) -> None:
        """A batch of executed spans has come, which may be a repetition.

        Raises:
            WrongStateError: a batch before it is missing.
        """
        if self.lockstep:
            raise WrongStateError("steps are recorded in planned mode")
        if self._knows(window, sequence):
            return
        if self._open is not None and window != self._open:
            raise WrongStateError(f"window {self._open} is not closed, and window {window} begins")
        if sequence != self._sequence:
            raise WrongStateError(f"window {window}: batch {self._sequence} is missing, batch {sequence} came")
        for spans in batch:
            self.books[spans.replica].check(spans)

    def end_batch(self, window: int, sequence: int) -> None:
        """All spans of a batch are taken."""
        if not self._knows(window, sequence):
            self._open = window
            self._sequence = sequence + 1

    def _knows(self, window: int, sequence: int) -> bool:
        return window <= self.closed or (window == self._open and sequence < self._sequence)

    def experts(self, replica: int, slowdown: int, begin_ps: int = 0) -> Experts | None:
        """Routed experts of a replica here, in steps that take so many thousandths of their normal times and begin
        then."""
        book = self.books[replica]
        key = replica, slowdown, book.pool.epoch(begin_ps)
        if key not in self._experts:
            if len(self._experts) >= _SETTINGS_KEPT:
                self._experts, self._routes = {}, {}
            costs = book.costs_at(slowdown, begin_ps)
            self._experts[key] = experts_of(costs, book.pool.traffic.dispatch, book.devices)
        return self._experts[key]

    def turn(self, spans: Spans) -> Turn:
        """The turn of this host in spans of a replica that are alike.

        Raises:
            WrongStateError: spans before them are missing, or it is not known where all devices of the replica are.
        """
        book, slowdown, begin_ps = self.books[spans.replica], int(spans.slowdowns[0]), int(spans.begin_ps[0])
        comes_next, epoch = book.comes_next(spans), book.pool.epoch(begin_ps)
        routes = self._routes.get((spans.replica, slowdown, epoch))
        if routes is None:
            devices = range(book.pool.placed.devices_per_replica)
            home = {device: host for device in devices if (host := self.home(spans.replica, device)) is not None}
            if missing := [device for device in devices if device not in home]:
                raise WrongStateError(
                    f"replica {spans.replica}: device {missing[0]} is on no known host: set the peers"
                )
            experts = self.experts(spans.replica, slowdown, begin_ps)
            routes = Routes(book.pool.traffic, experts, self.name, home)
            self._routes[spans.replica, slowdown, epoch] = routes
        return Turn(routes, spans, partial(book.traffic_of, epoch), book.pool.placed.plan, repeated=not comes_next)

    def executed(self, turn: Turn) -> int:
        """All has come for a turn; spans that were taken before count once. Returns the time of the first of them, fs.

        Raises:
            DeviceMismatchError: a time is not what a device's plan says.
        """
        spans, book = turn.spans, self.books[turn.spans.replica]
        if self.lockstep:  # steps come without their times
            spans.rows[:, _DURATION] = book.duration_fs(spans, turn.work)
        duration = int(spans.rows[0, _DURATION])
        if turn.first_step != book.next_step:
            return duration
        book.take(spans, turn.work)
        book.sent += turn.counted(turn.sent)
        book.received += turn.counted(turn.received)
        book.picks_sent.add(turn.layer_picks(turn.sent))
        book.picks_received.add(turn.layer_picks(turn.received))
        return duration

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

    def sent(self) -> list[tuple[int, ...]]:
        """(*key, count, bytes) of all that devices here have sent."""
        return [*(entry for book in self.books.values() for entry in book.entries(book.sent)), *self.kv.sent.entries()]

    def received(self) -> list[tuple[int, ...]]:
        """(*key, count, bytes) of all that has come to devices here."""
        between = (entry for book in self.books.values() for entry in book.entries(book.received))
        return [*between, *self.kv.received.entries()]

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
        kv = KvBook()
        with _refusing_nonsense():
            same = state["plans"] == self._plans() and state["lockstep"] == self.lockstep
            of = [(book["replica"], tuple(book["devices"])) for book in state["books"]]
            if not same or of != [(replica, book.devices) for replica, book in self.books.items()]:
                raise InputError("state", "is a snapshot of other devices, plans or mode")
            for book in state["books"]:
                fresh[book["replica"]].restore(book)
            kv.restore(state["kv"])
            closed, sequence = int(state["closed"]), int(state["sequence"])
            opened = None if state["open"] is None else int(state["open"])
        self.books, self.kv = fresh, kv
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
