"""What hosts are fed, and what is kept of it: batches of executed spans, or single steps in lockstep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pimserve.cluster.base.rpc.statuses import DeviceMismatchError
from pimserve.cluster.distributed.devices.host_client import HostWire, all_of
from pimserve.cluster.distributed.devices.rows import ROW_BYTES, Spans, step_request, to_rows_table
from pimserve.errors import InputError
from pimserve.scheduler.steplog import Rows
from pimserve.v1 import device_pb2 as pb

ROWS_PER_BATCH = 2**20 // ROW_BYTES
_STEP_BYTES = 600  # that a kept step takes, about
_STEPS, _DURATION = Rows._fields.index("steps"), Rows._fields.index("duration_fs")
_CONTEXT, _DECODES = Rows._fields.index("context"), Rows._fields.index("decodes")
Wires = Mapping[str, HostWire]
Closer = Callable[[set[str], int, Callable[[str], int]], None]  # closes a window on these hosts; batches of each


class Feed(Protocol):
    """Feeds hosts, and feeds them again."""

    @property
    def retained_bytes(self) -> int:
        """Of what is kept."""

    def take(self, wires: Wires, spans: Spans) -> None:
        """Feed executed spans."""

    def flush(self, wires: Wires) -> None:
        """Feed what was taken, all of it."""

    def end_window(self, wires: Wires, window: int) -> None:
        """All of a window is fed."""

    def batches(self, host: str) -> int:
        """How many batches the host got in the window that ended last."""

    def replay(self, wires: Wires, behind: set[str], close: Closer) -> None:
        """Feed hosts that are behind what is kept, and close the windows in it.

        Raises:
            HostUnavailableError: hosts cannot be reached.
        """

    def forget(self) -> None:
        """Nothing of what was fed is needed any more."""

    def state(self) -> dict[str, Any]:
        """As JSON can hold it; nothing must be kept."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, with nothing kept."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """A window ended after this many batches."""

    window: int
    batches: int


class _Group:
    """Hosts that have the same replicas, and get the same batches."""

    def __init__(self, replicas: frozenset[int], hosts: list[str]) -> None:
        self.replicas = replicas
        self.hosts = hosts
        self.kept: list[bytes | _Ended] = []
        self.kept_bytes = 0
        self.window = 0  # that is open
        self.sequence = 0  # of the next batch
        self.ended = 0  # batches of the window before
        self._waiting: list[Spans] = []
        self._rows = 0

    def take(self, wires: Wires, spans: Spans) -> None:
        replica, *columns = spans
        while self._rows + len(columns[0]) >= ROWS_PER_BATCH:
            some = ROWS_PER_BATCH - self._rows
            self._waiting.append(Spans(replica, *(column[:some] for column in columns)))
            self.flush(wires)
            columns = [column[some:] for column in columns]
        if len(columns[0]):
            self._waiting.append(Spans(replica, *columns))
            self._rows += len(columns[0])

    def flush(self, wires: Wires) -> None:
        if not self._waiting:
            return
        table = to_rows_table(self._waiting)
        self._waiting, self._rows = [], 0
        batch = pb.RecordStepsRequest(window=self.window, sequence=self.sequence, rows=table).SerializeToString()
        self.sequence += 1
        self.kept.append(batch)
        self.kept_bytes += len(batch)
        for host in self.hosts:
            wires[host].send_batch(batch)

    def end_window(self, window: int) -> None:
        self.kept.append(_Ended(window, self.sequence))
        self.window, self.ended, self.sequence = window + 1, self.sequence, 0

    def replay(self, wires: Wires, behind: set[str], close: Closer) -> None:
        mine = behind.intersection(self.hosts)
        for entry in self.kept if mine else ():
            if isinstance(entry, bytes):
                for host in mine:
                    wires[host].send_batch(entry)
            else:
                all_of({host: wires[host].settled for host in mine})
                batches = entry.batches
                close(mine, entry.window, lambda _, batches=batches: batches)  # type: ignore[misc]  # of this entry


