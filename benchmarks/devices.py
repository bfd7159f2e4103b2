"""Speed of device hosts: the same run without them, with steps recorded by them, and in lockstep with them.

    python benchmarks/devices.py [--requests N] [--lockstep-steps N] [--runs N] [--json FILE]

Hosts are processes of this machine; the devices of one replica are dealt to them. Every figure is the best of the runs,
which take turns, so that other work on the machine meets all alike. Planned times end when all hosts have digested all
steps and their traffic has been compared. Lockstep runs the first steps only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pimserve.cluster.distributed.devices.driver import DeviceDriver, DriverSettings, HostPlace
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.loadgen.workload import generate
from pimserve.scheduler.fleet import RowSink
from pimserve.scheduler.simulation import simulate

_SCENARIO = {
    "name": "devices",
    "model": "mixtral-8x7b",
    "cluster": {"device": "duplex", "devices_per_node": 8, "tensor_parallel": 4},
}
_HOSTS = (1, 4, 8)
_DEVICES = 8


class Case:
    """A run whose steps devices get."""

    def __init__(self, requests: int) -> None:
        workload = {"preset": "azure-conv-2023", "num_requests": requests}
        self.scenario = Scenario.model_validate({**_SCENARIO, "workload": workload})
        self.document = json.dumps(self.scenario.resolved())
        self.prepared = prepare(self.scenario)
        self.workload = generate(self.scenario.workload, 0)
        self.steps = 0

    def serve(self, write_rows: RowSink | None = None) -> None:
        """Serve all requests."""
        served = simulate(
            self.prepared.pools,
            self.workload,
            self.scenario.scheduler,
            max_model_len=8192,
            routing=self.prepared.routing,
            write_rows=write_rows,
        )
        self.steps = served.logs[0].steps

    def local(self) -> dict[str, float]:
        began = time.perf_counter()
        self.serve()
        return {"s": time.perf_counter() - began, "steps": self.steps}

    def planned(self, addresses: dict[str, str]) -> dict[str, float]:
        with self._link(addresses, lockstep=False) as link:
            began = time.perf_counter()
            self.serve(link.take)
            served = time.perf_counter()
            link.close_window(0)
            ended = time.perf_counter()
            messages, size = link.sent
        return {
            "s": ended - began,
            "steps": self.steps,
            "messages": messages,
            "bytes": size,
            "served_s": served - began,
        }

    def lockstep(self, addresses: dict[str, str], steps: int) -> dict[str, float]:
        rows: list[Any] = []
        self.serve(lambda _, block, first: rows.append((block, first)))
        block, first = rows[0]
        upto = int(np.searchsorted(np.cumsum(block[:, 2]), steps))
        with self._link(addresses, lockstep=True) as link:
            began = time.perf_counter()
            link.take(0, block[:upto], first[:upto])
            ended = time.perf_counter()
            messages, size = link.sent
        done = int(block[:upto, 2].sum())
        hosts = len(addresses)
        # Every step is answered by all hosts, and all of them tell all others.
        return {"s": ended - began, "steps": done, "messages": 2 * messages + done * hosts * (hosts - 1), "bytes": size}

    @contextmanager
    def _link(self, addresses: dict[str, str], *, lockstep: bool) -> Iterator[DeviceDriver]:
        names = list(addresses)
        places = {
            name: HostPlace(addresses[name], {"": [(0, device) for device in range(at, _DEVICES, len(names))]})
            for at, name in enumerate(names)
        }
        digests = {"": self.prepared.pools[0].plan.digest()}
        link = DeviceDriver(self.document, digests, places, DriverSettings(lockstep=lockstep))
        try:
            link.connect()
            yield link
        finally:
            link.close()


@contextmanager
def host_processes(count: int) -> Iterator[dict[str, str]]:
    """Hosts in processes of their own: their addresses by name."""
    children = []
    try:
        for number in range(count):
            command = [sys.executable, "-m", "pimserve.cluster.distributed.hosts.hosting"]
            quiet = {**os.environ, "GRPC_VERBOSITY": "ERROR"}  # hosts see each other go, one by one
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)
            factory = "pimserve.cluster.distributed.devices.device_host:DeviceHost"
            spec = {"factory": factory, "arguments": {"name": f"host-{number}"}}
            child.stdin.write(json.dumps(spec) + "\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            children.append(child)
        answers = [json.loads(child.stdout.readline()) for child in children]  # type: ignore[union-attr]
        yield {f"host-{number}": answer["address"] for number, answer in enumerate(answers)}
    finally:
        for child in children:
            child.stdin.close()  # type: ignore[union-attr]
            child.stdout.close()  # type: ignore[union-attr]
        for child in children:
            child.wait()


def measure(requests: int, lockstep_steps: int, runs: int) -> list[dict[str, Any]]:
    """The best of the runs of every case."""
    case = Case(requests)
    best: dict[str, dict[str, Any]] = {}

    def keep(name: str, measured: dict[str, float]) -> None:
        if name not in best or measured["s"] < best[name]["s"]:
            best[name] = {"case": name, **measured}

    for _ in range(runs):
        keep("local", case.local())
        for hosts in _HOSTS:
            with host_processes(hosts) as addresses:
                keep(f"planned, {hosts} hosts", case.planned(addresses))
                keep(f"lockstep, {hosts} hosts", case.lockstep(addresses, lockstep_steps))
    return list(best.values())


def table(figures: list[dict[str, Any]]) -> str:
    """In Markdown."""
    local = next(figure["steps"] / figure["s"] for figure in figures if figure["case"] == "local")
    lines = ["| case | steps/s | of local | messages/s | MB/s |", "| --- | --- | --- | --- | --- |"]
    for figure in sorted(figures, key=lambda figure: figure["case"]):
        rate = figure["steps"] / figure["s"]
        messages, size = figure.get("messages", 0) / figure["s"], figure.get("bytes", 0) / figure["s"] / 1e6
        lines.append(f"| {figure['case']} | {rate:,.0f} | {rate / local:.1%} | {messages:,.0f} | {size:,.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--lockstep-steps", type=int, default=2_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = measure(arguments.requests, arguments.lockstep_steps, arguments.runs)
    print(table(figures))
    print(f"\n{os.cpu_count()} CPUs, load average at the end {', '.join(f'{v:.1f}' for v in os.getloadavg())}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
