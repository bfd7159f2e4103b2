"""A host's connections to the other hosts of its run, and what has come from them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial

from pimserve.cluster.base.rpc.request_stream import RequestStream
from pimserve.cluster.base.rpc.statuses import HostUnavailableError, WrongStateError
from pimserve.cluster.distributed.devices.host_client import Connection, call_all
from pimserve.cluster.distributed.devices.turn import Exchange, Turn
from pimserve.v1 import device_pb2 as pb

_DEADLINE_S = 20.0  # of a single call
_MOST_BYTES = 2**26  # of a host, for spans that have not come here yet
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
            self._inbox.reachable(host)
            if host not in self._peers:
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

    def watch(self, hosts: Iterable[str]) -> None:
        """Notice when one of these goes that has nothing to be sent: the inbox is told."""
        for host in hosts:
            self._peers[host].open()

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

    def open(self) -> _Outgoing:
        with self._lock:
            outgoing = self._outgoing
            if outgoing is None:
                self._outgoing = outgoing = _Outgoing(partial(self.stub.ExchangeTokens.future, metadata=self.metadata))
                outgoing.call.add_done_callback(partial(self._ended, outgoing))  # called here, if it has failed already
            return outgoing

    def send(self, request: pb.ExchangeTokensRequest) -> None:
        with self._lock:
            self.open().send(request)

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
        self._exchanges: dict[_Key, list[Exchange]] = {}
        self._missing: dict[_Key, set[str]] = {}  # of spans that somebody waits for
        self._held: Counter[str] = Counter()  # bytes by host
        self._done: dict[int, int] = {}  # by replica, the step after those that are done
        self._lost: set[str] = set()
        self._cleared = 0  # how often
        self._changed = threading.Condition()

    def lost(self, host: str) -> None:
        """A host cannot be reached; nothing more will come from it."""
        with self._changed:
            self._lost.add(host)
            self._changed.notify_all()

    def reachable(self, host: str) -> None:
        """A host is there, as far as is known."""
        with self._changed:
            self._lost.discard(host)

    def put(self, exchange: Exchange, timeout_s: float) -> None:
        """Something has come; again, where spans are repeated. Waits while too much of a host's is here.

        Raises:
            WrongStateError: nothing of it was used for so long.
        """
        host, key = exchange.host, (exchange.replica, exchange.phase, exchange.first_step)
        with self._changed:
            self._lost.discard(host)
            if not self._changed.wait_for(lambda: self._late(key) or self._held[host] < _MOST_BYTES, timeout_s):
                raise WrongStateError(f"host {host} is {self._held[host]:,} bytes ahead")
            here = self._exchanges.setdefault(key, [])
            if self._late(key) or any(exchange.same_as(other) for other in here):
                return
            here.append(exchange)
            self._held[host] += exchange.size_bytes
            missing = self._missing.get(key)
            if missing is not None:
                missing.discard(host)
                if not missing:  # whoever waits is woken once
                    self._changed.notify_all()

    def wait(self, turn: Turn, phase: int, timeout_s: float) -> list[Exchange] | None:
        """All that was sent for the spans of a turn in a phase, once something has come of all senders; None where the
        turn is done meanwhile.

        Raises:
            HostUnavailableError: some of it has not come in time, or cannot come.
            WrongStateError: the host goes on from elsewhere.
        """
        replica, step = turn.spans.replica, turn.first_step
        key, until = (replica, phase, step), time.monotonic() + timeout_s
        with self._changed:
            cleared = self._cleared
            missing = self._missing.setdefault(key, set())  # of all who wait for this
            missing |= turn.senders(phase) - {exchange.host for exchange in self._exchanges.get(key, ())}
            while missing and not self._late(key):
                if gone := missing & self._lost:
                    raise HostUnavailableError(tuple(sorted(gone)), "cannot be reached")
                came = self._changed.wait(until - time.monotonic())
                if cleared != self._cleared:
                    raise WrongStateError("the host was told to go on from elsewhere")
                if not came:
                    raise HostUnavailableError(
                        tuple(sorted(missing)), f"nothing came for step {step} of replica {replica}"
                    )
            return None if self._late(key) else self._of_spans(replica, phase, turn.end_step)

    def clear(self) -> None:
        """Forget what came and what was done."""
        with self._changed:
            for kept in (self._exchanges, self._missing, self._held, self._done):
                kept.clear()
            self._cleared += 1
            self._changed.notify_all()

    def done(self, turn: Turn) -> None:
        """Spans and those before them are done."""
        replica, end = turn.spans.replica, turn.end_step
        with self._changed:
            self._done[replica] = max(end, self._done.get(replica, 0))
            for key in [key for key in self._missing if key[0] == replica and key[2] < end]:
                del self._missing[key]
            for key in [key for key in self._exchanges if key[0] == replica and key[2] < end]:
                for exchange in self._exchanges.pop(key):
                    self._held[exchange.host] -= exchange.size_bytes
            self._changed.notify_all()

    def _late(self, key: _Key) -> bool:
        replica, _, step = key
        return step < self._done.get(replica, 0)

    def _of_spans(self, replica: int, phase: int, end: int) -> list[Exchange]:
        """All that came for steps before `end` and is not done: what begins elsewhere than the spans is among it."""
        some = [key for key in self._exchanges if key[0] == replica and key[1] == phase and key[2] < end]
        return [exchange for key in sorted(some) for exchange in self._exchanges[key]]
