"""Stand-ins for gRPC's channels and servers: serialised messages between processes, over connections that may break.

As with TCP, what comes over a connection comes in order within a call, and nothing is lost but with the connection.
So messages are delayed, by as much as the seed likes, those of different calls overtake each other, and connections
break with what is under way: then a request was lost, or was carried out and its answer lost, and is made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc

from tests.simulated.active import world
from tests.simulated.calls import ClientCall, Code, Metadata, ServerCall
from tests.simulated.loop import Process
from tests.simulated.servers import SimServer

_CONNECT_S = 20.0  # that a connection is tried, unless the channel says otherwise
_BACKOFF_S = (0.8, 1.2)  # in which calls fail at once after one could not be made


@dataclass(eq=False)
class Link:
    """A connection from a process to a server."""

    client: Process
    server: SimServer
    ping_s: float  # after which an end that hears nothing asks,
    answer_s: float  # and how long it waits then
    calls: dict[ClientCall, dict[str, float]] = field(default_factory=dict)  # when the last message of each way comes
    broken: bool = False
    cut: bool = False  # by a partition
    late: list[Callable[[], None]] = field(default_factory=list)  # what came meanwhile

    @property
    def silent(self) -> bool:
        return self.cut or self.client.stopped or self.server.process.stopped

    def carry(self, call: ClientCall, way: str, arrive: Callable[[], None]) -> None:
        """A message of a call goes `there` or `back`."""
        net, loop = world().network, world().loop
        if self.broken or call not in self.calls:
            return
        ways = self.calls[call]
        ways[way] = at = max(ways.get(way, 0.0), loop.now_s + net.delay_s())
        loop.note("message", self.client.name, way, self.server.process.name, call.method.rpartition("/")[2])
        loop.at(at, lambda: self._arrive(way, arrive))

    def _arrive(self, way: str, arrive: Callable[[], None]) -> None:
        receiver = self.server.process if way == "there" else self.client
        if self.broken or receiver.dead:
            return
        if self.cut or receiver.stopped:
            self.late.append(partial(self._arrive, way, arrive))
        else:
            arrive()

    def catch_up(self) -> None:
        """Nothing keeps it silent any more."""
        late, self.late = self.late, []
        for arrive in late:
            arrive()

    def fall_silent(self) -> None:
        """Keepalive finds out, unless it is over before."""
        loop = world().loop
        found_out_s = self.answer_s + loop.rng.uniform(0, self.ping_s)
        loop.after(found_out_s, lambda: self.silent and self.shut("keepalive watchdog timeout"))

    def shut(self, why: str) -> None:
        """It breaks, with all that is under way."""
        if self.broken:
            return
        self.broken = True
        world().loop.note("break", self.client.name, self.server.process.name, why)
        self.server.links.pop(self, None)
        for call in list(self.calls):
            if call.server_end is not None and not self.server.process.dead:
                world().loop.after(world().network.delay_s(), call.server_end.drop)  # one end knows before the other
            if not self.client.dead:
                call.finish(Code.UNAVAILABLE, why)
        self.calls.clear()


class Network:
    """All servers, and what is wrong with the network.

    Args:
        mean_s: delay of a message, on average.
    """

    def __init__(self, mean_s: float) -> None:
        self.servers: dict[str, SimServer] = {}  # that answer, by address
        self.cuts: set[tuple[str, str]] = set()
        self.mean_s = mean_s
        self._ports = 40_000

    def delay_s(self) -> float:
        """Of a message."""
        rng = world().loop.rng
        mean = self.mean_s * 30 if rng.random() < 0.01 else self.mean_s
        return rng.expovariate(1 / mean)

    def port(self) -> int:
        """A free one; now and then one that a dead process had."""
        rng = world().loop.rng
        freed = [int(at.rpartition(":")[2]) for at, server in self.servers.items() if server.process.dead]
        freed = [port for port in freed if port <= self._ports]  # not one that somebody asked for
        if freed and rng.random() < 0.5:
            return rng.choice(freed)
        self._ports += 1
        return self._ports

    def links(self) -> list[Link]:
        """All connections."""
        return [link for server in self.servers.values() for link in server.links]

    def is_cut(self, one: Process, other: Process) -> bool:
        return (one.name, other.name) in self.cuts or (other.name, one.name) in self.cuts

    def of(self, process: Process) -> list[Link]:
        """Connections of a process."""
        return [link for link in self.links() if process in {link.client, link.server.process}]

    def stopped(self, process: Process) -> None:
        """It answers nothing any more."""
        for link in self.of(process):
            link.fall_silent()

    def goes_on(self, process: Process) -> None:
        """It answers again."""
        for link in self.of(process):
            if not link.silent:
                link.catch_up()

    def cut(self, one: str, other: str) -> None:
        """Nothing goes between two processes."""
        world().loop.note("cut", one, other)
        self.cuts.add((one, other))
        for link in self.links():
            if {link.client.name, link.server.process.name} == {one, other}:
                link.cut = True
                link.fall_silent()

    def heal(self) -> None:
        """All partitions are over."""
        if not self.cuts:
            return
        world().loop.note("heal")
        self.cuts.clear()
        for link in self.links():
            link.cut = False
            if not link.silent:
                link.catch_up()


class Channel(grpc.Channel):  # type: ignore[misc]
    """A channel, and the one connection that it has."""

    def __init__(self, target: str, options: dict[str, Any]) -> None:
        self._options = options
        self._process = world().loop.check().process
        self._target = target
        self._link: Link | None = None
        self._retry_s = -math.inf
        self._closed = False

    def _method(
        self,
        kind: tuple[bool, bool],
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> Method:
        return Method(self, method, request_serializer or bytes, response_deserializer or bytes, kind)

    def unary_unary(self, *how: Any, **more: Any) -> Method:
        return self._method((False, False), *how, **more)

    def unary_stream(self, *how: Any, **more: Any) -> Method:
        return self._method((False, True), *how, **more)

    def stream_unary(self, *how: Any, **more: Any) -> Method:
        return self._method((True, False), *how, **more)

    def stream_stream(self, *how: Any, **more: Any) -> Method:
        return self._method((True, True), *how, **more)

    def begin(
        self, call: ClientCall, requests: Iterator[bytes] | list[bytes], metadata: Metadata, ends_s: float
    ) -> None:
        """Make a call."""
        loop = world().loop
        if self._closed:
            raise ValueError("Cannot invoke RPC on closed channel!")
        if ends_s < math.inf:
            call.deadline = loop.at(ends_s, lambda: call.give_up(Code.DEADLINE_EXCEEDED, "Deadline Exceeded"))
        link = self._connected(call)
        if link is None:
            return
        call.link = link
        link.calls[call] = {}
        call.server_end = end = ServerCall(call, link, link.server.process, metadata, ends_s)
        link.carry(call, "there", lambda: link.server.begin(end, call.method))
        if isinstance(requests, list):
            for data in requests:
                link.carry(call, "there", partial(end.put, data))
            link.carry(call, "there", end.close)
        else:
            loop.spawn(self._process, lambda: self._feed(call, end, link, requests), "requests")

    def _feed(self, call: ClientCall, end: ServerCall, link: Link, requests: Iterator[bytes]) -> None:
        for data in requests:
            if not call.is_active():
                return
            link.carry(call, "there", partial(end.put, data))
        link.carry(call, "there", end.close)

    def _connected(self, call: ClientCall) -> Link | None:
        loop, net = world().loop, world().network
        if self._link is not None and not self._link.broken:
            return self._link
        server = net.servers.get(self._target)
        if loop.now_s < self._retry_s:
            self._fail(call, 0.0, "failed to connect to all addresses")
        elif server is None or server.process.dead or server.stopping:
            self._retry_s = loop.now_s + loop.rng.uniform(*_BACKOFF_S)
            self._fail(call, net.delay_s(), "failed to connect to all addresses: Connection refused")
        elif net.is_cut(self._process, server.process):
            connect_s = self._seconds("min_reconnect_backoff", _CONNECT_S)
            self._retry_s = loop.now_s + connect_s
            self._fail(call, connect_s, "failed to connect to all addresses: timeout")
        else:
            self._link = link = Link(
                self._process, server, self._seconds("keepalive_time"), self._seconds("keepalive_timeout")
            )
            server.links[link] = None
            self._process.at_end.append(lambda: loop.after(net.delay_s(), partial(link.shut, "Socket closed")))
            return link
        return None

    def _seconds(self, option: str, otherwise_s: float = 0.0) -> float:
        return self._options.get(f"grpc.{option}_ms", 1000 * otherwise_s) / 1000

    def _fail(self, call: ClientCall, delay_s: float, why: str) -> None:
        world().loop.after(delay_s, lambda: call.finish(Code.UNAVAILABLE, why))

    def close(self) -> None:
        world().loop.check()
        self._closed = True
        if self._link is not None and not self._link.broken:
            for call in list(self._link.calls):
                call.finish(Code.CANCELLED, "Channel closed!")
            link = self._link
            world().loop.after(world().network.delay_s(), lambda: link.shut("closed"))

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        raise NotImplementedError

    def unsubscribe(self, callback: Any) -> None:
        raise NotImplementedError

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Method:
    """A method of a stub."""

    channel: Channel
    path: str
    serialize: Callable[[Any], bytes]
    parse: Callable[[bytes], Any]
    kind: tuple[bool, bool]

    def __call__(self, request: Any, timeout: float | None = None, metadata: Metadata | None = None, **_: Any) -> Any:
        """The answer, or with a stream of answers the call."""
        call = self.future(request, timeout, metadata)
        return call if self.kind[1] else call.result()

    def future(
        self, request: Any, timeout: float | None = None, metadata: Metadata | None = None, **_: Any
    ) -> ClientCall:
        """The call."""
        loop = world().loop
        loop.give_way()
        call = ClientCall(loop.check().process, self.path, self.parse, streams=self.kind[1])
        requests = map(self.serialize, request) if self.kind[0] else [self.serialize(request)]
        self.channel.begin(call, requests, tuple(metadata or ()), math.inf if timeout is None else loop.now_s + timeout)
        return call


def make_channel(target: str, options: Any = None, **_: Any) -> Channel:
    """As `grpc.insecure_channel`."""
    return Channel(target, dict(options or ()))
