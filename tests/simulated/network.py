"""Stand-ins for gRPC's channels and servers: serialised messages between processes, over connections that may break.

As with TCP, what comes over a connection comes in order within a call, and nothing is lost but with the connection.
So messages are delayed, by as much as the seed likes, those of different calls overtake each other, and connections
break with what is under way: then a request was lost, or was carried out and its answer lost, and is made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc

from tests.simulated.active import world
from tests.simulated.calls import ClientCall, Code, Metadata, ServerCall
from tests.simulated.loop import Process
from tests.simulated.waiting import Event, Semaphore

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


@dataclass(frozen=True)
class Details:
    """What interceptors look at."""

    method: str
    invocation_metadata: Metadata


class SimServer(grpc.Server):  # type: ignore[misc]
    """A server of the process that makes it."""

    def __init__(self, threads: int, interceptors: Sequence[Any], most: int) -> None:
        self.process = world().loop.check().process
        self.links: dict[Link, None] = {}
        self.stopping = False
        self._addresses: list[str] = []
        self._handlers: list[Any] = []
        self._interceptors = interceptors
        self._threads = Semaphore(threads)
        self._most = most
        self._calls: dict[ServerCall, None] = {}

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        self._handlers += generic_rpc_handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """The same, once more."""

    def add_insecure_port(self, address: str) -> int:
        loop, net = world().loop, world().network
        host, _, port = address.rpartition(":")
        number = int(port) or net.port()
        self._addresses.append(f"{host}:{number}")
        self.process.at_end.append(lambda: loop.after(net.delay_s(), partial(self._gone, "Socket closed")))
        return number

    def add_secure_port(self, address: str, server_credentials: Any) -> int:
        raise NotImplementedError

    def start(self) -> None:
        world().network.servers |= dict.fromkeys(self._addresses, self)

    def stop(self, grace: float | None) -> Event:
        over = Event()
        self.stopping = True
        loop = world().loop
        loop.spawn(self.process, lambda: self._stop(grace or 0.0, over), "stopping")
        return over

    def _stop(self, grace_s: float, over: Event) -> None:
        loop = world().loop
        deadline_s = loop.now_s + grace_s
        while self._calls and loop.now_s < deadline_s:
            loop.park(min(0.05, deadline_s - loop.now_s))
        self._gone("server stopped")
        over.set()

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        raise NotImplementedError

    def _gone(self, why: str) -> None:
        for link in sorted(self.links, key=lambda link: link.client.name):
            link.shut(why)

    def begin(self, call: ServerCall, method: str) -> None:
        """A call has come."""
        if self.stopping:
            call.end(Code.UNAVAILABLE, "the server is stopping", ())
        elif len(self._calls) >= self._most:
            call.end(Code.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", ())
        else:
            self._calls[call] = None
            world().loop.spawn(self.process, lambda: self._serve(call, method), method.rpartition("/")[2])

    def _serve(self, call: ServerCall, method: str) -> None:
        try:
            with self._threads:
                self._answer(call, method)
        finally:
            self._calls.pop(call, None)

    def _answer(self, call: ServerCall, method: str) -> None:
        handler = self._handler(Details(method, call.invocation_metadata()))
        if handler is None:
            call.end(Code.UNIMPLEMENTED, "Method not found!", ())
            return
        parse, dump = handler.request_deserializer or bytes, handler.response_serializer or bytes
        behave = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        try:
            if handler.request_streaming:
                answers = behave(map(parse, call), call)
            else:
                data = next(call, None)
                if data is None:
                    return
                answers = behave(parse(data), call)
            for answer in answers if handler.response_streaming else [answers]:
                call.answer(dump(answer))
                world().loop.give_way(0.3)
                if call.over:
                    return
        except Exception as error:  # noqa: BLE001 as gRPC does
            if call.aborted is not None:
                call.end(*call.aborted)
                return
            if not call.over:
                world().loop.finding(f"{self.process.name}: {method} raised {type(error).__name__}: {error}")
            call.end(Code.UNKNOWN, f"Exception calling application: {error}", ())
            return
        call.end(Code.OK, "", ())

    def _handler(self, details: Details) -> Any:
        def of_services(details: Details) -> Any:
            return next((found for one in self._handlers if (found := one.service(details)) is not None), None)

        ask = of_services
        for interceptor in reversed(self._interceptors):
            ask = partial(interceptor.intercept_service, ask)
        return ask(details)


def make_server(
    _pool: Any,
    handlers: Any = None,
    interceptors: Sequence[Any] | None = None,
    options: Any = None,
    maximum_concurrent_rpcs: int | None = None,
    **_: Any,
) -> SimServer:
    """As `grpc.server`."""
    return SimServer(_pool._max_workers, interceptors or (), maximum_concurrent_rpcs or 10**9)


def make_channel(target: str, options: Any = None, **_: Any) -> Channel:
    """As `grpc.insecure_channel`."""
    return Channel(target, dict(options or ()))
