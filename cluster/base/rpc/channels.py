"""Making gRPC servers and channels: one place for limits, keepalive and what stands before the services."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from pimserve.cluster.base.rpc.boundary import Boundary
from pimserve.cluster.base.rpc.security import TokenGuard

MAX_MESSAGE_BYTES = 32 << 20
_BOTH_ENDS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A peer that vanished without a word is found out within 80 s, however long it has had nothing to say: HTTP/2's own
    # limit for the answer to a ping is a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]
_SERVER = [
    *_BOTH_ENDS,
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.so_reuseport", 0),  # else a second server would silently share the port
]
_CALLS_PER_THREAD = 2
_PING_AFTER = 0.4  # of the silence that is borne; the rest is for the answer


def make_server(threads: int, token: str | None, interceptors: Sequence[grpc.ServerInterceptor] = ()) -> grpc.Server:
    """A server whose methods are guarded; calls that would wait behind as many as run are refused.

    Args:
        threads: calls that it answers at once; made as they are needed.
        token: that calls must carry; None or "" for none.
        interceptors: that come after the token's.
    """
    guards: list[grpc.ServerInterceptor] = [TokenGuard(token)] if token else []
    return grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="call"),
        interceptors=[*guards, *interceptors, Boundary()],
        options=_SERVER,
        maximum_concurrent_rpcs=_CALLS_PER_THREAD * threads,
    )


def channel_options(service_config: str | None = None) -> list[tuple[str, Any]]:
    """Options of a channel."""
    options: list[tuple[str, Any]] = list(_BOTH_ENDS)
    if service_config is not None:
        options.append(("grpc.service_config", service_config))
    return options


def client_channel(
    library: Any,  # noqa: ANN401 a module
    address: str,
    credentials: grpc.ChannelCredentials | None,
    service_config: str,
) -> Any:  # noqa: ANN401 a channel of the library
    """A channel to a server, HOST:PORT; `library` is `grpc` or `grpc.aio`."""
    options = channel_options(service_config)
    if credentials is None:
        return library.insecure_channel(address, options)
    return library.secure_channel(address, credentials, options)


def process_channel(address: str) -> grpc.Channel:
    """A channel to a worker, HOST:PORT."""
    return grpc.insecure_channel(address, options=channel_options())


def host_channel(address: str, silence_s: float) -> grpc.Channel:
    """A channel to a host of a run, HOST:PORT, whose calls fail with UNAVAILABLE when it is silent for that long.

    Pings are answered by gRPC's own threads, also while Python computes: what is found out is a process that is
    stopped or a machine that is gone, and not one that is busy.
    """
    ping_ms = round(1000 * silence_s * _PING_AFTER)
    answer_ms = round(1000 * silence_s) - ping_ms
    heartbeat = {
        "grpc.keepalive_time_ms": ping_ms,
        "grpc.keepalive_timeout_ms": answer_ms,
        "grpc.http2.ping_timeout_ms": answer_ms,
        "grpc.min_reconnect_backoff_ms": answer_ms,  # in which a connection must be made
    }
    return grpc.insecure_channel(address, options=[*(dict(channel_options()) | heartbeat).items()])
