"""What stands between the network and the services: bytes become requests that keep the rules, errors statuses."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from pimserve.cluster.base.files import disk_is_full
from pimserve.cluster.base.rpc import rules, statuses
from pimserve.cluster.base.rpc.statuses import RefusedError, RequestError, Violations
from pimserve.errors import InputError, PimserveError

LOG = logging.getLogger(__name__)
_OURS = "/pimserve."
_Answer = TypeVar("_Answer")
_Details = grpc.HandlerCallDetails
Further = Callable[[Any, grpc.ServicerContext], Violations]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not a generic type at run time
_MAKERS: Mapping[tuple[bool, bool], Callable[..., _Handler]] = {  # streams of requests and of answers?
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Boundary(grpc.ServerInterceptor):
    """Wraps every method of our services.

    A service may have a method `further_violations(request, context)`: what else is wrong with a request that breaks
    the rules, so that its caller hears of all of it at once.
    """

    def intercept_service(
        self, continuation: Callable[[_Details], _Handler | None], handler_call_details: _Details
    ) -> _Handler | None:
        """The method, wrapped."""
        handler = continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_OURS):
            return handler
        parse = handler.request_deserializer
        method = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        assert parse is not None
        assert method is not None
        further = getattr(getattr(method, "__self__", None), "further_violations", None)

        def request(data: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401 bytes and a message, or iterators of these
            read = partial(_request, parse, further, context)
            return map(read, data) if handler.request_streaming else read(data)

        def single(data: Any, context: grpc.ServicerContext) -> object:  # noqa: ANN401
            return _answer(lambda: method(request(data, context), context), context)

        def stream(data: Any, context: grpc.ServicerContext) -> Iterator[object]:  # noqa: ANN401
            answers = _answer(lambda: iter(method(request(data, context), context)), context)
            while (answer := _answer(lambda: next(answers, None), context)) is not None:
                yield answer

        # Without a deserializer of its own gRPC hands us the bytes; else it would call bad ones an internal error.
        make = _MAKERS[handler.request_streaming, handler.response_streaming]
        return make(stream if handler.response_streaming else single, None, handler.response_serializer)


def _request(
    parse: Callable[[bytes], Any], further: Further | None, context: grpc.ServicerContext, data: bytes
) -> Message:
    """The request of these bytes.

    Raises:
        InputError: they are none.
        RequestError: it breaks rules; names all that is wrong with it.
    """
    try:
        request: Message = parse(data)
    except DecodeError:
        raise InputError("", "the bytes are no message of the type that this method takes") from None
    if broken := list(rules.broken(request)):
        raise RequestError([*broken, *(further(request, context) if further is not None else ())])
    return request


def _answer(method: Callable[[], _Answer], context: grpc.ServicerContext) -> _Answer:
    try:
        return method()
    except PimserveError as error:
        statuses.abort(context, error)
    except grpc.RpcError as error:
        statuses.pass_on(context, error)
    except Exception as error:
        if isinstance(error, OSError) and disk_is_full(error):
            LOG.error("%s: %s", error.filename, error.strerror)  # noqa: TRY400 one line tells
            statuses.abort(context, RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "the server's disk is full"))
        if isinstance(error, OSError) and error.errno == errno.EIO:
            LOG.error("%s: %s", error.filename, error.strerror)  # noqa: TRY400 one line tells
            statuses.abort(context, RefusedError(grpc.StatusCode.UNAVAILABLE, "the server's disk fails; try again"))
        LOG.exception("internal error")
        context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log has more")
        raise
