"""How a host that died comes back: another takes its place, goes on from the last snapshot and is told what came after.

Shards and devices are hosts of one kind in this: they do nothing but what they are told, so the replacement does the
same again, and what it answers a second time is known by its number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from pimserve.cluster.base.rpc.statuses import HostUnavailableError
from pimserve.cluster.distributed.hosts.hosting import Endpoint

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
        self._saved_s = time.monotonic()

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
        self._saved_s = time.monotonic()

    def due(self, most_bytes: int, most_s: float = math.inf) -> bool:
        """Whether it is time for other snapshots: so much is kept, or it has been so long."""
        return self.size_bytes > most_bytes or time.monotonic() - self._saved_s > most_s


class Recovery:
    """Makes calls to hosts, and puts others in the place of those that cannot be reached.

    Args:
        hosts: where they are, and how to get others.
        restore: brings the new host of that name, at that place, to where the old one was.
    """

    def __init__(self, hosts: Hosts, restore: Callable[[str, Endpoint], object]) -> None:
        self._hosts = hosts
        self._restore = restore

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
            endpoint = self._hosts.replace(name, self._hosts.endpoint(name).generation)
            try:
                self._restore(name, endpoint)
                self._hosts.caught_up(name)
            except HostUnavailableError as error:
                missing += [other for other in error.hosts if other not in missing]
