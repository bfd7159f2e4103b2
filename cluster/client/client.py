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
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from pimserve.cluster.base.rpc.channels import channel_options
from pimserve.cluster.base.rpc.results_stream import Receiver
from pimserve.cluster.base.rpc.security import NO_TLS, TlsFiles, bearer, channel_credentials
from pimserve.cluster.client import calls
from pimserve.cluster.client.answers import (
    Injected,
    Latencies,
    Latency,
    Ledger,
    Ledgers,
    Placement,
    Progress,
    Replica,
    ReplicaPlacement,
    Replicas,
    Request,
    Run,
    Validated,
)
from pimserve.cluster.client.calls import Call, ServiceError, error_of

__all__ = [
    "AsyncClient",
    "Client",
    "Injected",
    "Latencies",
    "Latency",
    "Ledger",
    "Ledgers",
    "Placement",
    "Progress",
    "Replica",
    "ReplicaPlacement",
    "Replicas",
    "Request",
    "Run",
    "ServiceError",
    "TlsFiles",
    "Validated",
]

DEFAULT_ADDRESS = "127.0.0.1:50051"
_TIMEOUT_S = 30.0
_RECONNECT_S = 30.0  # that a watch outlives its server
_AGAIN_S = 0.5
_PAGE = 200
Answer = TypeVar("Answer")


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
        credentials, options = channel_credentials(tls), channel_options(calls.SERVICE_CONFIG)
        self._channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def validate(self, scenario: str, overrides: Sequence[str] = (), trace: str = "") -> Validated:
        """Check a scenario (YAML) without launching it.

        Raises:
            ServiceError: it is not acceptable (`violations` says where), or the server does not answer.
        """
        return self._do(calls.validate(calls.scenario(scenario, overrides, trace)))

    def launch(
        self,
        scenario: str,
        overrides: Sequence[str] = (),
        trace: str = "",
        *,
        speed: float = 0.0,
        paused: bool = False,
        idempotency_key: str = "",
    ) -> Run:
        """Put a simulation in the queue.

        Args:
            scenario: YAML; empty for the embedded defaults.
            overrides: "path=value" each.
            trace: FORMAT:PATH, a file below the folder that the server has for traces.
            speed: simulated seconds per second; 0: as fast as possible.
            paused: hold it before its first step.
            idempotency_key: a second launch with the same key gives the run of the first.
        """
        document = calls.scenario(scenario, overrides, trace)
        return self._do(calls.launch(document, speed, idempotency_key, paused=paused))

    def get(self, run_id: str) -> Run:
        """One run."""
        return self._do(calls.get(run_id))

    def scenario(self, run_id: str) -> str:
        """The scenario of a run, with all defaults and catalogue entries; YAML."""
        return self._do(calls.scenario_of(run_id))

    def list(self, states: Sequence[str] = ()) -> Iterator[Run]:
        """All runs, newest first; with `states`, those in one of them."""
        token = ""
        while True:
            found, token = self._do(calls.page(states, token, _PAGE))
            yield from found
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

    def pause(self, run_id: str) -> float:
        """Hold a run; returns the simulated time, s."""
        return self._do(calls.pause(run_id))

    def resume(self, run_id: str) -> float:
        """Let a run go on; returns the simulated time, s."""
        return self._do(calls.resume(run_id))

    def cancel(self, run_id: str) -> Run:
        """End a run without results; it may take until the end of its window."""
        return self._do(calls.cancel(run_id))

    def delete(self, run_id: str) -> None:
        """Forget a run that has ended, and its results."""
        self._do(calls.delete(run_id))

    def results(self, run_id: str, out: Path, names: Sequence[str] = ()) -> dict[str, int]:
        """Fetch the results of a run, or the files of those names, into a new folder; returns the size of each file."""
        with Receiver(out) as receiver:
            for part in self._stream(calls.results(run_id, names)):
                receiver.take(part)
        return receiver.sizes

    def replicas(self, run_id: str) -> Replicas:
        """Queue and batch of every replica of a run that goes on."""
        return self._do(calls.replicas(run_id))

    def request(self, run_id: str, number: int) -> Request:
        """One request's life."""
        return self._do(calls.request(run_id, number))

    def latencies(self, run_id: str, percentiles: Sequence[float] = ()) -> Latencies:
        """Percentiles so far (default: 50, 90, 99), and SLO attainment."""
        return self._do(calls.latencies(run_id, percentiles))

    def ledgers(self, run_id: str) -> Ledgers:
        """What the devices of each replica have done."""
        return self._do(calls.ledgers(run_id))

    def placement(self, run_id: str) -> Placement:
        """Which devices each replica has."""
        return self._do(calls.placement(run_id))

    def change_scheduler(
        self,
        run_id: str,
        *,
        router: str | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
    ) -> float:
        """Change settings for the rest of the run; returns since which simulated time they hold, s."""
        return self._do(calls.change_scheduler(run_id, router, max_num_seqs, max_num_batched_tokens))

    def scale_rate(self, run_id: str, factor: float) -> float:
        """Let requests come `factor` times as fast from now on; returns since which simulated time, s."""
        return self._do(calls.scale_rate(run_id, factor))

    def inject(
        self, run_id: str, input_tokens: Sequence[int], output_tokens: Sequence[int], delay_s: float = 0.0
    ) -> Injected:
        """Add requests that arrive `delay_s` simulated seconds from now."""
        return self._do(calls.inject(run_id, input_tokens, output_tokens, delay_s))

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
        credentials, options = channel_credentials(tls), channel_options(calls.SERVICE_CONFIG)
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options)
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

    async def validate(self, scenario: str, overrides: Sequence[str] = (), trace: str = "") -> Validated:
        """Check a scenario."""
        return await self._do(calls.validate(calls.scenario(scenario, overrides, trace)))

    async def launch(
        self,
        scenario: str,
        overrides: Sequence[str] = (),
        trace: str = "",
        *,
        speed: float = 0.0,
        paused: bool = False,
        idempotency_key: str = "",
    ) -> Run:
        """Put a simulation in the queue."""
        document = calls.scenario(scenario, overrides, trace)
        return await self._do(calls.launch(document, speed, idempotency_key, paused=paused))

    async def get(self, run_id: str) -> Run:
        """One run."""
        return await self._do(calls.get(run_id))

    async def scenario(self, run_id: str) -> str:
        """The scenario of a run."""
        return await self._do(calls.scenario_of(run_id))

    async def list(self, states: Sequence[str] = ()) -> AsyncIterator[Run]:
        """All runs, newest first."""
        token = ""
        while True:
            found, token = await self._do(calls.page(states, token, _PAGE))
            for run in found:
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

    async def pause(self, run_id: str) -> float:
        """Hold a run."""
        return await self._do(calls.pause(run_id))

    async def resume(self, run_id: str) -> float:
        """Let a run go on."""
        return await self._do(calls.resume(run_id))

    async def cancel(self, run_id: str) -> Run:
        """End a run."""
        return await self._do(calls.cancel(run_id))

    async def delete(self, run_id: str) -> None:
        """Forget a run."""
        await self._do(calls.delete(run_id))

    async def results(self, run_id: str, out: Path, names: Sequence[str] = ()) -> dict[str, int]:
        """Fetch results."""
        with Receiver(out) as receiver:
            async for part in self._stream(calls.results(run_id, names)):
                receiver.take(part)
        return receiver.sizes

    async def replicas(self, run_id: str) -> Replicas:
        """Queue and batch of every replica."""
        return await self._do(calls.replicas(run_id))

    async def request(self, run_id: str, number: int) -> Request:
        """One request's life."""
        return await self._do(calls.request(run_id, number))

    async def latencies(self, run_id: str, percentiles: Sequence[float] = ()) -> Latencies:
        """Percentiles so far, and SLO attainment."""
        return await self._do(calls.latencies(run_id, percentiles))

    async def ledgers(self, run_id: str) -> Ledgers:
        """What the devices of each replica have done."""
        return await self._do(calls.ledgers(run_id))

    async def placement(self, run_id: str) -> Placement:
        """Which devices each replica has."""
        return await self._do(calls.placement(run_id))

    async def change_scheduler(
        self,
        run_id: str,
        *,
        router: str | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
    ) -> float:
        """Change settings for the rest of the run."""
        return await self._do(calls.change_scheduler(run_id, router, max_num_seqs, max_num_batched_tokens))

    async def scale_rate(self, run_id: str, factor: float) -> float:
        """Let requests come faster or slower."""
        return await self._do(calls.scale_rate(run_id, factor))

    async def inject(
        self, run_id: str, input_tokens: Sequence[int], output_tokens: Sequence[int], delay_s: float = 0.0
    ) -> Injected:
        """Add requests."""
        return await self._do(calls.inject(run_id, input_tokens, output_tokens, delay_s))

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
