"""A device host: the gRPC server in front of the devices that it holds."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from operator import attrgetter

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from pimserve import __version__
from pimserve.cluster.base.rpc.channels import MAX_MESSAGE_BYTES, make_server
from pimserve.cluster.base.rpc.security import HostGuard
from pimserve.cluster.base.rpc.statuses import WrongStateError
from pimserve.cluster.base.wire import to_table
from pimserve.cluster.distributed.devices.exchange import (
    device_ids,
    from_hand_over_table,
    from_message,
    to_hand_over_table,
    to_message,
    traffic_table,
)
from pimserve.cluster.distributed.devices.host_memory import DeviceKey, HostState
from pimserve.cluster.distributed.devices.layer_picks import to_picks_table
from pimserve.cluster.distributed.devices.ledgers import ledger_message, ledgers_of
from pimserve.cluster.distributed.devices.peers import Inbox, Peers
from pimserve.cluster.distributed.devices.span_rows import Spans, from_rows_table, span_of_step
from pimserve.cluster.distributed.devices.turn import COMBINED, DISPATCHED, Exchange
from pimserve.device_models.slowdown import NORMAL
from pimserve.errors import InputError, PimserveError
from pimserve.v1 import device_pb2 as pb
from pimserve.v1.device_pb2_grpc import DeviceServiceServicer, add_DeviceServiceServicer_to_server

_SERVICE = "pimserve.v1.DeviceService"
_THREADS = 1024  # each stream takes one, a peer's and the caller's; they are made when they are needed
_MOST_PEERS = 4096
_Context = grpc.ServicerContext


class DeviceHost:
    """Devices behind a server; made in whatever process they are to live.

    Args:
        name: of the host, which peers know it by.
        token: that all calls must carry; "" for none.
        peer_timeout_s: how long a step waits for what peers send that are there, but busy; beyond it is lost. Less
            than `DEADLINE_S` of the caller, who is then told whose it was.
    """

    def __init__(self, name: str, token: str = "", peer_timeout_s: float = 45.0) -> None:
        self._service = _Service(name, token, peer_timeout_s)
        self._health = health.HealthServicer()
        self._server = make_server(_THREADS, token, [HostGuard(name)])
        add_DeviceServiceServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def start(self, listen: str = "127.0.0.1:0") -> int:
        """Serve at ADDRESS:PORT, port 0 for any; returns the port."""
        port = self._server.add_insecure_port(listen)
        self._server.start()
        self._health.set(_SERVICE, health_pb2.HealthCheckResponse.SERVING)
        return port

    def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, let calls under way end within that time, and stop."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()
        self._service.close()


class _Service(DeviceServiceServicer):
    """The calls; `state` belongs to whoever holds the lock."""

    def __init__(self, name: str, token: str, peer_timeout_s: float) -> None:
        self._name = name
        self._timeout_s = peer_timeout_s
        self._lock = threading.RLock()
        self._compiled: HostState | None = None
        self._draining = False
        self._epoch = 0  # streams that began before a plan was compiled or restored have no say any more
        self._inbox = Inbox()
        self._peers = Peers(token, self._inbox)
        self._incoming: set[_Context] = set()  # streams of peers
        self._messages: Counter[int] = Counter()  # to other hosts, by what they carried
        self._message_bytes = 0

    def close(self) -> None:
        """Close the connections to peers; nobody waits for them any more."""
        self._peers.close()
        self._inbox.clear()

    @property
    def _state(self) -> HostState:
        if self._compiled is None:
            raise WrongStateError("the host has no plan yet")
        return self._compiled

    @property
    def _taking(self) -> HostState:
        """The state, for calls that bring something."""
        if self._draining:
            raise WrongStateError("the host drains, and takes nothing more")
        return self._state

    def _current(self, epoch: int) -> HostState:
        """The state, for a stream that began in this epoch."""
        if epoch != self._epoch:
            raise WrongStateError("the host was told to go on from elsewhere since this stream began")
        return self._taking

    def GetCapabilities(self, request: pb.GetCapabilitiesRequest, context: _Context) -> pb.GetCapabilitiesResponse:  # noqa: N802
        """What the host can do, and what it holds."""
        with self._lock:
            state = self._compiled
            return pb.GetCapabilitiesResponse(
                version=__version__,
                host=self._name,
                devices=[] if state is None else device_ids(state.devices),
                mode=pb.DEVICE_MODE_UNSPECIFIED if state is None else _mode(lockstep=state.lockstep),
                draining=self._draining,
                window=-1 if state is None else state.closed,
                max_message_bytes=MAX_MESSAGE_BYTES,
            )

    def CompilePlan(self, request: pb.CompilePlanRequest, context: _Context) -> pb.CompilePlanResponse:  # noqa: N802
        """Take over devices, and start afresh with them."""
        if request.mode not in {pb.DEVICE_MODE_PLANNED, pb.DEVICE_MODE_LOCKSTEP}:
            raise InputError("mode", "must be planned or lockstep")
        devices = {pool.pool: _device_keys(pool.devices) for pool in request.pools}
        if len(devices) != len(request.pools):
            raise InputError("pools.pool", "must differ")
        with self._lock:
            if self._draining:
                raise WrongStateError("the host drains, and takes nothing more")
            self._compiled = state = HostState.compiled(
                self._name,
                request.scenario,
                devices,
                lockstep=request.mode == pb.DEVICE_MODE_LOCKSTEP,
                audit_share=request.audit_share,
            )
            self._inbox.clear()
            self._epoch += 1
        return pb.CompilePlanResponse(
            plans=[
                pb.PoolPlan(
                    pool=pool.name,
                    digest=pool.plan.digest(),
                    device=pool.label,
                    units=pool.plan.units,
                    devices_per_replica=pool.devices_per_replica,
                    kv_capacity_tokens=pool.kv_capacity_tokens,
                    weight_bytes_per_device=round(pool.replica.weight_bytes_per_device),
                )
                for pool in (of_host.placed for of_host in state.pools.values())
            ]
        )

    def SetPeers(self, request: pb.SetPeersRequest, context: _Context) -> pb.SetPeersResponse:  # noqa: N802
        """Where the other hosts are."""
        if len(request.peers) > _MOST_PEERS:
            raise InputError("peers", f"must be {_MOST_PEERS} at most")
        hosts = [peer.host for peer in request.peers]
        if len(set(hosts)) != len(hosts) or "" in hosts or self._name in hosts:
            raise InputError("peers.host", "must be different names of other hosts")
        with self._lock:
            self._state.set_peers({peer.host: _device_keys(peer.devices) for peer in request.peers})
            self._peers.connect({peer.host: peer.address for peer in request.peers})
        return pb.SetPeersResponse()

    def EvaluateSteps(self, request: pb.EvaluateStepsRequest, context: _Context) -> pb.EvaluateStepsResponse:  # noqa: N802
        """What rows of steps take."""
        with self._lock:
            state = self._state
            limits = state.most_tokens(), state.most_steps(), state.verify_tokens()
            spans = from_rows_table(request.rows, "rows", *limits, without=("duration_fs",))
            times = [state.books[span.replica].evaluate(span) for span in spans]
        # Rows of several replicas come back by replica.
        return pb.EvaluateStepsResponse(rows=to_table({"duration_fs": np.concatenate([*times, np.zeros(0, np.int64)])}))

    def RecordSteps(  # noqa: N802
        self, request_iterator: Iterable[pb.RecordStepsRequest], context: _Context
    ) -> Iterator[pb.RecordStepsResponse]:
        """Take batches of executed steps."""
        epoch = self._epoch
        for request in request_iterator:
            with self._lock:
                state = self._current(epoch)
                _not_negative("window", request.window)
                _not_negative("sequence", request.sequence)
                limits = state.most_tokens(), state.most_steps(), state.verify_tokens()
                batch = from_rows_table(request.rows, "rows", *limits)
                state.begin_batch(request.window, request.sequence, batch)
            for spans in batch:
                for some in state.books[spans.replica].alike(spans):
                    self._execute(some, epoch, context)
            with self._lock:
                self._current(epoch).end_batch(request.window, request.sequence)
            yield pb.RecordStepsResponse(window=request.window, sequence=request.sequence)

    def ExecuteSteps(  # noqa: N802
        self, request_iterator: Iterable[pb.ExecuteStepsRequest], context: _Context
    ) -> Iterator[pb.ExecuteStepsResponse]:
        """Execute steps one by one, together with peers."""
        epoch = self._epoch
        for request in request_iterator:
            with self._lock:
                state = self._current(epoch)
                if not state.lockstep:
                    raise WrongStateError("steps are executed in lockstep mode")
                spans = span_of_step(request, state.most_tokens(), state.verify_tokens())
                devices = state.books[request.replica].devices
            duration = self._execute(spans, epoch, context)
            times = [pb.DeviceTime(device=device, duration_fs=duration) for device in devices]
            yield pb.ExecuteStepsResponse(replica=request.replica, step=request.step, times=times)

    def _execute(self, spans: Spans, epoch: int, context: _Context) -> int:
        """Have devices here do their part of spans of one speed, together with the other devices of the replica.

        Returns:
            The time of the first span by what the devices sent each other, fs.
        """
        try:
            return self._execute_together(spans, epoch)
        except PimserveError:
            if context.is_active():  # peers that wait for this host need not wait any longer
                with self._lock:
                    for stream in list(self._incoming):
                        stream.cancel()
            raise

    def _execute_together(self, spans: Spans, epoch: int) -> int:
        with self._lock:
            turn = self._current(epoch).turn(spans)
        for phase in (DISPATCHED, COMBINED):
            with self._lock:
                self._current(epoch)
                outgoing, senders = turn.outgoing(phase), turn.senders(phase)
                self._peers.watch(senders - {self._name})
            self._send(outgoing)
            came = None if turn.repeated else self._inbox.wait(turn, phase, self._timeout_s)
            with self._lock:
                turn.take(phase, came)
        with self._lock:
            duration = self._current(epoch).executed(turn)
        self._inbox.done(turn)
        return duration

    def _send(self, exchanges: Mapping[str, Exchange]) -> None:
        """Put what devices send on its way, by host; to those of this one there is no network."""
        for host, exchange in exchanges.items():
            if host == self._name:
                self._inbox.put(exchange, self._timeout_s)
                continue
            message = to_message(exchange)
            self._peers.send(host, message)
            with self._lock:
                self._messages.update(set(exchange.flows[:, 2].tolist()))
                self._message_bytes += message.ByteSize()

    def ExchangeTokens(  # noqa: N802
        self, request_iterator: Iterable[pb.ExchangeTokensRequest], context: _Context
    ) -> pb.ExchangeTokensResponse:
        """Take what devices of a peer send in spans of steps."""
        with self._lock:
            self._incoming.add(context)
        context.add_callback(partial(self._incoming.discard, context))
        count = 0
        for request in request_iterator:
            with self._lock:
                state = self._state
                if not state.shares(request.host, request.replica):
                    raise InputError("host", f"{request.host!r} shares no replica {request.replica} with this host")
                experts = state.experts(request.replica, NORMAL)
                done = request.step < state.books[request.replica].next_step
            exchange = from_message(request, self._name, experts)
            if not done:
                self._inbox.put(exchange, self._timeout_s)
            count += 1
        return pb.ExchangeTokensResponse(messages=count)

    def ExchangeTotals(self, request: pb.ExchangeTotalsRequest, context: _Context) -> pb.ExchangeTotalsResponse:  # noqa: N802
        """What earlier versions said at the end of a window: now each message is compared when it is used."""
        return context.abort(grpc.StatusCode.UNIMPLEMENTED, "what devices send is compared step by step")

    def HandOverKv(self, request: pb.HandOverKvRequest, context: _Context) -> pb.HandOverKvResponse:  # noqa: N802
        """Take hand-overs of KV caches, and pass those on that go elsewhere."""
        _not_negative("window", request.window)
        onward: dict[str, pb.HandOverKvRequest] = {}
        with self._lock:
            state = self._taking
            if request.host and request.host not in state.peers:
                raise InputError("host", f"{request.host!r} is no peer")
            source, target = (request.host, self._name) if request.host else (self._name, None)
            entries = from_hand_over_table(request.requests, "requests", source, target, state.home)
            if not request.host:
                if request.window <= state.closed and not state.kv.knows(request.window, ""):
                    raise WrongStateError(f"window {request.window} is closed")
                hosts = np.array([state.home(*receiver) for receiver in entries[:, 5:7].tolist()])
                for host in sorted(set(hosts.tolist()) - {self._name}):
                    table = to_hand_over_table(entries[hosts == host])
                    onward[host] = pb.HandOverKvRequest(window=request.window, host=self._name, requests=table)
            state.kv.take(request.window, request.host, entries, state.here)
        self._peers.call("HandOverKv", onward)
        return pb.HandOverKvResponse()

    def CloseWindow(self, request: pb.CloseWindowRequest, context: _Context) -> pb.CloseWindowResponse:  # noqa: N802
        """End a window."""
        _not_negative("window", request.window)
        with self._lock:
            self._state.close(request.window, request.batches)
        return pb.CloseWindowResponse()

    def ReadTraffic(self, request: pb.ReadTrafficRequest, context: _Context) -> pb.ReadTrafficResponse:  # noqa: N802
        """What was sent and received."""
        with self._lock:
            state = self._state
            sent, received = traffic_table(state.sent()), traffic_table(state.received())
            messages = [
                pb.MessageCount(kind=kind, messages=count)  # type: ignore[arg-type]
                for kind, count in sorted(self._messages.items())
            ]
            picks_sent, picks_received = (
                to_picks_table((book.replica, *entry) for book in state.books.values() for entry in of(book).entries())
                for of in (attrgetter("picks_sent"), attrgetter("picks_received"))
            )
            return pb.ReadTrafficResponse(
                window=state.closed,
                sent=sent,
                received=received,
                messages=messages,
                message_bytes=self._message_bytes,
                picks_sent=picks_sent,
                picks_received=picks_received,
            )

    def ReadLedgers(self, request: pb.ReadLedgersRequest, context: _Context) -> pb.ReadLedgersResponse:  # noqa: N802
        """The ledgers of all devices."""
        with self._lock:
            books, kv = self._state.books.values(), self._state.kv
            ledgers = [ledger for book in books for ledger in ledgers_of(book, kv)]
            return pb.ReadLedgersResponse(ledgers=[ledger_message(ledger) for ledger in ledgers])

    def Snapshot(self, request: pb.SnapshotRequest, context: _Context) -> pb.SnapshotResponse:  # noqa: N802
        """All that the host has in hand."""
        with self._lock:
            return pb.SnapshotResponse(state=self._state.snapshot())

    def Restore(self, request: pb.RestoreRequest, context: _Context) -> pb.RestoreResponse:  # noqa: N802
        """Go on from a snapshot."""
        with self._lock:
            self._taking.restore(request.state)
            self._inbox.clear()
            self._epoch += 1
        return pb.RestoreResponse()

    def Drain(self, request: pb.DrainRequest, context: _Context) -> pb.DrainResponse:  # noqa: N802
        """Take nothing more; what came is finished when this returns."""
        with self._lock:
            self._draining = True
        return pb.DrainResponse()


def _mode(*, lockstep: bool) -> pb.DeviceMode.ValueType:
    return pb.DEVICE_MODE_LOCKSTEP if lockstep else pb.DEVICE_MODE_PLANNED


def _device_keys(ids: Iterable[pb.DeviceId]) -> list[DeviceKey]:
    return [(device.replica, device.device) for device in ids]


def _not_negative(where: str, value: int) -> None:
    if value < 0:
        raise InputError(where, f"must be 0 or more (got {value})")
