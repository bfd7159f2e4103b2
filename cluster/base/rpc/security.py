"""Who may talk to a server: tokens, TLS, and where it listens without either."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from pimserve.cluster.base.files import warn_unless_private
from pimserve.errors import InputError, shortened

TOKEN_ENV = "PIMSERVE_TOKEN"
_OPEN = "/grpc.health.v1.Health/"  # those who ask whether a server is well often cannot have a token
_HOST = "pimserve-host"
_LEAST_TOKEN = 16  # characters
_Details = grpc.HandlerCallDetails
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not a generic type at run time


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: of a server its certificate and key and whose clients it takes, of a client the same the other way."""

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None


NO_TLS = TlsFiles()


class TokenGuard(grpc.ServerInterceptor):
    """Refuses calls without the token, but for those about the server's health.

    Args:
        token: that calls must have in the metadata `authorization: Bearer TOKEN`.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_service(
        self, continuation: Callable[[_Details], _Handler | None], handler_call_details: _Details
    ) -> _Handler | None:
        """The method, or one that refuses."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN):
            return handler
        given = [value for key, value in handler_call_details.invocation_metadata if key == "authorization"]
        first = given[0] if given else b""
        if bears(first.encode() if isinstance(first, str) else first, self._token):
            return handler
        message = "wrong token" if given else "this server asks for a token"
        return _refusing(handler, grpc.StatusCode.UNAUTHENTICATED, message)


class HostGuard(grpc.ServerInterceptor):
    """Refuses calls that are for another host: one that died, and whose port this one was given.

    Args:
        name: of this host. Calls may say in the metadata `pimserve-host` which one they are for.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def intercept_service(
        self, continuation: Callable[[_Details], _Handler | None], handler_call_details: _Details
    ) -> _Handler | None:
        """The method, or one that refuses."""
        handler = continuation(handler_call_details)
        wanted = [value for key, value in handler_call_details.invocation_metadata if key == _HOST]
        if handler is None or not wanted or wanted[0] == self._name:
            return handler
        return _refusing(handler, grpc.StatusCode.UNAVAILABLE, f"this is host {self._name} now")


def bears(authorization: bytes, token: str) -> bool:
    """Whether an `authorization` header carries a token; its scheme is written in any case (RFC 9110, 11.1)."""
    scheme, _, given = authorization.partition(b" ")
    return hmac.compare_digest(given.lstrip(b" "), token.encode()) and scheme.lower() == b"bearer"


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata that carries a token."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def for_host(name: str, token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata of calls to that host of a run."""
    return (*bearer(token), (_HOST, name))


def read_token(file: Path | None) -> str | None:
    """The token of a file, or else of the environment; None if there is neither.

    Raises:
        InputError: it cannot be read, or is none.
    """
    if file is not None:
        return token_of(file)
    token = os.environ.get(TOKEN_ENV, "")
    return _checked(token, TOKEN_ENV) if token else None


def token_of(file: Path | None) -> str | None:
    """The token of a file; None without one. Warns of a file that other users may read.

    Raises:
        InputError: it cannot be read, or is none.
    """
    if file is None:
        return None
    token = _checked(_read(file).decode("utf-8", "replace").strip(), str(file))
    warn_unless_private(file)
    return token


def _checked(token: str, where: str) -> str:
    if not re.fullmatch(rf"[\x21-\x7e]{{{_LEAST_TOKEN},1000}}", token):
        raise InputError(where, f"a token has {_LEAST_TOKEN} to 1000 visible ASCII characters and no blanks")
    return token


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials | None:
    """TLS of a server; None without files.

    Raises:
        InputError: files are missing, or cannot be read.
    """
    if files.cert is None and files.key is None and files.ca is None:
        return None
    if files.cert is None or files.key is None:
        raise InputError("--tls-cert", "TLS needs both --tls-cert and --tls-key")
    client_ca = _read(files.ca) if files.ca is not None else None
    return grpc.ssl_server_credentials(
        [(_pem(files.key, "PRIVATE KEY"), _pem(files.cert, "CERTIFICATE"))], client_ca, client_ca is not None
    )


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials | None:
    """TLS of a client; None without files.

    Raises:
        InputError: files are missing, or cannot be read.
    """
    if files.ca is None and files.cert is None and files.key is None:
        return None
    if (files.cert is None) != (files.key is None):
        raise InputError("--cert", "a client's certificate needs both --cert and --key")
    return grpc.ssl_channel_credentials(
        _pem(files.ca, "CERTIFICATE") if files.ca is not None else None,
        _pem(files.key, "PRIVATE KEY") if files.key is not None else None,
        _pem(files.cert, "CERTIFICATE") if files.cert is not None else None,
    )


def check_listen(address: str, *, protected: bool, insecure: bool, option: str = "--listen") -> str:
    """The address, HOST:PORT, if a server may listen there.

    Args:
        address: as given.
        protected: whether callers need a token or a certificate.
        insecure: whether the user insists.
        option: that gave the address.

    Raises:
        InputError: it is no address, or open to others without protection.
    """
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise InputError(option, f"must be HOST:PORT, such as 127.0.0.1:50051 (got {shortened(repr(address))})")
    if not (protected or insecure or _loopback(bare)):
        own = "--" if option == "--listen" else f"{option}-"
        raise InputError(
            option,
            f"{address} can be reached by other machines: give {own}token-file or {own}tls-client-ca so that not "
            "everyone may use it, or --insecure if everyone may",
        )
    return address


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # other names may be anywhere


def _refusing(handler: _Handler, code: grpc.StatusCode, message: str) -> _Handler:
    def refuse(_request: object, context: grpc.ServicerContext) -> object:
        context.abort(code, message)
        raise AssertionError("abort raises")

    if handler.request_streaming:  # which must be answered before the first request
        return grpc.stream_stream_rpc_method_handler(refuse)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)


def _pem(path: Path, kind: str) -> bytes:
    data = _read(path)
    if kind.encode() not in data:
        raise InputError(str(path), f"has no {kind} in PEM form")
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None
