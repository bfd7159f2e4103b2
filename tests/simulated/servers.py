"""Stand-ins for gRPC's servers: the program's own interceptors and services, called by the simulated network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from tests.simulated.active import world
from tests.simulated.calls import Code, Metadata, ServerCall
from tests.simulated.waiting import Event, Semaphore

if TYPE_CHECKING:
    from tests.simulated.network import Link


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
