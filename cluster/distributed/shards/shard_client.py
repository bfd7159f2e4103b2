"""A shard in another process, as the clock sees it: it gets orders, gives reports, and does not die.

Orders since the last snapshot are kept. When the shard's process is gone, another one is made, goes on from the
snapshot and carries them out again (`recovery.py`); what it reports the second time is not taken twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.cluster.base.rpc.channels import host_channel
from pimserve.cluster.base.rpc.request_stream import RequestStream
from pimserve.cluster.base.rpc.security import for_host
from pimserve.cluster.base.rpc.statuses import HostUnavailableError, errors_of
from pimserve.cluster.base.supervisor import SILENCE_S
from pimserve.cluster.distributed.recovery import Recovery, ReplayLog
from pimserve.cluster.distributed.shards.prefix_wire import events_of, prefix_messages
from pimserve.cluster.distributed.shards.shard_wire import (
    blank_table,
    fleet_digest,
    fleet_json,
    from_message,
    from_state_messages,
    in_pieces,
    pieces,
    rows_of,
    spans_of,
    state_messages,
    to_message,
)
from pimserve.errors import PimserveError
from pimserve.scheduler.control import Ledger
from pimserve.scheduler.fleet import Fleet, RowSink
from pimserve.scheduler.kv_tiers import KvTiers
from pimserve.scheduler.requests import WAITING, RequestTable
from pimserve.scheduler.router_books import requests_of
from pimserve.scheduler.shard import Shard
from pimserve.scheduler.shard_port import NONE, Order, Report
from pimserve.scheduler.steplog import SpanColumns, StepLog
from pimserve.v1 import shard_pb2 as pb
from pimserve.v1.columns_pb2 import Table
from pimserve.v1.shard_pb2_grpc import ShardServiceStub

_CALL_S = 60.0  # a call that does not run the engines
_State = tuple[bytes, IntArray, NDArray[Any]]  # JSON, numbers of requests, their rows


class ShardClient:
    """A `ShardPort` over gRPC.

    Args:
        name: of its host.
        recovery: of the run.
        token: of the run.
        fleet: what the run's replicas are.
        replicas: numbers of those in the shard.
        table: requests of the run.
        on_rows: takes executed steps; None if nobody wants them.
        live: the table is to have what has happened to running requests too.
        host_timeout_s: a host that is silent for so long is replaced.
    """

    has_devices = False
    writes_table = False

    def __init__(
        self,
        name: str,
        recovery: Recovery,
        token: str,
        fleet: Fleet,
        replicas: Sequence[int],
        table: RequestTable,
        on_rows: RowSink | None,
        *,
        live: bool = False,
        host_timeout_s: float = SILENCE_S,
    ) -> None:
        self.replicas = tuple(replicas)
        self._name = name
        self._recovery = recovery
        recovery.join(self, [name])
        self._fleet = fleet
        self._table = table
        self._on_rows = on_rows
        self._live = live
        self._auth = for_host(name, token)
        self._host_timeout_s = host_timeout_s
        self.log: ReplayLog[_State, list[pb.AdvanceWindowsRequest]] = ReplayLog()  # of orders
        self._received = 0  # reports
        self._requests = len(table)  # as the last order had it
        if fleet.concurrency is not None:
            for replica in self.replicas:
                mine = fleet.closed_requests(replica, len(table))
                table["replica"][mine.start : mine.stop : mine.step] = replica
        self._keep(b"", NONE)
        self._steps = dict.fromkeys(self.replicas, 0)
        self._latest_fs = 0
        self._ended = False
        self._connected: _Connection | None = None

    def send(self, order: Order) -> None:
        """Begin a window."""
        self._recovery.begin()
        *tables, last = pieces(order.requests, self._table.rows(order.requests))
        # Without the requests: their rows have the numbers.
        (text, arrays), *rest = in_pieces(*to_message(replace(order, requests=NONE)))
        parts = [pb.AdvanceWindowsRequest(rows=rows) for rows in tables]
        parts.append(pb.AdvanceWindowsRequest(rows=last, order=text, arrays=arrays))
        parts += [pb.AdvanceWindowsRequest(order=text, arrays=arrays) for text, arrays in rest]
        for part in parts:
            part.sequence, part.requests, part.live = self.log.next, len(self._table), self._live
            part.more = part is not parts[-1]
        if self._table.prefixes is not None and len(self._table) > self._requests:
            parts[-1].numbers = json.dumps(self._table.numbers.state())
        self._requests = len(self._table)
        self.log.append(parts, sum(part.ByteSize() for part in parts))
        self._ended = order.last
        if self._connected is not None:
            self._connected.send(parts)
        else:
            with suppress(HostUnavailableError):  # then `receive` takes care of it
                self._connection()

    def receive(self) -> Report:
        """Wait for the end of the window."""
        report = self._recovery.call(self._receive)
        self._recovery.end()
        return report

    def latest_fs(self) -> int:
        """The latest time that any replica is known to have reached."""
        return self._latest_fs

    def rebind(self) -> None:
        """Requests were added to the table; the next order says how many there are."""

    def ledgers(self) -> list[Ledger]:
        """Per replica: its number, busy seconds per unit, energy and tokens so far."""
        return self._mirror().ledgers()

    @property
    def logs(self) -> list[StepLog]:
        """Logs of the replicas."""
        return self._mirror().logs

    def tiers(self) -> dict[int, KvTiers]:
        """By replica, the tiers below its prefix cache."""
        return self._mirror().tiers()

    def _mirror(self) -> Shard:
        """A shard in this process with logs and tiers as those over there; not one to run."""
        mirror, state = Shard(self._fleet, self.replicas, blank_table(len(self._table))), self.state()
        for log, log_state in zip(mirror.logs, state["logs"], strict=True):
            log.restore(log_state)
        engines = dict(zip(self.replicas, state["engines"], strict=True))
        for replica, tiers in mirror.tiers().items():
            tiers.restore(engines[replica]["prefix_tiers"])
        mirror.restore_shared_tier(state)
        return mirror

    def state(self) -> dict[str, Any]:
        """All that the shard has in hand; brings the table up to date."""
        self._recovery.call(self.save)
        state: dict[str, Any] = json.loads(self.log.snapshots[self._name][0])
        return state

    def save(self) -> None:
        """Keep the state of the shard; brings the table up to date."""
        (text, numbers, rows), spans = self._connection().snapshot(len(self._table))
        if not self._ended:  # else the table says more than the shard knows
            self._table.write(numbers, rows)
        for table in spans:
            self._hand_on(table)
        self._keep(text, numbers)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the table has the rows of that time."""
        self.close()
        waiting = np.flatnonzero(self._table["status"] == WAITING)
        seen = np.array(requests_of(state["books"]), np.int64)  # by its router, which reads their rows
        self._keep(json.dumps(state).encode(), np.union1d(waiting, seen))
        for replica, log_state in zip(self.replicas, state["logs"], strict=True):
            self._steps[replica] = log_state["steps"]

    def close(self) -> None:
        """Let go of the connection."""
        if self._connected is not None:
            self._connected.close()
            self._connected = None

    def _keep(self, text: bytes, numbers: IntArray) -> None:
        """Keep a snapshot with the rows of these requests; in a closed loop of all left, for engines issue them."""
        if self._fleet.concurrency is not None:
            numbers = np.flatnonzero(self._table["status"] == WAITING)
        self.log.save({self._name: (text, numbers, self._table.rows(numbers))})

    def _connection(self) -> _Connection:
        """The connection to the shard's process."""
        if self._connected is None:
            self.replace(self._name, self._recovery.hosts.endpoint(self._name).address)
        assert self._connected is not None
        return self._connected

    def replace(self, host: str, address: str) -> None:
        """Bring a new process of the shard to where this end is."""
        self.close()
        connection = _Connection(host, host_channel(address, self._host_timeout_s), self._auth)
        try:
            connection.open(self._fleet, self.replicas, len(self._table), spans=self._on_rows is not None)
            connection.restore(self.log.snapshots[host], self.log.first, self._table)
            for parts in self.log.messages:
                connection.send(parts)
            for sequence in range(self.log.first, self._received):
                connection.receive(sequence)  # the reports that it gave before
        except BaseException:
            connection.close()
            raise
        self._connected = connection

    def _receive(self) -> Report:
        answers = self._connection().receive(self._received)
        self._received += 1
        report = from_message(
            Report,
            "".join(answer.report for answer in answers),
            [column for answer in answers for column in answer.arrays],
        )
        report = replace(report, kv_events=events_of(event for answer in answers for event in answer.kv_events))
        for answer in answers:
            if answer.HasField("rows"):
                self._table.write(*rows_of(answer.rows, len(self._table)))
            self._hand_on(answer.spans)
        self._latest_fs = max([self._latest_fs, *(state.clock_fs for state in report.states)])
        return report

    def _hand_on(self, table: Table) -> None:
        """Give executed steps to who wants them, replica by replica."""
        if self._on_rows is None or not table.count:
            return
        spans = spans_of(table)
        for replica in np.unique(spans["replica"]).tolist():
            mine = spans[spans["replica"] == replica]
            rows = np.column_stack([mine[name] for name in SpanColumns._fields])
            first_steps = self._steps[replica] + np.cumsum(mine["steps"]) - mine["steps"]
            self._steps[replica] += int(mine["steps"].sum())
            self._on_rows(replica, rows, first_steps)


