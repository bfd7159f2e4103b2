"""How fast a server answers queries about a run that goes at full speed, and what that costs the run.

    python benchmarks/queries.py [--requests N] [--seconds S] [--clients 1,8] [--json FILE]

A server is started with one run. Clients, each a process of its own, ask one query after another, of every kind in
turn. Latencies are the clients', connection set up before; steps per second are those of the run while nobody asks,
and while the clients do, one stretch after the other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pimserve.cluster.client import Client

_REPLICAS = 8
_SETTINGS = (f"cluster.replicas={_REPLICAS}", f"workload.arrival.rate_per_s={12 * _REPLICAS}", "output.steps=false")
_PAUSE_S = 0.005  # of a client between two queries: people and dashboards, not a flood


def queries(client: Client, run: str, requests: int) -> dict[str, Callable[[int], object]]:
    """Every kind of query; each takes a number that makes it another one."""
    return {
        "get": lambda _: client.get(run),
        "list": lambda _: list(client.list()),
        "replicas": lambda _: client.replicas(run),
        "request": lambda number: client.request(run, number * 7919 % requests),
        "latencies": lambda _: client.latencies(run),
        "ledgers": lambda _: client.ledgers(run),
        "placement": lambda _: client.placement(run),
    }


def ask(address: str, run: str, requests: int, seconds: float) -> dict[str, list[float]]:
    """Ask until the time is over; returns seconds of each query by kind."""
    with Client(address) as client:
        kinds = queries(client, run, requests)
        client.get(run)
        took: dict[str, list[float]] = {kind: [] for kind in kinds}
        end, number = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            for kind, query in kinds.items():
                began = time.perf_counter()
                query(number)
                took[kind].append(time.perf_counter() - began)
                number += 1
                time.sleep(_PAUSE_S)
        return took


@contextmanager
def server(data: Path) -> Iterator[str]:
    """A server in a process of its own; yields its address."""
    command = [
        sys.executable,
        "-m",
        "pimserve.cluster.cli.main",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data",
        str(data),
    ]
    with (data.parent / "server.log").open("wb") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert child.stdout is not None
        yield child.stdout.readline().split()[-1]
    finally:
        child.terminate()
        child.wait()


def steps_per_s(client: Client, run: str, seconds: float) -> float:
    """Of the run, for so long."""

    def seen() -> tuple[float, int]:
        replicas = client.replicas(run).replicas
        return time.perf_counter(), sum(replica.steps for replica in replicas)

    begin = seen()
    time.sleep(seconds)
    end = seen()
    return (end[1] - begin[1]) / (end[0] - begin[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_500_000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.clients.split(",")]
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, server(Path(scratch) / "data") as address, Client(address) as client:
        run = client.launch("", [*_SETTINGS, f"workload.num_requests={arguments.requests}"]).id
        while not (progress := client.get(run).progress) or not progress.arrived:
            time.sleep(0.2)
        for count in counts:
            alone = steps_per_s(client, run, arguments.seconds)
            with ProcessPoolExecutor(count, get_context("spawn")) as pool:
                began = client.replicas(run).replicas
                at = time.perf_counter()
                asking = [pool.submit(ask, address, run, arguments.requests, arguments.seconds) for _ in range(count)]
                parts = [future.result() for future in asking]
                ended = client.replicas(run).replicas
                asked = (sum(r.steps for r in ended) - sum(r.steps for r in began)) / (time.perf_counter() - at)
            if client.get(run).state != "running":
                sys.exit("the run ended before the clients: give more --requests")
            by_kind = {kind: np.concatenate([part[kind] for part in parts]) * 1e3 for kind in parts[0]}
            by_kind["all"] = np.concatenate(list(by_kind.values()))
            print(f"{count} clients: {alone:,.0f} steps/s while nobody asks, {asked:,.0f} while they do")
            for kind, ms in by_kind.items():
                p50, p99 = np.percentile(ms, [50, 99], method="inverted_cdf")
                print(f"  {kind:10} n {len(ms):6,}   p50 {p50:6.1f} ms   p99 {p99:6.1f} ms   most {ms.max():6.1f} ms")
                figures.append({"clients": count, "query": kind, "n": len(ms), "p50_ms": p50, "p99_ms": p99})
        client.cancel(run)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
