"""The HTTP endpoint that Prometheus scrapes: /metrics, /metrics/vllm and /-/healthy."""

from __future__ import annotations

import hmac
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import make_wsgi_app

from pimserve.cluster.metrics.collector import RunCollector
from pimserve.cluster.metrics.state import RunMetrics
from pimserve.cluster.metrics.vllm import VllmCollector
from pimserve.cluster.service.security import NO_TLS, TlsFiles, check_listen
from pimserve.errors import InputError

_PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>pimserve metrics</title>
<h1>pimserve metrics</h1><ul><li><a href="/metrics">/metrics</a><li><a href="/metrics/vllm">/metrics/vllm</a>: names of
vLLM<li><a href="/-/healthy">/-/healthy</a></ul>"""
_TIMEOUT_S = 10.0  # of a connection that says nothing
Start = Callable[[str, list[tuple[str, str]]], Any]
App = Callable[[dict[str, Any], Start], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """Where metrics are exposed, and to whom.

    Args:
        listen: HOST:PORT; port 0 for any that is free.
        token: that scrapers must send as `Authorization: Bearer TOKEN`; None: none.
        tls: certificate and key, and whose clients it takes.
        insecure: listen beyond this machine without asking scrapers for anything.
    """

    listen: str
    token: str | None = None
    tls: TlsFiles = NO_TLS
    insecure: bool = False


@contextmanager
def exposing(options: EndpointOptions, runs: Callable[[], Sequence[RunMetrics]]) -> Iterator[str]:
    """Expose runs while the block runs; yields the address.

    Args:
        options: where, and to whom.
        runs: gives the metrics of all runs; called from other threads, once for each scrape.

    Raises:
        InputError: an option is not acceptable, or the address is in use.
    """
    protected = options.token is not None or options.tls.ca is not None
    check_listen(options.listen, protected=protected, insecure=options.insecure, option="--metrics")
    context = _context(options.tls)
    host, _, port = options.listen.rpartition(":")
    try:
        server = make_server(
            host.removeprefix("[").removesuffix("]"), int(port), _guarded(_app(runs), options.token), _Server, _Handler
        )
    except OSError as error:
        raise InputError("--metrics", f"{options.listen} cannot be used: {error.strerror or error}") from None
    if context is not None:
        # Handshakes happen in the connection's thread, so that nobody keeps the others waiting.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 the base class's
        """A scraper that breaks off is no news."""


class _Handler(WSGIRequestHandler):
    timeout = _TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 the base class's
        """Scrapes are no news."""


def _app(runs: Callable[[], Sequence[RunMetrics]]) -> App:
    apps: dict[str, App] = {}
    for path, collector in (("/metrics", RunCollector(runs)), ("/metrics/vllm", VllmCollector(runs))):
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        apps[path] = make_wsgi_app(registry)

    def app(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"].rstrip("/") or "/"
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return _answer(start, "405 Method Not Allowed", b"only GET\n")
        if path in apps:
            return apps[path](environ, start)
        if path == "/-/healthy":
            return _answer(start, "200 OK", b"healthy\n")
        if path == "/":
            return _answer(start, "200 OK", _PAGE, "text/html; charset=utf-8")
        return _answer(start, "404 Not Found", b"there are /metrics, /metrics/vllm and /-/healthy\n")

    return app


def _guarded(app: App, token: str | None) -> App:
    """The same for those who have the token; whether it is well may be asked by anyone."""
    if token is None:
        return app
    expected = f"Bearer {token}".encode()

    def guarded(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")
        if environ["PATH_INFO"] == "/-/healthy" or hmac.compare_digest(given, expected):
            return app(environ, start)
        return _answer(start, "401 Unauthorized", b"this endpoint asks for a token\n", challenge=True)

    return guarded


def _answer(
    start: Start, status: str, body: bytes, kind: str = "text/plain; charset=utf-8", *, challenge: bool = False
) -> list[bytes]:
    headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
    start(status, [*headers, ("WWW-Authenticate", 'Bearer realm="pimserve"')] if challenge else headers)
    return [body]


def _context(files: TlsFiles) -> ssl.SSLContext | None:
    if files.cert is None and files.key is None and files.ca is None:
        return None
    if files.cert is None or files.key is None:
        raise InputError("--metrics-tls-cert", "TLS needs both --metrics-tls-cert and --metrics-tls-key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key)
        if files.ca is not None:
            context.load_verify_locations(files.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise InputError("--metrics-tls-cert", f"certificate or key cannot be used: {error}") from None
    return context
