"""How a host that died comes back: another takes its place, goes on from the last snapshot and is told what came after.

Shards and devices are hosts of one kind in this: they do nothing but what they are told, so the replacement does the
same again, and what it answers a second time is known by its number. Now and then, at the end of a window, all of them
are asked for snapshots: these are the one state from which any of them is restored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from pimserve.cluster.base.rpc.statuses import HostUnavailableError
from pimserve.cluster.distributed.hosts.hosting import Endpoint

_SAVE_S = 5.0  # of messages are kept at most, or
_SAVE_BYTES = 2**26  # as the end of the next window finds them
Snapshot = TypeVar("Snapshot")
Message = TypeVar("Message")
Result = TypeVar("Result")


class Hosts(Protocol):
    """Where hosts are, and how to get another in the place of one; a `HostSupervisor`."""

    def endpoint(self, name: str) -> Endpoint:
        """Where it is now."""

    def replace(self, name: str, generation: int) -> Endpoint:
        """Another one in its place, unless that has been done since `generation`."""

    def caught_up(self, name: str) -> None:
        """It is where the one was that it replaces."""


class ReplayLog(Generic[Snapshot, Message]):
    """The last snapshots of hosts, all of one moment, and the messages since: what their replacements need.

    Attributes:
        snapshots: by host; a host that has none begins afresh.
        messages: since then, in order.
        first: number of the first of them.
        size_bytes: of them.
    """

    def __init__(self) -> None:
        self.snapshots: dict[str, Snapshot] = {}
        self.messages: list[Message] = []
        self.first = 0
        self.size_bytes = 0

    @property
    def next(self) -> int:
        """Number of the next message."""
        return self.first + len(self.messages)

    def append(self, message: Message, size_bytes: int) -> None:
        """Keep what hosts are told."""
        self.messages.append(message)
        self.size_bytes += size_bytes

    def save(self, snapshots: Mapping[str, Snapshot]) -> None:
        """Keep snapshots, in which is what all messages so far have done: these are not needed any more."""
        self.snapshots = dict(snapshots)
        self.first = self.next
        self.messages = []
        self.size_bytes = 0


class Part(Protocol):
    """Engines or devices of a run, on some hosts.

    Attributes:
        log: what these hosts were told.
    """

    log: ReplayLog[Any, Any]

    def replace(self, host: str, address: str) -> None:
        """A host has another process, which is there; bring it to where the old one was."""

    def save(self) -> None:
        """Have the log keep snapshots of all its hosts."""


class Recovery:
    """Makes calls to the hosts of a run, puts others in the place of those that cannot be reached, and keeps the state
    of a window's end for that.

    Args:
        hosts: where they are, and how to get others.

    Attributes:
        under_way: orders that were begun and have not ended; without any, a window is at its end.
    """

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.under_way = 0
        self._parts: dict[str, Part] = {}
        self._saved_s = time.monotonic()

    def join(self, part: Part, hosts: Iterable[str]) -> None:
        """What is on these hosts."""
        self._parts.update(dict.fromkeys(hosts, part))

    def begin(self) -> None:
        """An order is begun."""
        self.under_way += 1

    def end(self) -> None:
        """An order has ended; with the last one, hosts may be asked for snapshots."""
        self.under_way -= 1
        parts = {id(part): part for part in self._parts.values()}.values()
        size_bytes = sum(part.log.size_bytes for part in parts)
        if not self.under_way and (size_bytes > _SAVE_BYTES or time.monotonic() - self._saved_s > _SAVE_S):
            for part in parts:
                self.call(part.save)
            self._saved_s = time.monotonic()

    def call(self, call: Callable[[], Result]) -> Result:
        """What a call returns, with other hosts if need be."""
        while True:
            try:
                return call()
            except HostUnavailableError as error:
                self._replace(error.hosts)

    def _replace(self, names: Sequence[str]) -> None:
        """Make other hosts in the place of those, and of any that are missed while they catch up."""
        missing = list(names)
        while missing:
            name = missing.pop()
            endpoint = self.hosts.replace(name, self.hosts.endpoint(name).generation)
            try:
                self._parts[name].replace(name, endpoint.address)
                self.hosts.caught_up(name)
            except HostUnavailableError as error:
                missing += [other for other in error.hosts if other not in missing]
