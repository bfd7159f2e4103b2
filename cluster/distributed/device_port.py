"""Shards whose executed steps go to device actors: they check them, keep their ledgers, and tell each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.distributed.actor_ledgers import with_actors
from pimserve.cluster.distributed.devices.conservation import Exchanged
from pimserve.cluster.distributed.devices.driver import DeviceDriver
from pimserve.cluster.distributed.devices.ledgers import DeviceLedger
from pimserve.cluster.distributed.recovery import Recovery
from pimserve.scheduler.control import Ledger
from pimserve.scheduler.fleet import DECODE, Fleet, RowSink
from pimserve.scheduler.kv_tiers import KvTiers
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.shard_port import Order, Report, ShardPort
from pimserve.scheduler.steplog import StepLog

_CLOSE_S = 0.5  # wall time between two checks of all that devices did and exchanged
MakesShard = Callable[[RowSink], ShardPort]  # given who takes its executed steps
_Parts = list[tuple[int, ...]]  # of a KV cache: rows as `DeviceDriver.hand_over` takes them
_TARGET = 5  # column of the receiving replica


class Devices:
    """The device actors of a run, behind one driver; hosts that die are replaced.

    Their windows are one or more windows of the clock: one ends when all shards have handed on what they executed.

    Args:
        driver: of the devices.
        recovery: of the run.
        fleet: the replicas.
        per_replica: devices of a replica that have KV caches, by the name of its pool.
        table: requests of the run.
    """

    def __init__(
        self, driver: DeviceDriver, recovery: Recovery, fleet: Fleet, per_replica: dict[str, int], table: RequestTable
    ) -> None:
        self._driver = driver
        self._recovery = recovery
        recovery.join(driver, driver.hosts)
        recovery.call(driver.connect)
        self._fleet = fleet
        self._table = table
        self._kv_groups = fleet.pools[-1].kv_groups  # of those who take over
        self._coming: dict[int, tuple[int, _Parts]] = {}  # by request: when its KV cache is there, and its parts
        self._devices = {number: per_replica[pool.name] for pool in fleet.pools for number in pool.numbers}
        self._window = 0
        self._closed_s = time.monotonic()
        self._closing = False

    def begin(self, order: Order) -> bool:
        """An order is given to a shard; returns whether the devices' window ends with it."""
        if not self._recovery.under_way:
            self._closing = order.last or time.monotonic() - self._closed_s > _CLOSE_S
        self._recovery.begin()
        if order.pool == DECODE:
            self._hand_over(order)
            self._lose(order.revoked.tolist())
        return self._closing

    def end(self, order: Order, report: Report) -> None:
        """A shard has carried out its order."""
        conditions = {condition.replica: condition for condition in order.conditions}
        for effect in report.effects:
            self._driver.slow(effect.replica, effect.step, conditions[effect.replica].slowdown)
            if not conditions[effect.replica].up:
                self._lose(self._coming_to(effect.replica, effect.at_fs))
        if self._closing and self._recovery.under_way == 1:
            self._close_window()
        self._recovery.end()

    def books(self) -> tuple[list[DeviceLedger], Exchanged]:
        """Ledgers of all devices, and what they exchanged, of all steps that were handed on; for a window's end."""
        exchanged = self._close_window()
        return self._recovery.call(self._driver.ledgers), exchanged

    def take(self, replica: int, rows: IntArray, first_steps: IntArray) -> None:
        """Executed steps of a replica."""
        self._recovery.call(partial(self._driver.take, replica, rows, first_steps))

    def state(self) -> dict[str, Any]:
        """All that devices have in hand."""
        link = self._recovery.call(self._driver.snapshot)
        return {"link": link, "window": self._window, "coming": list(self._coming.items())}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._recovery.call(lambda: self._driver.restore(state["link"]))
        self._window = state["window"]
        self._coming = {request: (done_fs, [tuple(p) for p in parts]) for request, (done_fs, parts) in state["coming"]}

    def _close_window(self) -> Exchanged:
        """All devices digest what they were told, and agree; returns what they have exchanged so far."""
        exchanged = self._recovery.call(lambda: self._driver.close_window(self._window))
        self._window += 1
        self._closed_s = time.monotonic()
        return exchanged

    def _hand_over(self, order: Order) -> None:
        """KV caches that the order's requests bring with them: every device sends its part of each block."""
        assert self._fleet.link is not None
        self._coming = {request: way for request, way in self._coming.items() if way[0] > order.until_fs}
        handed: _Parts = []
        targets = dict(zip(order.requests.tolist(), order.replicas.tolist(), strict=True))
        for move in order.moves:
            if move.replica < 0:
                continue  # its prompt is to be computed there
            target = targets[move.request]
            tokens = int(self._table["input_tokens"][move.request] + self._table["emitted_tokens"][move.request]) - 1
            size, blocks = self._fleet.link.size(tokens), self._kv_groups.blocks(tokens, self._fleet.spec.block_size)
            senders, receivers = self._devices[move.replica], self._devices[target]
            count = max(senders, receivers)
            parts: _Parts = []
            for part in range(count):
                share = size * (part + 1) // count - size * part // count
                sender, receiver = part * senders // count, part * receivers // count
                parts.append((move.request, share, blocks, move.replica, sender, target, receiver))
            handed += parts
            self._coming[move.request] = move.since_fs, parts
        if handed:
            self._driver.hand_over(np.array(handed, np.int64))

    def _coming_to(self, replica: int, after_fs: int) -> list[int]:
        """Requests whose KV caches are at that replica only after that time."""
        ways = self._coming.items()
        return [request for request, (done_fs, parts) in ways if done_fs > after_fs and parts[0][_TARGET] == replica]

    def _lose(self, requests: Sequence[int]) -> None:
        """KV caches of these requests were lost on their way."""
        for request in requests:
            self._driver.lose(np.array(self._coming.pop(request)[1], np.int64))


