"""A shard behind a gRPC server, for a process of its own.

It does what its orders say and nothing else. Orders are numbered: one that was carried out already is answered again
from what was kept, so that a client may repeat what it is not sure of.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace

import grpc
import numpy as np

from pimserve.arrays import IntArray
from pimserve.cluster.base.rpc.channels import make_server
from pimserve.cluster.base.rpc.security import HostGuard
from pimserve.cluster.base.rpc.statuses import WrongStateError
from pimserve.cluster.distributed.shards.prefix_wire import event_messages, take_prefixes
from pimserve.cluster.distributed.shards.shard_wire import (
    ROWS_PER_MESSAGE,
    blank_table,
    fleet_digest,
    fleet_of,
    from_message,
    from_state_messages,
    in_pieces,
    pieces,
    rows_of,
    spans_to_table,
    state_messages,
    to_message,
)
from pimserve.cluster.run.results import SPAN
from pimserve.scheduler.request_numbers import RequestNumbers
from pimserve.scheduler.shard import Shard
from pimserve.scheduler.shard_port import NONE, Order, Report
from pimserve.scheduler.steplog import SpanColumns
from pimserve.v1 import shard_pb2 as pb
from pimserve.v1.columns_pb2 import Table
from pimserve.v1.shard_pb2_grpc import ShardServiceServicer, add_ShardServiceServicer_to_server

_THREADS = 4


class ShardHost:
    """Serves one shard.

    Args:
        name: of the host: calls that are for another are refused.
        token: that callers must have.
    """

    def __init__(self, name: str, token: str) -> None:
        self._server = make_server(_THREADS, token, [HostGuard(name)])
        add_ShardServiceServicer_to_server(_Service(), self._server)

    def start(self, listen: str) -> int:
        """Listen at "ADDRESS:PORT", port 0 for a free one; returns the port."""
        port: int = self._server.add_insecure_port(listen)
        self._server.start()
        return port

    def stop(self, grace_s: float) -> None:
        """Let calls under way end, within that time."""
        self._server.stop(grace_s).wait()


class _Service(ShardServiceServicer):
    """The shard; one call at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shard: Shard | None = None
        self._table = blank_table(0)
        self._spans_wanted = False
        self._spans: list[np.ndarray[tuple[int], np.dtype[np.void]]] = []
        self._next = 0  # number of the next order
        self._answer: list[pb.AdvanceWindowsResponse] = []  # to the order before it

    def OpenShard(self, request: pb.OpenShardRequest, _context: grpc.ServicerContext) -> pb.OpenShardResponse:  # noqa: N802
        """Make the engines."""
        fleet = fleet_of(request.fleet)
        with self._lock:
            self._table = blank_table(request.requests)
            self._spans_wanted, self._spans = request.spans, []
            self._next, self._answer = 0, []
            self._shard = None
            self._fleet = fleet
            self._replicas = tuple(request.replicas)
        return pb.OpenShardResponse(fleet_digest=fleet_digest(fleet))

    def RestoreShard(  # noqa: N802
        self, request_iterator: Iterable[pb.RestoreShardRequest], context: grpc.ServicerContext
    ) -> pb.RestoreShardResponse:
        """Go on from a state."""
        with self._lock:
            requests = list(request_iterator)
            state, numbers, rows = from_state_messages(requests, len(self._table))
            take_prefixes(requests, self._table)
            self._table.write(numbers, rows)  # before the engines of a closed loop issue their first requests
            self._shard = Shard(self._fleet, self._replicas, self._table, self._keep if self._spans_wanted else None)
            self._next, self._answer = requests[-1].sequence if requests else 0, []
            if state:
                self._shard.restore(json.loads(state))
                self._table.write(numbers, rows)
        return pb.RestoreShardResponse()

    def AdvanceWindows(  # noqa: N802
        self, request_iterator: Iterable[pb.AdvanceWindowsRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.AdvanceWindowsResponse]:
        """Carry out orders."""
        parts = []
        for request in request_iterator:
            parts.append(request)
            if request.more:
                continue
            with self._lock:
                answer = self._carry_out(parts)
            parts = []
            yield from answer

    def SnapshotShard(  # noqa: N802
        self, request: pb.SnapshotShardRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.SnapshotShardResponse]:
        """All that the shard has in hand."""
        with self._lock:
            if self._shard is None:
                raise WrongStateError("there is no shard; call OpenShard and RestoreShard")
            state = json.dumps(self._shard.state()).encode()
            numbers = self._shard.in_hand()
            rows = self._table.rows(numbers)
            spans = self._spans_so_far()
        yield from state_messages(pb.SnapshotShardResponse, state, numbers, rows)
        for table in spans:
            yield pb.SnapshotShardResponse(spans=table)

    def _carry_out(self, parts: list[pb.AdvanceWindowsRequest]) -> list[pb.AdvanceWindowsResponse]:
        last = parts[-1]
        if self._answer and last.sequence == self._next - 1:
            return self._answer
        if self._shard is None or last.sequence != self._next:
            raise WrongStateError(f"order {self._next} comes next, not order {last.sequence}")
        if last.requests > len(self._table):
            at = len(self._table)
            self._table.insert(at, np.zeros(last.requests - at, np.int64), blank_table(last.requests - at))
            if last.numbers:
                self._table.numbers = RequestNumbers.of_state(len(self._table), json.loads(last.numbers))
            self._shard.rebind()
        requests = []
        for part in parts:
            if part.HasField("rows"):
                numbers, rows = rows_of(part.rows, len(self._table))
                self._table.write(numbers, rows)
                requests.append(numbers)
        text = "".join(part.order for part in parts)
        order = from_message(Order, text, [column for part in parts for column in part.arrays])
        order = replace(order, requests=np.concatenate([NONE, *requests]))
        report = self._shard.advance(order)
        self._next += 1
        self._answer = list(self._answers(self._shard, last, order, report))
        return self._answer

    def _answers(
        self, shard: Shard, request: pb.AdvanceWindowsRequest, order: Order, report: Report
    ) -> Iterator[pb.AdvanceWindowsResponse]:
        numbers = np.concatenate([report.left, report.first_tokens])
        if request.live or order.last:
            numbers = np.concatenate([numbers, shard.in_hand()])
        for part in self._spans_so_far():
            yield pb.AdvanceWindowsResponse(sequence=request.sequence, spans=part, more=True)
        *tables, last = pieces(numbers, self._table.rows(numbers))
        for table in tables:
            yield pb.AdvanceWindowsResponse(sequence=request.sequence, rows=table, more=True)
        *pieces_of_events, events = event_messages(report.kv_events)
        for piece in pieces_of_events:
            yield pb.AdvanceWindowsResponse(sequence=request.sequence, kv_events=piece, more=True)
        *texts, final = in_pieces(*to_message(replace(report, kv_events=())))
        for text, arrays in texts:
            yield pb.AdvanceWindowsResponse(sequence=request.sequence, report=text, arrays=arrays, more=True)
        yield pb.AdvanceWindowsResponse(
            sequence=request.sequence, report=final[0], arrays=final[1], rows=last, kv_events=events
        )

    def _spans_so_far(self) -> list[Table]:
        spans = np.concatenate(self._spans) if self._spans else np.zeros(0, SPAN)
        self._spans = []
        begins = range(0, len(spans), ROWS_PER_MESSAGE)
        return [spans_to_table(spans[begin : begin + ROWS_PER_MESSAGE]) for begin in begins]

    def _keep(self, replica: int, rows: IntArray, _first_steps: IntArray) -> None:
        block = np.zeros(len(rows), SPAN)
        block["replica"] = replica
        for index, name in enumerate(SpanColumns._fields):
            block[name] = rows[:, index]
        self._spans.append(block)
