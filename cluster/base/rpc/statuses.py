"""What goes wrong, on the wire: statuses with a message, and the fields of the request that are to blame."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from pimserve.errors import InputError, PimserveError
from pimserve.scheduler.control import RunCancelledError

Violations = Sequence[tuple[str, str]]  # field, what is wrong with it
_LINE = re.compile(r"([A-Za-z_][\w.\-\[\]]*): (.*)")
# What it means that the process of a run ends a call with a status that is not its own.
_NO_ANSWER: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAVAILABLE: "the run's process went away; try again",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the run's process is busy and did not answer in time; try again",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "the run's process has too many calls to answer; try again later",
}
# A status travels in headers, of which clients take 8 KiB; in them a message is in ASCII, and details in base 64.
_MESSAGE_BYTES, _VIOLATION_BYTES, _STATUS_BYTES = 1000, 300, 3000


class RefusedError(PimserveError):
    """A request that is well-formed and cannot be met.

    Args:
        code: of the status.
        message: what is wrong and what can be done.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def unknown_run(run_id: str) -> RefusedError:
    """There is no such run."""
    return RefusedError(grpc.StatusCode.NOT_FOUND, f"no run {run_id!r} here; `pimserve list` shows those that are")


def violations(error: InputError) -> Violations:
    """The fields that an error speaks of: one, or one in each of its lines."""
    if error.where:
        return [(error.where, error.message)]
    found = []
    for line in error.message.splitlines():
        match = _LINE.fullmatch(line)
        found.append((match[1], match[2]) if match else ("", line))
    return found


def status_of(error: PimserveError) -> status_pb2.Status:
    """The status that an error becomes."""
    if isinstance(error, RefusedError):
        return _status(error.code, str(error))
    if isinstance(error, RunCancelledError):
        return _status(grpc.StatusCode.FAILED_PRECONDITION, "the run is being cancelled")
    if not isinstance(error, InputError):
        return _status(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    status = _status(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    request = error_details_pb2.BadRequest()
    for field, description in violations(error):
        request.field_violations.add(
            field=_cut(field, _VIOLATION_BYTES), description=_cut(description, _VIOLATION_BYTES)
        )
        if request.ByteSize() > _STATUS_BYTES - _MESSAGE_BYTES:
            del request.field_violations[-1]
            break
    status.details.add().Pack(request)
    return status


def abort(context: grpc.ServicerContext, error: PimserveError) -> NoReturn:
    """End a call with the status of an error."""
    context.abort_with_status(rpc_status.to_status(status_of(error)))
    raise AssertionError("abort raises")


def pass_on(context: grpc.ServicerContext, error: grpc.RpcError) -> NoReturn:
    """End a call as the call to the run's process ended that it hung on."""
    code, details = grpc.StatusCode.UNAVAILABLE, ""
    if isinstance(error, grpc.Call) and error.code() is not None:
        code, details = error.code(), error.details() or ""
        said = [(key, value) for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
        if said:
            context.set_trailing_metadata(tuple(said))
            context.abort(code, details)
    # With a status of ours, so that callers do not take it for one of their connection.
    message = _NO_ANSWER.get(code) or f"the run's process says {code.name}: {details}"
    context.abort_with_status(rpc_status.to_status(_status(code, message)))
    raise AssertionError("abort raises")


def _status(code: grpc.StatusCode, message: str) -> status_pb2.Status:
    return status_pb2.Status(code=code.value[0], message=_cut(message, _MESSAGE_BYTES))


def _cut(text: str, most_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= most_bytes else f"{encoded[: most_bytes - 4].decode('utf-8', 'ignore')} ..."
