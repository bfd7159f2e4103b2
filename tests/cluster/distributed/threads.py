"""Runs whose hosts live in threads of this process, with real gRPC between them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pimserve.cluster.distributed.deployment import Distributed, host_specs
from pimserve.cluster.distributed.hosts.hosting import Endpoint, HostSpec
from pimserve.cluster.distributed.run_spread import Spread
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.scheduler.control import Control
from tests.cluster.documents import run

TOKEN = "the token of this test"


class Threads:
    """Hosts in threads of this process."""

    def __init__(self, specs: list[HostSpec]) -> None:
        self.recoveries: list[tuple[str, float]] = []
        self._hosts = {}
        self._endpoints = {}
        for spec in specs:
            module, _, name = spec.factory.partition(":")
            self._hosts[spec.name] = host = getattr(importlib.import_module(module), name)(**spec.arguments)
            self._endpoints[spec.name] = Endpoint(f"127.0.0.1:{host.start('127.0.0.1:0')}", 0, 0)

    def endpoint(self, name: str) -> Endpoint:
        return self._endpoints[name]

    def endpoints(self) -> dict[str, Endpoint]:
        return self._endpoints

    def replace(self, name: str, _generation: int) -> Endpoint:
        raise AssertionError(f"{name} was lost")

    def stop(self) -> None:
        for host in self._hosts.values():
            host.stop(0)


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key not in {"results", "simulator"}}


def run_there(
    scenario: Scenario, spread: Spread, out: Path, control: Control | None = None, checkpoints: Path | None = None
) -> dict[str, Any]:
    """The summary of a run on fresh hosts."""
    prepared = prepare(scenario)
    hosts = Threads(host_specs(prepared, spread, TOKEN))
    parts = Distributed(hosts, spread, prepared, TOKEN)
    try:
        return run(prepared, out, runtime=parts, control=control, checkpoints=checkpoints)
    finally:
        parts.close()
        hosts.stop()
