"""What goes wrong, on the wire: errors become statuses, with the fields of the request or the hosts that are to blame,
and statuses errors again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from pimserve.errors import InputError, InputsError, PimserveError
from pimserve.scheduler.control import RunCancelledError

Violations = Sequence[tuple[str, str]]  # field, what is wrong with it
_LINE = re.compile(r"([A-Za-z_][\w.\-\[\]]*): (.*)")
# What it means that the process of a run ends a call with a status that is not its own.
_NO_ANSWER: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAVAILABLE: "the run's process went away; try again",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the run's process is busy and did not answer in time; try again",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "the run's process has too many calls to answer; try again later",
    grpc.StatusCode.UNIMPLEMENTED: "the run's process is of another version of pimserve, which cannot do this",
}
# A status travels in headers, of which clients take 8 KiB; in them a message is in ASCII, and details in base 64.
_MESSAGE_BYTES, _SHORT_MESSAGE_BYTES = 1000, 400  # without and with details
_VIOLATION_BYTES, _DETAILS_BYTES = 250, 4200
_DOMAIN, _PEERS = "pimserve", "peers"  # in ErrorInfo, hosts that cannot be reached
_GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
_Detail = TypeVar("_Detail")


class RefusedError(PimserveError):
    """A request that is well-formed and cannot be met.

    Args:
        code: of the status.
        message: what is wrong and what can be done.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class RequestError(InputError):
    """Fields of a request are not acceptable.

    Args:
        fields: by their paths in the request, and what is wrong with each.
    """

    def __init__(self, fields: Violations) -> None:
        super().__init__("", "\n".join(f"{field}: {message}" if field else message for field, message in fields))
        self.fields = tuple(fields)


class DeviceMismatchError(PimserveError):
    """A device's own plan, time or traffic is not what the engine says; the run cannot go on."""


class WrongStateError(PimserveError):
    """A host cannot take this now: it drains, has no plan, or something before it is missing."""


class HostUnavailableError(PimserveError):
    """Hosts of a run cannot be reached; once each is replaced, the call may be repeated."""

    def __init__(self, hosts: tuple[str, ...], reason: str) -> None:
        super().__init__(f"device host {', '.join(hosts)}: {reason}")
        self.hosts = hosts
        self.reason = reason


def unknown_run(run_id: str) -> RefusedError:
    """There is no such run."""
    return RefusedError(grpc.StatusCode.NOT_FOUND, f"no run {run_id!r} here; `pimserve list` shows those that are")


def unknown_request(request: int, requests: int) -> RefusedError:
    """There is no such request in a run that has so many."""
    return RefusedError(grpc.StatusCode.NOT_FOUND, f"no request {request}: the run has {requests:,}, from 0")


def violations(error: InputError) -> Violations:
    """The fields that an error speaks of: one, or one in each of its lines."""
    if isinstance(error, RequestError):
        return error.fields
    if isinstance(error, InputsError):
        return [violation for part in error.errors for violation in violations(part)]
    if error.where:
        return [(error.where, error.message)]
    fields = []
    for line in error.message.splitlines():
        match = _LINE.fullmatch(line)
        fields.append((match[1], match[2]) if match else ("", line))
    return fields


def status_of(error: PimserveError) -> status_pb2.Status:
    """The status that an error becomes."""
    if isinstance(error, RefusedError):
        return _status(error.code, str(error))
    if isinstance(error, RunCancelledError):
        return _status(grpc.StatusCode.FAILED_PRECONDITION, "the run is being cancelled")
    if isinstance(error, DeviceMismatchError):
        return _status(grpc.StatusCode.DATA_LOSS, str(error))
    if isinstance(error, HostUnavailableError):
        status = _status(grpc.StatusCode.UNAVAILABLE, str(error))
        info = error_details_pb2.ErrorInfo(reason="PEER", domain=_DOMAIN, metadata={_PEERS: ",".join(error.hosts)})
        status.details.add().Pack(info)
        return status
    if not isinstance(error, InputError):
        return _status(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    status = _status(grpc.StatusCode.INVALID_ARGUMENT, _cut(str(error), _SHORT_MESSAGE_BYTES))
    status.details.add().Pack(_bad_request(violations(error)))
    return status


def _bad_request(fields: Violations) -> error_details_pb2.BadRequest:
    """Fields that are to blame: as many as there is room for, and how many more there are."""
    request = error_details_pb2.BadRequest()
    for number, (field, description) in enumerate(fields):
        request.field_violations.add(
            field=_cut(field, _VIOLATION_BYTES), description=_cut(description, _VIOLATION_BYTES)
        )
        if request.ByteSize() > _DETAILS_BYTES:
            del request.field_violations[-1]
            request.field_violations.add(description=f"and {len(fields) - number} more")
            break
    return request


def abort(context: grpc.ServicerContext, error: PimserveError) -> NoReturn:
    """End a call with the status of an error."""
    context.abort_with_status(rpc_status.to_status(status_of(error)))
    raise AssertionError("abort raises")


def pass_on(context: grpc.ServicerContext, error: grpc.RpcError) -> NoReturn:
    """End a call as the call to the run's process ended that it hung on."""
    code, details = grpc.StatusCode.UNAVAILABLE, ""
    if isinstance(error, grpc.Call) and error.code() is not None:
        code, details = error.code(), error.details() or ""
        packed = [(key, value) for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
        if packed:
            context.set_trailing_metadata(tuple(packed))
            context.abort(code, details)
    # With a status of ours, so that callers do not take it for one of their connection.
    message = _NO_ANSWER.get(code) or f"the run's process says {code.name}: {details}"
    context.abort_with_status(rpc_status.to_status(_status(code, message)))
    raise AssertionError("abort raises")


@contextmanager
def errors_of(host: str) -> Iterator[None]:
    """Calls to a host of a run, which end with the error that their status stands for."""
    try:
        yield
    except grpc.RpcError as error:
        raise host_error(host, error) from None


def host_error(host: str, error: grpc.RpcError) -> PimserveError:
    """The error that a failed call to a host of a run stands for."""
    assert isinstance(error, grpc.Call)
    code, message = error.code(), error.details() or ""
    if code is grpc.StatusCode.DATA_LOSS:
        return DeviceMismatchError(message)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InputError(f"device host {host}", message)
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return WrongStateError(f"device host {host}: {message}")
    if code in _GONE:
        infos = details_of(error, error_details_pb2.ErrorInfo)
        peers = [info.metadata[_PEERS] for info in infos if info.domain == _DOMAIN and info.metadata.get(_PEERS)]
        return HostUnavailableError(tuple(peers[0].split(",")) if peers else (host,), message or code.name)
    return PimserveError(f"device host {host}: {code.name}: {message}")


def details_of(error: grpc.Call | grpc.aio.AioRpcError, kind: type[_Detail]) -> list[_Detail]:
    """The details of that kind that the status of a failed call has."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status: not of our server
        return []
    details = []
    for packed in status.details if status is not None else ():
        detail: Any = kind()
        if packed.Unpack(detail):
            details.append(detail)
    return details


def _status(code: grpc.StatusCode, message: str) -> status_pb2.Status:
    return status_pb2.Status(code=code.value[0], message=_cut(message, _MESSAGE_BYTES))


def _cut(text: str, most_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= most_bytes else f"{encoded[: most_bytes - 4].decode('utf-8', 'ignore')} ..."