class DevicePort:
    """A `ShardPort` around another one, with the devices of its replicas.

    Args:
        shard: makes the shard.
        devices: of the run.
        on_rows: takes executed steps too; None if nobody wants them.
        keeps: whether its state is to hold that of the devices; of all shards the one that is asked last.
    """

    has_devices = True

    def __init__(self, shard: MakesShard, devices: Devices, on_rows: RowSink | None, *, keeps: bool) -> None:
        self._devices = devices
        self._on_rows = on_rows
        self._keeps = keeps
        self._shard = shard(self._rows)

    @property
    def writes_table(self) -> bool:
        """As its shard."""
        return self._shard.writes_table

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
        self._order = order
        self._shard.send(replace(order, flush=self._devices.begin(order)))

    def receive(self) -> Report:
        """Wait for its end, and now and then for the devices to agree with all that was executed."""
        report = self._shard.receive()
        self._devices.end(self._order, report)
        return report

    def latest_fs(self) -> int:
        """The latest time that any replica has reached."""
        return self._shard.latest_fs()

    def rebind(self) -> None:
        """The table has grown."""
        self._shard.rebind()

    def ledgers(self) -> list[Ledger]:
        """Per replica, its number, busy seconds per unit, energy and tokens so far, as its devices have them."""
        ledgers = self._shard.ledgers()  # hands on all that was executed
        return with_actors(ledgers, self._devices.books()[0])

    def tiers(self) -> Mapping[int, KvTiers]:
        """By replica, the tiers below its prefix cache."""
        return self._shard.tiers()

    def state(self) -> dict[str, Any]:
        """All that the shard, and perhaps the devices, have in hand."""
        shard = self._shard.state()
        return {"shard": shard, "devices": self._devices.state() if self._keeps else None}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._shard.restore(state["shard"])
        if self._keeps:
            self._devices.restore(state["devices"])

    def _rows(self, replica: int, rows: IntArray, first_steps: IntArray) -> None:
        self._devices.take(replica, rows, first_steps)
        if self._on_rows is not None:
            self._on_rows(replica, rows, first_steps)
