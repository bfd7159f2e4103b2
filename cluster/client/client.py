"""Talk to a pimserve server: `Client`, and `AsyncClient` with the same methods as coroutines.

    with Client("127.0.0.1:50051") as client:
        run = client.launch(scenario_text, speed=60)
        for run in client.watch(run.id):
            print(run.progress)
        client.results(run.id, Path("results/mine"))

Answers are plain dataclasses. What goes wrong is a `ServiceError`. Calls that may be made twice are tried again while
the server cannot be reached; others are not.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc
import grpc.aio

from pimserve.cluster.base.rpc.channels import client_channel
from pimserve.cluster.base.rpc.results_stream import Receiver
from pimserve.cluster.base.rpc.security import NO_TLS, TlsFiles, bearer, channel_credentials
from pimserve.cluster.client import calls
from pimserve.cluster.client.answers import Run
from pimserve.cluster.client.calls import Call, ServiceError, error_of

DEFAULT_ADDRESS = "127.0.0.1:50051"
_TIMEOUT_S = 30.0
_RECONNECT_S = 30.0  # that a watch outlives its server
_AGAIN_S = 0.5
_PAGE = 200
Answer = TypeVar("Answer")
Parameters = ParamSpec("Parameters")


def _serialize(request: Any) -> bytes:  # noqa: ANN401 any message
    data: bytes = request.SerializeToString()
    return data


class _Base:
    """What both clients know: where the server is, and what it asks for."""

    def __init__(self, address: str, token: str | None, timeout_s: float) -> None:
        self.address = address
        self._metadata = bearer(token)
        self._timeout_s = timeout_s

    def _may_wait(self, error: ServiceError, lost_at: float | None) -> bool:
        """Whether a watch that broke off may find its server again."""
        return error.code == "UNAVAILABLE" and lost_at is not None and time.monotonic() - lost_at < _RECONNECT_S


def _unary(make: Callable[Parameters, Call[Answer]]) -> Callable[Concatenate[Client, Parameters], Answer]:
    """The method of a client that makes a call."""

    def method(self: Client, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        return self._do(make(*args, **kwargs))

    _describe(method, make)
    return method


def _unary_async(
    make: Callable[Parameters, Call[Answer]],
) -> Callable[Concatenate[AsyncClient, Parameters], Coroutine[Any, Any, Answer]]:
    """The same of an asynchronous client."""

    async def method(self: AsyncClient, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        return await self._do(make(*args, **kwargs))

    _describe(method, make)
    return method


def _describe(method: Any, make: Callable[..., Any]) -> None:  # noqa: ANN401 a function
    """Let help show a method with the name, arguments and text of its call."""
    method.__name__, method.__doc__ = make.__name__, make.__doc__
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = inspect.Signature([own, *inspect.signature(make).parameters.values()])


class Client(_Base):
    """A connection to a server, for any number of threads; a context manager.

    Args:
        address: HOST:PORT.
        token: that the server asks for.
        tls: files of the server's authority, and of the client's own certificate; none for a connection without TLS.
        timeout_s: for each call, s; streams have no limit.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        tls: TlsFiles = NO_TLS,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        super().__init__(address, token, timeout_s)
        credentials = channel_credentials(tls)
        self._channel: grpc.Channel = client_channel(grpc, address, credentials, calls.SERVICE_CONFIG)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    validate = _unary(calls.validate)
    launch = _unary(calls.launch)
    get = _unary(calls.get)
    scenario = _unary(calls.scenario)
    pause = _unary(calls.pause)
    resume = _unary(calls.resume)
    cancel = _unary(calls.cancel)
    delete = _unary(calls.delete)
    replicas = _unary(calls.replicas)
    request = _unary(calls.request)
    latencies = _unary(calls.latencies)
    ledgers = _unary(calls.ledgers)
    placement = _unary(calls.placement)
    change_scheduler = _unary(calls.change_scheduler)
    scale_rate = _unary(calls.scale_rate)
    inject = _unary(calls.inject)

    def list(self, states: Sequence[str] = ()) -> Iterator[Run]:
        """All runs, newest first; with `states`, those in one of them."""
        token = ""
        while True:
            runs, token = self._do(calls.page(states, token, _PAGE))
            yield from runs
            if not token:
                return

    def watch(self, run_id: str, interval_s: float = 0.5) -> Iterator[Run]:
        """The run as it is, and again when it changed, until it has ended; outlives a restart of the server."""
        lost_at: float | None = None
        while True:
            try:
                for run in self._stream(calls.watch(run_id, interval_s)):
                    lost_at = time.monotonic()
                    yield run
                    if run.ended:
                        return
            except ServiceError as error:
                if not self._may_wait(error, lost_at):
                    raise
            time.sleep(_AGAIN_S)

    def results(self, run_id: str, out: Path, names: Sequence[str] = ()) -> dict[str, int]:
        """Fetch the results of a run, or the files of those names, into a new folder; returns the size of each file."""
        with Receiver(out) as receiver:
            for part in self._stream(calls.results(run_id, names)):
                receiver.take(part)
        return receiver.sizes

    def _do(self, call: Call[Answer]) -> Answer:
        method = self._channel.unary_unary(call.path, _serialize, calls.response_type(call).FromString)
        try:
            return call.read(method(call.request, timeout=self._timeout_s, metadata=self._metadata))
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None

    def _stream(self, call: Call[Answer]) -> Iterator[Answer]:
        method = self._channel.unary_stream(call.path, _serialize, calls.response_type(call).FromString)
        stream = method(call.request, metadata=self._metadata)
        try:
            for answer in stream:
                yield call.read(answer)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None
        finally:
            stream.cancel()


