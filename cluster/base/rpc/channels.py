"""Making gRPC servers and channels: one place for limits, keepalive and what stands before the services."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from pimserve.cluster.base.rpc.boundary import Boundary
from pimserve.cluster.base.rpc.security import TokenGuard

MAX_MESSAGE_BYTES = 32 << 20
_LIMITS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]
# A peer that vanished without a word is found out within half a minute; idle ones are left alone.
_KEEPALIVE = [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000)]
_SERVER = [
    *_LIMITS,
    *_KEEPALIVE,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),  # else a second server would silently share the port
]
_CALLS_PER_THREAD = 2


def make_server(threads: int, token: str | None, interceptors: Sequence[grpc.ServerInterceptor] = ()) -> grpc.Server:
    """A server whose methods are guarded; calls that would wait behind as many as run are refused."""
    guards: list[grpc.ServerInterceptor] = [TokenGuard(token)] if token is not None else []
    return grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="call"),
        interceptors=[*guards, *interceptors, Boundary()],
        options=_SERVER,
        maximum_concurrent_rpcs=_CALLS_PER_THREAD * threads,
    )


def channel_options(service_config: str | None = None) -> list[tuple[str, Any]]:
    """Options of a channel."""
    options: list[tuple[str, Any]] = [*_LIMITS, *_KEEPALIVE]
    if service_config is not None:
        options.append(("grpc.service_config", service_config))
    return options
