"""A host's connections to the other hosts of its run, and what has come from them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import partial

from pimserve.cluster.base.rpc.request_stream import RequestStream
from pimserve.cluster.base.rpc.statuses import HostUnavailableError, WrongStateError
from pimserve.cluster.distributed.devices.host_client import Connection, call_all
from pimserve.cluster.distributed.devices.turn import Exchange, Turn
from pimserve.v1 import device_pb2 as pb

_DEADLINE_S = 20.0  # of a single call
_MOST_WAITING = 64  # messages of a host for spans that have not come here yet
_Key = tuple[int, int, int]  # replica, phase, first step
_Outgoing = RequestStream[pb.ExchangeTokensRequest]


class Peers:
    """Channels to other hosts.

    Args:
        token: of the run; "" for none.
        inbox: that waits for what peers send.
    """

    def __init__(self, token: str, inbox: Inbox) -> None:
        self._token = token
        self._inbox = inbox
        self._peers: dict[str, _Peer] = {}

    def connect(self, addresses: Mapping[str, str]) -> None:
        """Where the other hosts are, from now on."""
        for host, peer in list(self._peers.items()):
            if addresses.get(host) != peer.address:
                self._peers.pop(host).close()
        for host, address in addresses.items():
            if host not in self._peers:
                self._inbox.reachable(host)
                self._peers[host] = _Peer(host, address, self._token, self._inbox)

    def call(self, method: str, requests: Mapping[str, object]) -> None:
        """Call a method of peers.

        Raises:
            HostUnavailableError: some cannot be reached.
        """
        call_all(self._peers, method, requests)

    def send(self, host: str, request: pb.ExchangeTokensRequest) -> None:
        """Put a step's message on its way; whether it came is seen by what the peer sends."""
        self._peers[host].send(request)

    def close(self) -> None:
        """Close all channels."""
        self.connect({})


class _Peer(Connection):
    """One other host, with a stream of step messages that is opened when it is needed, or was broken."""

    def __init__(self, host: str, address: str, token: str, inbox: Inbox) -> None:
        super().__init__(host, address, token, _DEADLINE_S)
        self._inbox = inbox
        self._lock = threading.RLock()
        self._outgoing: _Outgoing | None = None

    def send(self, request: pb.ExchangeTokensRequest) -> None:
        with self._lock:
            outgoing = self._outgoing
            if outgoing is None:
                self._outgoing = outgoing = _Outgoing(partial(self.stub.ExchangeTokens.future, metadata=self.metadata))
                outgoing.call.add_done_callback(partial(self._ended, outgoing))  # called here, if it has failed already
            outgoing.send(request)

    def close(self) -> None:
        with self._lock:
            outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            outgoing.end()
        super().close()

    def _ended(self, outgoing: _Outgoing, _: object) -> None:
        """The stream was broken: the next message opens another, and the thread that feeds this one may end."""
        outgoing.end()
        with self._lock:
            if self._outgoing is not outgoing:
                return
            self._outgoing = None
        self._inbox.lost(self.name)


class Inbox:
    """What peers, and this host itself, have sent for spans that are not done here yet."""

    def __init__(self) -> None:
        self._exchanges: dict[_Key, dict[str, Exchange]] = {}  # of each host
        self._missing: dict[_Key, set[str]] = {}  # of spans that somebody waits for
        self._done: dict[int, int] = {}  # by replica, first step of the last spans that are done
        self._lost: set[str] = set()
        self._came = threading.Condition()

    def lost(self, host: str) -> None:
        """A host cannot be reached; nothing more will come from it."""
        with self._came:
            self._lost.add(host)
            self._came.notify_all()

    def reachable(self, host: str) -> None:
        """A host has another address."""
        with self._came:
            self._lost.discard(host)

    def put(self, exchange: Exchange) -> None:
        """Something has come; again, where spans are repeated.

        Raises:
            WrongStateError: too much waits from this host already.
        """
        host, key = exchange.host, (exchange.replica, exchange.phase, exchange.first_step)
        with self._came:
            self._lost.discard(host)
            if exchange.first_step <= self._done.get(exchange.replica, -1):
                return
            if sum(host in exchanges for exchanges in self._exchanges.values()) >= _MOST_WAITING:
                raise WrongStateError(f"host {host} is {_MOST_WAITING} messages ahead")
            self._exchanges.setdefault(key, {})[host] = exchange
            missing = self._missing.get(key)
            if missing is not None:
                missing.discard(host)
                if not missing:  # whoever waits is woken once
                    self._came.notify_all()

    def wait(self, turn: Turn, phase: int, timeout_s: float) -> dict[str, Exchange] | None:
        """What all senders of a turn have sent in a phase; None where the turn is done meanwhile.

        Raises:
            HostUnavailableError: some of it has not come in time, or cannot come.
        """
        replica, step = turn.spans.replica, turn.first_step
        key, until = (replica, phase, step), time.monotonic() + timeout_s
        with self._came:
            missing = self._missing[key] = turn.senders(phase) - self._exchanges.get(key, {}).keys()
            try:
                while missing:
                    if step <= self._done.get(replica, -1):
                        return None
                    if gone := missing & self._lost:
                        raise HostUnavailableError(tuple(sorted(gone)), "cannot be reached")
                    if not self._came.wait(until - time.monotonic()):
                        raise HostUnavailableError(
                            tuple(sorted(missing)), f"nothing came for step {step} of replica {replica}"
                        )
            finally:
                self._missing.pop(key, None)
            return dict(self._exchanges.get(key, {}))

    def clear(self) -> None:
        """Forget what came and what was done."""
        with self._came:
            self._exchanges.clear()
            self._done.clear()

    def done(self, turn: Turn) -> None:
        """Spans and those before them are done."""
        replica, step = turn.spans.replica, turn.first_step
        with self._came:
            self._done[replica] = max(step, self._done.get(replica, -1))
            for key in [key for key in self._exchanges if key[0] == replica and key[2] <= step]:
                del self._exchanges[key]
            self._came.notify_all()