class PlannedFeed:
    """Batches of executed spans.

    Args:
        replicas: of each host, the replicas of which it has devices.
    """

    def __init__(self, replicas: Mapping[str, frozenset[int]]) -> None:
        hosts: dict[frozenset[int], list[str]] = {}
        for host, mine in replicas.items():
            hosts.setdefault(mine, []).append(host)
        self._groups = [_Group(*group) for group in hosts.items()]
        self._group_of = {host: group for group in self._groups for host in group.hosts}

    @property
    def retained_bytes(self) -> int:
        """Of what is kept."""
        return sum(group.kept_bytes for group in self._groups)

    def take(self, wires: Wires, spans: Spans) -> None:
        """Feed executed spans in batches."""
        for group in self._groups:
            if spans.replica in group.replicas:
                group.take(wires, spans)

    def flush(self, wires: Wires) -> None:
        """Feed what was taken."""
        for group in self._groups:
            group.flush(wires)

    def end_window(self, wires: Wires, window: int) -> None:
        """All of a window is fed."""
        self.flush(wires)
        for group in self._groups:
            group.end_window(window)

    def batches(self, host: str) -> int:
        """How many batches the host got in the window that ended last."""
        return self._group_of[host].ended

    def replay(self, wires: Wires, behind: set[str], close: Closer) -> None:
        """Feed hosts that are behind what is kept."""
        for group in self._groups:
            group.replay(wires, behind, close)

    def forget(self) -> None:
        """Nothing of what was fed is needed any more."""
        for group in self._groups:
            group.kept.clear()
            group.kept_bytes = 0

    def state(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"groups": [[group.window, group.sequence, group.ended] for group in self._groups]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        groups = [_Group(group.replicas, group.hosts) for group in self._groups]
        for group, (window, sequence, ended) in zip(groups, state["groups"], strict=True):
            group.window, group.sequence, group.ended = window, sequence, ended
        self._groups = groups
        self._group_of = {host: group for group in groups for host in group.hosts}


class LockstepFeed:
    """Single steps, each of which all hosts of its replica execute together.

    Args:
        replicas: of each host, the replicas of which it has devices.
    """

    def __init__(self, replicas: Mapping[str, frozenset[int]]) -> None:
        every = sorted(frozenset[int]().union(*replicas.values()))
        self._hosts = {replica: [host for host, mine in replicas.items() if replica in mine] for replica in every}
        self._next = dict.fromkeys(every, 0)
        self._kept: list[pb.ExecuteStepsRequest | _Ended] = []

    @property
    def retained_bytes(self) -> int:
        """Of what is kept, about."""
        return len(self._kept) * _STEP_BYTES

    def take(self, wires: Wires, spans: Spans) -> None:
        """Execute spans step by step.

        Raises:
            DeviceMismatchError: their time is not the engine's, or not the same for all devices.
            HostUnavailableError: hosts cannot be reached.
        """
        replica, *columns = spans
        for row, first_step, slowdown in zip(*(column.tolist() for column in columns), strict=True):
            total = 0
            for step in range(row[_STEPS]):
                context = row[_CONTEXT] + step * row[_DECODES]
                request = step_request(replica, first_step + step, row, context, slowdown)
                if request.step >= self._next[replica]:
                    self._next[replica] = request.step + 1
                    self._kept.append(request)
                total += self._execute(wires, request)
            if total != row[_DURATION]:
                last = first_step + row[_STEPS] - 1
                raise DeviceMismatchError(
                    f"replica {replica}, steps {first_step} to {last}: {row[_DURATION]:,} fs by the engine, {total:,} "
                    f"fs by devices on {', '.join(self._hosts[replica])}"
                )

    def flush(self, wires: Wires) -> None:
        """Nothing waits."""

    def end_window(self, wires: Wires, window: int) -> None:
        """All of a window is executed."""
        self._kept.append(_Ended(window, 0))

    def batches(self, host: str) -> int:
        """There are none."""
        return 0

    def replay(self, wires: Wires, behind: set[str], close: Closer) -> None:
        """Execute what is kept, together with hosts that are not behind and send their messages again."""
        for entry in self._kept if behind else ():
            if isinstance(entry, _Ended):
                close(behind, entry.window, self.batches)
            elif behind.intersection(self._hosts[entry.replica]):
                self._execute(wires, entry)

    def forget(self) -> None:
        """Nothing of what was fed is needed any more."""
        self._kept.clear()

    def state(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"next": sorted(self._next.items())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._next = dict(state["next"])
        self._kept.clear()

    def _execute(self, wires: Wires, request: pb.ExecuteStepsRequest) -> int:
        """A step on all hosts of its replica; returns its time."""
        hosts = self._hosts[request.replica]
        for host in hosts:
            wires[host].send_step(request)
        answers = all_of({host: partial(_answer, wires[host], request) for host in hosts})
        times = {(host, each.device): each.duration_fs for host in hosts for each in answers[host].times}
        distinct = set(times.values())
        if len(distinct) != 1:
            said = ", ".join(f"{time:,} fs by device {device} on {host}" for (host, device), time in times.items())
            raise DeviceMismatchError(f"replica {request.replica}, step {request.step}: {said or 'no device answers'}")
        return distinct.pop()


def _answer(wire: HostWire, request: pb.ExecuteStepsRequest) -> pb.ExecuteStepsResponse:
    """The answer to a step."""
    response = wire.receive_step()
    if (response.replica, response.step) != (request.replica, request.step):
        raise InputError(
            f"device host {wire.name}", f"answers step {response.step} where step {request.step} was asked for"
        )
    return response
