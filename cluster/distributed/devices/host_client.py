"""Hosts, as those who call them see them: their calls, and the streams that run ahead of their answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import grpc

from pimserve.cluster.base.rpc.channels import host_channel
from pimserve.cluster.base.rpc.request_stream import RequestStream
from pimserve.cluster.base.rpc.security import for_host
from pimserve.cluster.base.rpc.statuses import HostUnavailableError, errors_of, host_error
from pimserve.cluster.base.supervisor import SILENCE_S
from pimserve.errors import PimserveError
from pimserve.v1 import device_pb2 as pb
from pimserve.v1.device_pb2_grpc import DeviceServiceStub

DEADLINE_S = 60.0  # of a call, and of silence on a stream
_Response = TypeVar("_Response")


class Connection:
    """A connection to a host.

    Args:
        name: of the host.
        address: HOST:PORT.
        token: of the run; "" for none.
        deadline_s: of a call.
        silence_s: of the host, after which calls fail.
    """

    def __init__(
        self,
        name: str,
        address: str,
        token: str,
        deadline_s: float = DEADLINE_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        self.name = name
        self.address = address
        self.metadata = for_host(name, token)
        self.channel = host_channel(address, silence_s)
        self.stub = DeviceServiceStub(self.channel)
        self._deadline_s = deadline_s

    def start(self, method: str, request: object) -> Any:  # noqa: ANN401 a future of the method's response
        """Begin a call."""
        return getattr(self.stub, method).future(request, timeout=self._deadline_s, metadata=self.metadata)

    def call(self, method: str, request: object) -> Any:  # noqa: ANN401 the method's response
        """Make a call.

        Raises:
            PimserveError: it failed.
        """
        return _finish(self.name, self.start(method, request))

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()


class HostConnection(Connection):
    """The connection of the one who drives a host.

    Args:
        name: of the host.
        address: HOST:PORT.
        token: of the run; "" for none.
        in_flight: batches that may wait for their acknowledgement.
        silence_s: of the host, after which calls fail.

    Attributes:
        messages: batches and steps that were sent.
        bytes: of these, serialised.
    """

    def __init__(self, name: str, address: str, token: str, in_flight: int, silence_s: float = SILENCE_S) -> None:
        super().__init__(name, address, token, silence_s=silence_s)
        self.messages = 0
        self.bytes = 0
        self._in_flight = in_flight
        # Batches are serialised once for all hosts that get them.
        self._record: Any = self.channel.stream_stream(
            "/pimserve.v1.DeviceService/RecordSteps",
            request_serializer=None,
            response_deserializer=pb.RecordStepsResponse.FromString,
        )
        self._batches: _Batches | None = None
        self._steps: RequestStream[pb.ExecuteStepsRequest] | None = None

    def send_batch(self, batch: bytes) -> None:
        """Put a batch on its way; waits while too many are unanswered. Nothing is sent once the stream has failed."""
        if self._batches is None:
            self._batches = _Batches(partial(self._record, metadata=self.metadata), self._in_flight)
        self._batches.send(batch)
        self.messages += 1
        self.bytes += len(batch)

    def settled(self) -> None:
        """Wait until all batches are acknowledged.

        Raises:
            PimserveError: some were not taken.
        """
        if self._batches is not None:
            self._batches.settled(self.name)

    @property
    def failure(self) -> PimserveError | None:
        """Why the stream of batches has ended; None while it goes on."""
        error = self._batches.error if self._batches is not None else None
        return None if error is None else host_error(self.name, error)

    def send_step(self, request: pb.ExecuteStepsRequest) -> None:
        """Put a step on its way."""
        if self._steps is None:
            self._steps = RequestStream(partial(self.stub.ExecuteSteps, metadata=self.metadata))
        self._steps.send(request)
        self.messages += 1
        self.bytes += request.ByteSize()

    def receive_step(self) -> pb.ExecuteStepsResponse:
        """The answer to the step that was sent first.

        Raises:
            PimserveError: the host has not answered.
        """
        assert self._steps is not None
        try:
            response: pb.ExecuteStepsResponse = next(self._steps.call)
        except grpc.RpcError as error:
            self._steps.end()
            self._steps = None
            raise host_error(self.name, error) from None
        return response

    def forget_streams(self) -> None:
        """End the streams; the next message opens another."""
        for stream in (self._batches, self._steps):
            if stream is not None:
                stream.close()
        self._batches = self._steps = None

    def close(self) -> None:
        """Close the connection."""
        self.forget_streams()
        super().close()


def _finish(host: str, call: grpc.Future[_Response]) -> _Response:
    """The response of a call that has begun.

    Raises:
        PimserveError: it failed.
    """
    with errors_of(host):
        return call.result()


def all_of(calls: Mapping[str, Callable[[], _Response]]) -> dict[str, _Response]:
    """What each host's call returns; all are made, whatever fails.

    Raises:
        HostUnavailableError: hosts cannot be reached: all of their names; those of which only others say so, who may
            have waited in vain for each other, where there are no more.
        PimserveError: another error, which goes first.
    """
    responses: dict[str, _Response] = {}
    silent: dict[str, str] = {}
    missed: dict[str, str] = {}  # by others
    other: PimserveError | None = None
    for host, call in calls.items():
        try:
            responses[host] = call()
        except HostUnavailableError as error:
            (silent if host in error.hosts else missed).update(dict.fromkeys(error.hosts, error.reason))
        except PimserveError as error:
            other = other or error
    if other is not None:
        raise other
    if lost := silent or missed:
        raise HostUnavailableError(tuple(sorted(lost)), "; ".join(dict.fromkeys(lost.values())))
    return responses


def call_all(connections: Mapping[str, Connection], method: str, requests: Mapping[str, object]) -> dict[str, Any]:
    """The responses of hosts to these requests, which are made side by side; errors as of `all_of`."""
    calls = {host: connections[host].start(method, request) for host, request in requests.items()}
    return all_of({host: partial(_finish, host, call) for host, call in calls.items()})


class _Batches(RequestStream[bytes]):
    """A stream of batches, with at most some unanswered."""

    def __init__(self, method: Callable[[Iterator[bytes]], Any], in_flight: int) -> None:
        super().__init__(method)
        self.error: grpc.RpcError | None = None
        self._in_flight = in_flight
        self._unanswered = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, request: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.error is not None or self._unanswered < self._in_flight)
            if self.error is not None:
                return
            self._unanswered += 1
        super().send(request)

    def settled(self, host: str) -> None:
        with self._changed:
            while self._unanswered and self.error is None:
                before = self._unanswered
                if not self._changed.wait(DEADLINE_S) and self._unanswered == before:
                    raise HostUnavailableError((host,), f"has not answered for {DEADLINE_S:g} s")
            if self.error is not None:
                raise host_error(host, self.error)

    def _read(self) -> None:
        try:
            for _ in self.call:
                with self._changed:
                    self._unanswered -= 1
                    self._changed.notify_all()
        except grpc.RpcError as error:
            with self._changed:
                self.error = error
                self._changed.notify_all()
            self.end()
