"""What hosts are fed, and what is kept of it: batches of executed spans, or single steps in lockstep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pimserve.cluster.base.rpc.statuses import DeviceMismatchError
from pimserve.cluster.distributed.devices.host_client import HostConnection, all_of
from pimserve.cluster.distributed.devices.span_rows import ROW_BYTES, Spans, step_request, to_rows_table
from pimserve.cluster.distributed.recovery import ReplayLog
from pimserve.device_models.plan import FS_PER_PS
from pimserve.errors import InputError
from pimserve.scheduler.steplog import SpanColumns
from pimserve.v1 import device_pb2 as pb

ROWS_PER_BATCH = 2**20 // ROW_BYTES
_NUMBERS_PER_BATCH = 2**18  # that a device tells another, about
_STEP_BYTES = 600  # that a step takes in the log, about
_STEPS, _DURATION = SpanColumns._fields.index("steps"), SpanColumns._fields.index("duration_fs")
_BEGIN_PS, _BEGIN_REST_FS = SpanColumns._fields.index("begin_ps"), SpanColumns._fields.index("begin_rest_fs")
Connections = Mapping[str, HostConnection]


@dataclass(frozen=True, slots=True)
class WindowEnd:
    """A window ended after so many batches to each host, and these hand-overs of KV caches by each sending host."""

    window: int
    batches: Mapping[str, int]
    hand_overs: Mapping[str, pb.HandOverKvRequest]


@dataclass(frozen=True, slots=True)
class Batch:
    """Executed spans, serialised, that these hosts get; `together`: and who gets others of the same steps."""

    hosts: Sequence[str]
    data: bytes
    together: frozenset[str]


Message = Batch | pb.ExecuteStepsRequest
Log = ReplayLog[bytes, Message | WindowEnd]


class _Group:
    """Hosts that share replicas, if only through others, and get their batches together: those of a replica wait for
    each other.
    """

    def __init__(
        self, connections: Connections, replicas: Mapping[str, frozenset[int]], log: Log, numbers_per_step: int
    ) -> None:
        self._connections = connections
        self._numbers_per_step = numbers_per_step
        self.replicas = frozenset[int]().union(*replicas.values())
        self.hosts = frozenset(replicas)
        self.window = 0  # that is open
        self.sequence = 0  # of the next batch
        self.ended = 0  # batches of the window before
        self._alike: dict[frozenset[int], list[str]] = {}  # hosts with the same replicas
        for host, mine in replicas.items():
            self._alike.setdefault(mine, []).append(host)
        self._log = log
        self._waiting: list[Spans] = []
        self._filled = 0  # of a batch, in rows

    def take(self, spans: Spans) -> None:
        replica, *columns = spans
        while len(columns[0]):
            # A row counts for more where its steps make devices tell each other much.
            numbers = columns[0][:, _STEPS] * self._numbers_per_step
            filled = self._filled + np.cumsum(1 + numbers * ROWS_PER_BATCH // _NUMBERS_PER_BATCH)
            some = int(np.searchsorted(filled, ROWS_PER_BATCH)) + 1  # with the one that fills it
            self._waiting.append(Spans(replica, *(column[:some] for column in columns)))
            self._filled = int(filled[:some][-1])
            if self._filled >= ROWS_PER_BATCH:
                self.flush()
            columns = [column[some:] for column in columns]

    def flush(self) -> None:
        if not self._waiting:
            return
        waiting = self._waiting
        self._waiting, self._filled = [], 0
        for replicas, hosts in self._alike.items():
            table = to_rows_table([spans for spans in waiting if spans.replica in replicas])
            data = pb.RecordStepsRequest(window=self.window, sequence=self.sequence, rows=table).SerializeToString()
            self._log.append(Batch(hosts, data, self.hosts), len(data))
            for host in hosts:
                self._connections[host].send_batch(data)
        self.sequence += 1

    def end_window(self, window: int) -> None:
        self.window, self.ended, self.sequence = window + 1, self.sequence, 0

    def restore(self, window: int, sequence: int, ended: int) -> None:
        self.window, self.sequence, self.ended = window, sequence, ended
        self._waiting, self._filled = [], 0


class PlannedFeed:
    """Batches of executed spans.

    Args:
        connections: to the hosts.
        replicas: of each host, the replicas of which it has devices.
        log: of what they are fed.
        numbers_per_step: that a device tells another for a step, where these are most of what passes.
    """

    def __init__(
        self, connections: Connections, replicas: Mapping[str, frozenset[int]], log: Log, numbers_per_step: int = 0
    ) -> None:
        self._connections = connections
        self._groups = [
            _Group(connections, {host: replicas[host] for host in hosts}, log, numbers_per_step)
            for hosts in _connected(replicas)
        ]

    def take(self, spans: Spans) -> None:
        """Feed executed spans in batches."""
        for group in self._groups:
            if spans.replica in group.replicas:
                group.take(spans)

    def flush(self) -> None:
        """Feed what was taken."""
        for group in self._groups:
            group.flush()

    def end_window(self, window: int) -> Mapping[str, int]:
        """All of a window is fed."""
        self.flush()
        for group in self._groups:
            group.end_window(window)
        return {host: group.ended for group in self._groups for host in group.hosts}

    def repeat(self, message: Any, behind: set[str]) -> None:  # noqa: ANN401 a batch
        """Send a batch again: to hosts that are behind, and to those who then tell them again what they sent."""
        if behind & message.together:
            for host in message.hosts:
                self._connections[host].send_batch(message.data)

    def state(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"groups": [[group.window, group.sequence, group.ended] for group in self._groups]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        for group, (window, sequence, ended) in zip(self._groups, state["groups"], strict=True):
            group.restore(window, sequence, ended)


def _connected(replicas: Mapping[str, frozenset[int]]) -> list[list[str]]:
    """Hosts in sets, so that those of different sets share no replica."""
    sets: list[tuple[frozenset[int], list[str]]] = []
    for host, mine in replicas.items():
        joined, hosts = mine, [host]
        for other in [other for other in sets if other[0] & mine]:
            sets.remove(other)
            joined, hosts = joined | other[0], other[1] + hosts
        sets.append((joined, hosts))
    return [hosts for _, hosts in sets]


class LockstepFeed:
    """Single steps, each of which all hosts of its replica execute together.

    Args:
        connections: to the hosts.
        replicas: of each host, the replicas of which it has devices.
        log: of what they are fed.
    """

    def __init__(self, connections: Connections, replicas: Mapping[str, frozenset[int]], log: Log) -> None:
        self._connections = connections
        numbers = sorted(frozenset[int]().union(*replicas.values()))
        self._hosts = {replica: [host for host, mine in replicas.items() if replica in mine] for replica in numbers}
        self._next = dict.fromkeys(numbers, 0)
        self._log = log

    def take(self, spans: Spans) -> None:
        """Execute spans step by step.

        Raises:
            DeviceMismatchError: their time is not the engine's, or not the same for all devices.
            HostUnavailableError: hosts cannot be reached.
        """
        replica, *columns = spans
        for row, first_step, slowdown in zip(*(column.tolist() for column in columns), strict=True):
            total = 0
            for step in range(row[_STEPS]):
                begin_ps = row[_BEGIN_PS] + (row[_BEGIN_REST_FS] + total) // FS_PER_PS
                request = step_request(replica, first_step, row, step, slowdown, begin_ps)
                if request.step >= self._next[replica]:
                    self._next[replica] = request.step + 1
                    self._log.append(request, _STEP_BYTES)
                total += self._execute(request)
            if total != row[_DURATION]:
                last = first_step + row[_STEPS] - 1
                raise DeviceMismatchError(
                    f"replica {replica}, steps {first_step} to {last}: {row[_DURATION]:,} fs by the engine, {total:,} "
                    f"fs by devices on {', '.join(self._hosts[replica])}"
                )

    def flush(self) -> None:
        """Nothing waits."""

    def end_window(self, window: int) -> Mapping[str, int]:
        """All of a window is executed; there are no batches."""
        return {}

    def repeat(self, message: Any, behind: set[str]) -> None:  # noqa: ANN401 a step
        """Execute a step again, together with hosts that are not behind and send their messages again."""
        if behind.intersection(self._hosts[message.replica]):
            self._execute(message)

    def state(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"next": sorted(self._next.items())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._next = dict(state["next"])

    def _execute(self, request: pb.ExecuteStepsRequest) -> int:
        """A step on all hosts of its replica; returns its time."""
        hosts = self._hosts[request.replica]
        for host in hosts:
            self._connections[host].send_step(request)
        answers = all_of({host: partial(_answer, self._connections[host], request) for host in hosts})
        times = {(host, answer.device): answer.duration_fs for host in hosts for answer in answers[host].times}
        distinct = set(times.values())
        if len(distinct) != 1:
            given = ", ".join(f"{time:,} fs by device {device} on {host}" for (host, device), time in times.items())
            raise DeviceMismatchError(f"replica {request.replica}, step {request.step}: {given or 'no device answers'}")
        return distinct.pop()


def _answer(connection: HostConnection, request: pb.ExecuteStepsRequest) -> pb.ExecuteStepsResponse:
    """The answer to a step."""
    response = connection.receive_step()
    if (response.replica, response.step) != (request.replica, request.step):
        raise InputError(
            f"device host {connection.name}", f"answers step {response.step} where step {request.step} was asked for"
        )
    return response