class AsyncClient(_Base):
    """The same as a coroutine each; an asynchronous context manager. See `Client` for what methods do and raise."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        tls: TlsFiles = NO_TLS,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        super().__init__(address, token, timeout_s)
        self._channel: grpc.aio.Channel = client_channel(
            grpc.aio, address, channel_credentials(tls), calls.SERVICE_CONFIG
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    validate = _unary_async(calls.validate)
    launch = _unary_async(calls.launch)
    get = _unary_async(calls.get)
    scenario = _unary_async(calls.scenario)
    pause = _unary_async(calls.pause)
    resume = _unary_async(calls.resume)
    cancel = _unary_async(calls.cancel)
    delete = _unary_async(calls.delete)
    replicas = _unary_async(calls.replicas)
    request = _unary_async(calls.request)
    latencies = _unary_async(calls.latencies)
    ledgers = _unary_async(calls.ledgers)
    placement = _unary_async(calls.placement)
    change_scheduler = _unary_async(calls.change_scheduler)
    scale_rate = _unary_async(calls.scale_rate)
    inject = _unary_async(calls.inject)

    async def list(self, states: Sequence[str] = ()) -> AsyncIterator[Run]:
        """All runs, newest first."""
        token = ""
        while True:
            runs, token = await self._do(calls.page(states, token, _PAGE))
            for run in runs:
                yield run
            if not token:
                return

    async def watch(self, run_id: str, interval_s: float = 0.5) -> AsyncIterator[Run]:
        """The run as it goes, until it has ended."""
        lost_at: float | None = None
        while True:
            try:
                async for run in self._stream(calls.watch(run_id, interval_s)):
                    lost_at = time.monotonic()
                    yield run
                    if run.ended:
                        return
            except ServiceError as error:
                if not self._may_wait(error, lost_at):
                    raise
            await asyncio.sleep(_AGAIN_S)

    async def results(self, run_id: str, out: Path, names: Sequence[str] = ()) -> dict[str, int]:
        """Fetch results."""
        with Receiver(out) as receiver:
            async for part in self._stream(calls.results(run_id, names)):
                receiver.take(part)
        return receiver.sizes

    async def _do(self, call: Call[Answer]) -> Answer:
        method = self._channel.unary_unary(call.path, _serialize, calls.response_type(call).FromString)
        try:
            return call.read(await method(call.request, timeout=self._timeout_s, metadata=self._metadata))
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self.address) from None

    async def _stream(self, call: Call[Answer]) -> AsyncIterator[Answer]:
        method = self._channel.unary_stream(call.path, _serialize, calls.response_type(call).FromString)
        stream = method(call.request, metadata=self._metadata)
        try:
            async for answer in stream:
                yield call.read(answer)
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self.address) from None
        finally:
            stream.cancel()
