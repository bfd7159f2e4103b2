"""The HTTP endpoint that Prometheus scrapes: /metrics, /metrics/vllm and /-/healthy."""

from __future__ import annotations

import gzip
import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from io import StringIO
from typing import IO, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry
from prometheus_client import exposition as text
from prometheus_client.exposition import ThreadingWSGIServer, choose_encoder, gzip_accepted
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.registry import Collector

from pimserve.cluster.base.rpc.security import NO_TLS, TlsFiles, bears, check_listen
from pimserve.cluster.metrics.collector import registry
from pimserve.cluster.metrics.families import FAMILIES
from pimserve.cluster.metrics.run_metrics import RunMetrics
from pimserve.cluster.metrics.vllm import VLLM_FAMILIES, as_vllm
from pimserve.errors import InputError

LOG = logging.getLogger("pimserve.metrics")
_TYPES = {text.CONTENT_TYPE_PLAIN_0_0_4, text.CONTENT_TYPE_PLAIN_1_0_0, openmetrics.CONTENT_TYPE_LATEST}
_PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>pimserve metrics</title>
<h1>pimserve metrics</h1><ul><li><a href="/metrics">/metrics</a><li><a href="/metrics/vllm">/metrics/vllm</a>: names of
vLLM<li><a href="/-/healthy">/-/healthy</a></ul>"""
_TIMEOUT_S = 10.0  # of a connection that says nothing
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="pimserve"'}
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
        per_engine: histograms of each engine, also where there are so many that they are merged.
    """

    listen: str
    token: str | None = None
    tls: TlsFiles = NO_TLS
    insecure: bool = False
    per_engine: bool = False


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
    bare = host.removeprefix("[").removesuffix("]")
    kind = _Server6 if ":" in bare else _Server
    try:
        server = make_server(bare, int(port), _guarded(_app(runs), options.token), kind, _Handler)
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


class _Server(ThreadingWSGIServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 the base class's
        """A scraper that breaks off is no news."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 the base class's
        """Scrapes are no news."""

    def get_stderr(self) -> IO[str]:
        """Nor is a scraper that does not take what it asked for; what fails in here is logged before."""
        return StringIO()


def _app(runs: Callable[[], Sequence[RunMetrics]]) -> App:
    registries = {
        "/metrics": registry(FAMILIES, runs),
        "/metrics/vllm": registry(VLLM_FAMILIES, lambda: map(as_vllm, runs())),
    }

    def answer(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"].rstrip("/") or "/"
        if environ["REQUEST_METHOD"] != "GET":
            return _answer(start, "405 Method Not Allowed", b"only GET\n", Allow="GET")
        if path in registries:
            return _exposed(environ, start, registries[path])
        if path == "/-/healthy":
            return _answer(start, "200 OK", b"healthy\n")
        if path == "/":
            return _answer(start, "200 OK", _PAGE, "text/html; charset=utf-8")
        return _answer(start, "404 Not Found", b"there are /metrics, /metrics/vllm and /-/healthy\n")

    def app(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        try:
            return answer(environ, start)
        except Exception:
            LOG.exception("metrics could not be exposed")
            raise

    return app


def _exposed(environ: dict[str, Any], start: Start, registry: CollectorRegistry) -> Iterable[bytes]:
    """Metrics in the format that the scraper asks for."""
    encoder, kind = _format(environ.get("HTTP_ACCEPT", ""))
    # All names are plain ones, which no scheme escapes; but the library would take the colon out of vLLM's.
    body = encoder(registry, escaping=ALLOWUTF8)  # type: ignore[call-arg]  # it has more than its type says
    headers = {"Vary": "Accept, Accept-Encoding"}
    if gzip_accepted(",".join(_by_preference(environ.get("HTTP_ACCEPT_ENCODING", "")))):
        # Level 1: a tenth of the time of the usual 9, for a third more bytes.
        body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
    return _answer(start, "200 OK", body, kind, **headers)


def _format(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """How the library writes what the scraper likes best, and its type; plain text where it knows nothing of that."""
    for accepted in _by_preference(accept):
        with suppress(TypeError):  # a version that is no number
            encoder, kind = choose_encoder(accepted)
            kind = kind.partition("; escaping=")[0]
            # Not a version that nobody has written down, nor the library's choice where it does not know the type.
            if kind in _TYPES and fnmatch(kind.partition(";")[0], accepted.partition(";")[0].strip()):
                return encoder, kind
    return choose_encoder("")


def _by_preference(header: str) -> list[str]:
    """What a header accepts, best first, without what it refuses (RFC 9110, 12.4.2): the library knows no q-values."""
    weights = {accepted: re.search(r";\s*q=([01](\.\d*)?)", accepted) for accepted in header.lower().split(",")}
    qualities = {accepted: float(weight[1]) if weight else 1.0 for accepted, weight in weights.items()}
    return sorted(filter(qualities.get, qualities), key=qualities.__getitem__, reverse=True)


def _guarded(app: App, token: str | None) -> App:
    """The same for those who have the token; whether it is well may be asked by anyone."""
    if token is None:
        return app

    def guarded(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")
        if environ["PATH_INFO"] == "/-/healthy" or bears(given, token):
            return app(environ, start)
        return _answer(start, "401 Unauthorized", b"this endpoint asks for a token\n", **_CHALLENGE)

    return guarded


def _answer(
    start: Start, status: str, body: bytes, kind: str = "text/plain; charset=utf-8", **headers: str
) -> list[bytes]:
    start(status, [("Content-Type", kind), ("Content-Length", str(len(body))), *headers.items()])
    return [body]


def _context(files: TlsFiles) -> ssl.SSLContext | None:
    if files.cert is None and files.key is None and files.ca is None:
        return None
    if files.cert is None or files.key is None:
        raise InputError("--metrics-tls-cert", "TLS needs both --metrics-tls-cert and --metrics-tls-key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password="")  # without one it would ask the terminal
        if files.ca is not None:
            context.load_verify_locations(files.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise InputError("--metrics-tls-cert", f"certificate or key cannot be used: {error}") from None
    return context
