"""Hosts: processes that each run a gRPC server for a part of a simulation, whatever that part is.

A host is described by plain data (`HostSpec`) and made where it is to live: in a Ray actor (`HostActor`), or in a plain
process (`python -m pimserve.cluster.distributed.hosts.hosting`, told over pipes).
"""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from pimserve.errors import PimserveError

_LOOPBACK = "127.0.0.1"
STOP_MARGIN_S = 2


class Host(Protocol):
    """What a factory makes, of the arguments of its `HostSpec`. Errors meant for users are `PimserveError`s."""

    def start(self, listen: str) -> int:
        """Start the gRPC server at "ADDRESS:0"; returns the port."""

    def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, let the calls under way end within that time, and stop the server."""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """A host: what makes it, and what it needs.

    Attributes:
        name: in the run, such as "shard-0".
        factory: "package.module:Class" of a `Host`.
        arguments: keyword arguments of the factory: plain data, as JSON has it.
        resources: what it holds of a Ray cluster: custom resources such as {"duplex": 1}, or CPU and GPU.
        bundle: hosts of one bundle (the devices of a replica, say) are placed together; None: anywhere.
    """

    name: str
    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    bundle: int | None = None

    def to_json(self) -> str:
        """What the process that makes the host needs to know, in one line."""
        return json.dumps({"factory": self.factory, "arguments": self.arguments})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a host is found: the address of its gRPC server, its process, and how many there were before it."""

    address: str
    pid: int
    generation: int


@dataclass(frozen=True, slots=True)
class Started:
    """How a start ended: the address and the process, or the error for the user. Plain data, for it travels."""

    address: str = ""
    pid: int = 0
    error: str = ""


def start_host(spec_json: str, ip: str) -> tuple[Host | None, Started]:
    """Make the host that `spec_json` describes and start its server at a free port of `ip`."""
    spec = json.loads(spec_json)
    module, _, name = spec["factory"].partition(":")
    try:
        host: Host = getattr(importlib.import_module(module), name)(**spec["arguments"])
        port = host.start(f"[{ip}]:0" if ":" in ip else f"{ip}:0")
    except PimserveError as error:
        return None, Started(error=str(error))
    return host, Started(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}", os.getpid())


class HostActor:
    """The Ray actor around a host. It answers while the host computes; needs two threads (`max_concurrency`)."""

    def __init__(self) -> None:
        self._host: Host | None = None
        self._ended = threading.Event()

    def start(self, spec_json: str) -> tuple[str, int, str]:
        """Start the host; returns the fields of `Started`."""
        import ray  # noqa: PLC0415

        self._host, started = start_host(spec_json, ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        return started.address, started.pid, started.error

    def lifetime(self) -> None:
        """Returns when the host has stopped; who waits for it learns of the actor's death within milliseconds."""
        self._ended.wait()

    def stop(self, grace_s: float) -> None:
        """Stop the host in order; ends the process soon after, for Ray waits for threads that still compute."""
        last = threading.Timer(grace_s + STOP_MARGIN_S, os._exit, (0,))
        last.daemon = True
        last.start()
        if self._host is not None:
            self._host.stop(grace_s)
        self._ended.set()


def main() -> None:
    """A host in a process of its own.

    Standard input: a line with the spec (JSON); then a line with the seconds of grace, upon which it stops in order.
    Its end without that line, for the driver is gone, is the order to stop at once. Standard output: a line with
    `Started` (JSON).
    """
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a host prints is no answer
    host, started = start_host(sys.stdin.readline(), _LOOPBACK)
    print(json.dumps(asdict(started)), file=answer, flush=True)
    if host is not None:
        grace_s = float(sys.stdin.readline() or 0)
        signal.alarm(math.ceil(grace_s) + STOP_MARGIN_S)  # ends this process, should a call under way not end
        host.stop(grace_s)
    os._exit(0)  # without waiting for threads that still compute


if __name__ == "__main__":
    main()
