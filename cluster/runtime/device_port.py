"""A shard whose executed steps go to device actors: they check them, keep their ledgers, and tell each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from pimserve.cluster.devices.errors import HostUnavailableError
from pimserve.cluster.devices.link import DeviceLink
from pimserve.cluster.runtime.shard_client import Hosts
from pimserve.scheduler.clock import ShardPort
from pimserve.scheduler.fleet import RowSink
from pimserve.scheduler.shard import IntArray, Order, Report
from pimserve.scheduler.steplog import StepLog

_Found = TypeVar("_Found")
MakesShard = Callable[[RowSink], ShardPort]  # given who takes its executed steps


class DevicePort:
    """A `ShardPort` around another one, with the devices of its replicas.

    Args:
        shard: makes the shard.
        link: to the devices.
        hosts: of the devices, and how to get others.
        on_rows: takes executed steps too; None if nobody wants them.
    """

    def __init__(self, shard: MakesShard, link: DeviceLink, hosts: Hosts, on_rows: RowSink | None) -> None:
        self._link = link
        self._hosts = hosts
        self._on_rows = on_rows
        self._window = 0
        self._shard = shard(self._rows)

    @property
    def replicas(self) -> Sequence[int]:
        """Numbers of its replicas."""
        return self._shard.replicas

    @property
    def logs(self) -> Sequence[StepLog]:
        """Logs of the replicas."""
        return self._shard.logs

    def send(self, order: Order) -> None:
        """Begin a window."""
        self._shard.send(replace(order, flush=True))

    def receive(self) -> Report:
        """Wait for the end of the window, by which the devices agree with all that was executed in it."""
        report = self._shard.receive()
        self._surely(lambda: self._link.close_window(self._window))
        self._window += 1
        return report

    def latest_fs(self) -> int:
        """The latest time that any replica has reached."""
        return self._shard.latest_fs()

    def rebind(self) -> None:
        """The table has grown."""
        self._shard.rebind()

    def ledgers(self) -> list[dict[str, Any]]:
        """Per replica, its number, busy seconds per unit, energy and tokens so far."""
        return self._shard.ledgers()

    def state(self) -> dict[str, Any]:
        """All that shard and devices have in hand."""
        shard = self._shard.state()
        return {"logs": shard["logs"], "shard": shard, "devices": self._surely(self._link.snapshot), "n": self._window}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._shard.restore(state["shard"])
        self._surely(lambda: self._link.restore(state["devices"]))
        self._window = state["n"]

    def _rows(self, replica: int, rows: IntArray, first_steps: IntArray) -> None:
        take = self._link.execute if self._link.settings.lockstep else self._link.record
        self._surely(partial(take, replica, rows, first_steps))
        if self._on_rows is not None:
            self._on_rows(replica, rows, first_steps)

    def _surely(self, call: Callable[[], _Found]) -> _Found:
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
            generation = self._hosts.endpoint(name).generation
            endpoint = self._hosts.replace(name, generation)
            try:
                self._link.replace(name, endpoint.address)
            except HostUnavailableError as error:
                missing += [other for other in error.hosts if other not in missing]
