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
from types import ModuleType, TracebackType
from typing import Any, ClassVar, Generic, ParamSpec, Self, TypeVar, overload

import grpc
import grpc.aio

from pimserve.cluster.base.rpc.channels import client_channel
from pimserve.cluster.base.rpc.results_stream import receiving
from pimserve.cluster.base.rpc.security import NO_TLS, TlsFiles, bearer, channel_credentials
from pimserve.cluster.client import calls, scheduler_calls
from pimserve.cluster.client.answers import Run
from pimserve.cluster.client.calls import Call, RunFilter, ServiceError, error_of

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


class _Method(Generic[Parameters, Answer]):
    """The method of a client that makes a call; of the asynchronous one, a coroutine."""

    def __init__(self, make: Callable[Parameters, Call[Answer]]) -> None:
        def method(self: Any, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Any:  # noqa: ANN401
            return self._do(make(*args, **kwargs))

        async def coroutine(self: Any, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Any:  # noqa: ANN401
            return await self._do(make(*args, **kwargs))

        # So that help shows a method with the name, arguments and text of its call.
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        signature = inspect.Signature([own, *inspect.signature(make).parameters.values()])
        functions: tuple[Any, Any] = method, coroutine
        for function in functions:
            function.__name__, function.__doc__, function.__signature__ = make.__name__, make.__doc__, signature
        self._method, self._coroutine = method, coroutine

    @overload
    def __get__(self, client: Client, kind: type[Client]) -> Callable[Parameters, Answer]: ...

    @overload
    def __get__(
        self, client: AsyncClient, kind: type[AsyncClient]
    ) -> Callable[Parameters, Coroutine[Any, Any, Answer]]: ...

    def __get__(self, client: Any, kind: type) -> Any:
        return (self._coroutine if issubclass(kind, AsyncClient) else self._method).__get__(client, kind)


class _Base:
    """What both clients are: a channel of their library, and what their calls have in common."""

    _library: ClassVar[ModuleType]

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        tls: TlsFiles = NO_TLS,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self.address = address
        self._metadata = bearer(token)
        self._timeout_s = timeout_s
        self._channel = client_channel(self._library, address, channel_credentials(tls), calls.SERVICE_CONFIG)

    validate = _Method(calls.validate)
    launch = _Method(calls.launch)
    get = _Method(calls.get)
    scenario = _Method(calls.scenario)
    summary = _Method(calls.summary)
    pause = _Method(calls.pause)
    resume = _Method(calls.resume)
    change_speed = _Method(calls.change_speed)
    cancel = _Method(calls.cancel)
    continue_ = _Method(calls.continue_)
    delete = _Method(calls.delete)
    replicas = _Method(scheduler_calls.replicas)
    request = _Method(scheduler_calls.request)
    latencies = _Method(scheduler_calls.latencies)
    ledgers = _Method(scheduler_calls.ledgers)
    devices = _Method(scheduler_calls.devices)
    placement = _Method(scheduler_calls.placement)
    change_scheduler = _Method(scheduler_calls.change_scheduler)
    scale_rate = _Method(scheduler_calls.scale_rate)
    inject = _Method(scheduler_calls.inject)

    def _start(self, call: Call[Any]) -> Any:  # noqa: ANN401 as the library has it
        """Make a call that has one answer."""
        method = self._channel.unary_unary(call.path, _serialize, call.parse)
        return method(call.request, timeout=self._timeout_s, metadata=self._metadata)

    def _open(self, call: Call[Any]) -> Any:  # noqa: ANN401
        """Open a stream of answers."""
        return self._channel.unary_stream(call.path, _serialize, call.parse)(call.request, metadata=self._metadata)

    def _may_wait(self, error: ServiceError, lost_at: float | None) -> bool:
        """Whether a watch that broke off may find its server again."""
        return error.code == "UNAVAILABLE" and lost_at is not None and time.monotonic() - lost_at < _RECONNECT_S


class Client(_Base):
    """A connection to a server, for any number of threads; a context manager.

    Args:
        address: HOST:PORT.
        token: that the server asks for.
        tls: files of the server's authority, and of the client's own certificate; none for a connection without TLS.
        timeout_s: for each call, s; streams have no limit.
    """

    _library: ClassVar[ModuleType] = grpc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def list(self, states: Sequence[str] = (), matching: RunFilter | None = None) -> Iterator[Run]:
        """All runs, newest first; with `states`, those in one of them; or those that the filter lets through."""
        token, matching = "", matching or RunFilter(states)
        while True:
            runs, token = self._do(calls.page(matching, token, _PAGE))
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
        with receiving(out) as receiver:
            for part in self._stream(calls.results(run_id, names)):
                receiver.take(part)
        return receiver.sizes

    def _do(self, call: Call[Answer]) -> Answer:
        try:
            return call.read(self._start(call))
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None

    def _stream(self, call: Call[Answer]) -> Iterator[Answer]:
        stream = self._open(call)
        try:
            for answer in stream:
                yield call.read(answer)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None
        finally:
            stream.cancel()


class AsyncClient(_Base):
    """The same as a coroutine each; an asynchronous context manager. See `Client` for what methods do and raise."""

    _library: ClassVar[ModuleType] = grpc.aio

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def list(self, states: Sequence[str] = (), matching: RunFilter | None = None) -> AsyncIterator[Run]:
        """All runs, newest first."""
        token, matching = "", matching or RunFilter(states)
        while True:
            runs, token = await self._do(calls.page(matching, token, _PAGE))
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
        with receiving(out) as receiver:
            async for part in self._stream(calls.results(run_id, names)):
                receiver.take(part)
        return receiver.sizes

    async def _do(self, call: Call[Answer]) -> Answer:
        try:
            return call.read(await self._start(call))
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self.address) from None

    async def _stream(self, call: Call[Answer]) -> AsyncIterator[Answer]:
        stream = self._open(call)
        try:
            async for answer in stream:
                yield call.read(answer)
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self.address) from None
        finally:
            stream.cancel()