class _Connection:
    """One process that hosts the shard. Errors are as `statuses.host_error` has them."""

    def __init__(self, name: str, channel: grpc.Channel, auth: tuple[tuple[str, str], ...]) -> None:
        self._name = name
        self._auth = auth
        self._channel = channel
        self._stub = ShardServiceStub(self._channel)
        self._orders: RequestStream[pb.AdvanceWindowsRequest] | None = None

    def open(self, fleet: Fleet, replicas: Sequence[int], requests: int, *, spans: bool) -> None:
        """Have the shard made."""
        asked = pb.OpenShardRequest(fleet=fleet_json(fleet), replicas=replicas, requests=requests, spans=spans)
        with errors_of(self._name):
            answer = self._stub.OpenShard(asked, timeout=_CALL_S, metadata=self._auth, wait_for_ready=False)
        if answer.fleet_digest != fleet_digest(fleet):
            raise PimserveError(f"{self._name} understood another fleet: is it of another version of pimserve?")

    def restore(self, state: _State, sequence: int, table: RequestTable) -> None:
        """Have it begin, or go on, with what prompts of the table begin with."""
        messages = state_messages(pb.RestoreShardRequest, *state, sequence=sequence)
        known = prefix_messages(table, sequence)
        with errors_of(self._name):
            self._stub.RestoreShard(chain(messages, known), timeout=_CALL_S, metadata=self._auth)

    def send(self, parts: Sequence[pb.AdvanceWindowsRequest]) -> None:
        """Send an order, without waiting."""
        if self._orders is None:
            # No deadline: a window may take hours, a paced run days. The channel finds processes that are gone.
            self._orders = RequestStream(partial(self._stub.AdvanceWindows, metadata=self._auth))
        for part in parts:
            self._orders.send(part)

    def receive(self, sequence: int) -> list[pb.AdvanceWindowsResponse]:
        """Wait for the report of that order."""
        assert self._orders is not None, "an order was sent"
        answers = []
        with errors_of(self._name):
            for answer in self._orders.call:
                assert answer.sequence == sequence, "reports come in order"
                answers.append(answer)
                if not answer.more:
                    return answers
        raise HostUnavailableError((self._name,), "the stream has ended")

    def snapshot(self, most: int) -> tuple[_State, list[Table]]:
        """The state, and executed steps that no report has had."""
        with errors_of(self._name):
            answers = self._stub.SnapshotShard(pb.SnapshotShardRequest(), timeout=_CALL_S, metadata=self._auth)
            messages = list(answers)
        return from_state_messages(messages, most), [message.spans for message in messages]

    def close(self) -> None:
        """Let go of it."""
        if self._orders is not None:
            self._orders.end()
        self._channel.close()
