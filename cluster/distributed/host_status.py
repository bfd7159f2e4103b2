"""Errors on their way through gRPC: statuses with details on one side, exceptions again on the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from pimserve.cluster.distributed.errors import DeviceMismatchError, HostUnavailableError, WrongStateError
from pimserve.errors import InputError, PimserveError

MESSAGE_BYTES = 32 * 2**20  # the largest, both ways
OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]
Request = TypeVar("Request")
Response = TypeVar("Response")
_Method = Callable[[Any, Request, grpc.ServicerContext], Response]
_LONGEST = 1000  # characters of a message: statuses travel in headers, of which clients take 8 KiB
_DOMAIN = "pimserve"
_PEERS = "peers"  # in ErrorInfo, hosts that cannot be reached


def abort(context: grpc.ServicerContext, error: PimserveError) -> NoReturn:
    """End a call with the status that says what is wrong."""
    code, details = _status(error)
    status = status_pb2.Status(code=code, message=str(error)[:_LONGEST])
    if details is not None:
        packed = any_pb2.Any()
        packed.Pack(details)
        status.details.append(packed)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status returned")


def refusing(
    method: Callable[[Any, Request, grpc.ServicerContext], Response],
) -> Callable[[Any, Request, grpc.ServicerContext], Response]:
    """A method of a service whose errors for users become statuses."""

    @wraps(method)
    def called(service: Any, request: Request, context: grpc.ServicerContext) -> Response:  # noqa: ANN401 any service
        try:
            return method(service, request, context)
        except PimserveError as error:
            abort(context, error)

    return called


def _status(error: PimserveError) -> tuple[int, Any]:
    if isinstance(error, InputError):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.where, description=error.message[:_LONGEST])
        return code_pb2.INVALID_ARGUMENT, error_details_pb2.BadRequest(field_violations=[violation])
    if isinstance(error, HostUnavailableError):
        return code_pb2.UNAVAILABLE, error_details_pb2.ErrorInfo(
            reason="PEER", domain=_DOMAIN, metadata={_PEERS: ",".join(error.hosts)}
        )
    if isinstance(error, DeviceMismatchError):
        return code_pb2.DATA_LOSS, None
    return code_pb2.FAILED_PRECONDITION, None


def to_error(host: str, error: grpc.RpcError) -> PimserveError:
    """What a failed call to `host` means here."""
    assert isinstance(error, grpc.Call)
    code, message = error.code(), error.details() or ""
    if code is grpc.StatusCode.DATA_LOSS:
        return DeviceMismatchError(message)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InputError(f"device host {host}", message)
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return WrongStateError(f"device host {host}: {message}")
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
        return HostUnavailableError(_unavailable(host, error), message or code.name)
    return PimserveError(f"device host {host}: {code.name}: {message}")


def _unavailable(host: str, error: grpc.Call) -> tuple[str, ...]:
    """Who cannot be reached: peers that the host names, or the host itself."""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == _DOMAIN and (peers := info.metadata.get(_PEERS)):
            return tuple(peers.split(","))
    return (host,)
