"""Asks a pimserve server whether it serves: healthcheck.py [HOST:PORT [CA SERVER_NAME]]; exit code 1 if it does not.

The last two are for TLS: the file with the authority's certificate, and a name that the server's certificate has.
Health checks need no token.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

LIMIT_S = 4.0


def main(address: str = "127.0.0.1:50051", ca: str | None = None, server_name: str = "") -> int:
    """Ask once; returns the exit code."""
    if ca is None:
        channel = grpc.insecure_channel(address)
    else:
        credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes())
        channel = grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", server_name)])
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
        except grpc.RpcError as error:
            print(f"{address}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(f"{address}: {state}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
