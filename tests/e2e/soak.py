"""Keep a server busy, and see that neither it nor the process of a run grows.

    python tests/e2e/soak.py --seconds 600

One run goes on all the time; others are launched, watched, cancelled and deleted; clients ask all kinds
of queries, send noise, wrong tokens and broken scenarios, and leave streams open. Prints how much memory the server and
the long run's process have over time, and fails when either has a tenth more in the last third than in the second.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from pimserve.cluster.base.files import read_json
from pimserve.cluster.client import Client, ServiceError

PIMSERVE = Path(sysconfig.get_path("scripts")) / "pimserve"
TOKEN = "token-of-the-soak-only"
_RATE_PER_S, _SPEED = 12, 100  # requests per simulated second; simulated seconds per second
SETTINGS = [f"workload.arrival.rate_per_s={_RATE_PER_S}", "output.steps=false"]
MOST_GROWTH = 1.1


def memory_mb(pid: int) -> float:
    """Resident memory of a process, 10^6 bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def ask(client: Client, run: str) -> None:
    """One round of queries."""
    for query in (client.get, client.replicas, client.latencies, client.ledgers, client.placement):
        query(run)
    client.request(run, 17)
    list(itertools.islice(client.list(), 5))
    next(iter(client.watch(run)))  # and leave


def trouble(address: str) -> None:
    """What a server must refuse."""
    with Client(address, token="not the token of the server") as stranger:
        refused(lambda: list(stranger.list()))
    with grpc.insecure_channel(address) as channel:
        for path in ("/pimserve.v1.SimulationService/Launch", "/pimserve.v1.SchedulerService/GetReplicas", "/no/Such"):
            refused(lambda path=path: channel.unary_unary(path)(b"\xff" * 100, timeout=5))


def refused(call: Callable[[], object]) -> None:
    """Make a call that must fail."""
    try:
        call()
    except (ServiceError, grpc.RpcError):
        return
    raise AssertionError("this should have been refused")


def other_runs(client: Client, number: int) -> None:
    """A run that ends, and one that is cancelled."""
    small = client.launch("", ["workload.num_requests=200"])
    refused(lambda: client.launch("", ["cluster.replicas=-1"]))
    for _ in client.watch(small.id):
        pass
    cancelled = client.launch("", [*SETTINGS, "workload.num_requests=300000"])
    time.sleep(0.2 * (number % 4))
    client.cancel(cancelled.id)
    for _ in client.watch(cancelled.id):
        pass
    client.delete(small.id)
    client.delete(cancelled.id)


def main() -> None:
    """Soak, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        token = Path(scratch) / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        command = [
            PIMSERVE,
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data",
            data,
            "--max-running",
            "2",
            "--token-file",
            token,
        ]
        with (Path(scratch) / "log").open("wb") as log:
            server = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            failed = soak(server, server.stdout.readline().split()[-1], data, arguments.seconds)
        finally:
            server.terminate()
            server.wait()
    sys.exit(failed)


def soak(server: subprocess.Popen[str], address: str, data: Path, seconds: float) -> int:
    """Returns 1 if something grew."""
    calls = itertools.count()
    over = threading.Event()
    errors: list[BaseException] = []

    def repeat(what: Callable[[Client, int], None]) -> None:
        try:
            with Client(address, token=TOKEN) as client:
                for number in itertools.count():
                    if over.is_set():
                        return
                    what(client, number)
                    next(calls)
        except BaseException as error:  # noqa: BLE001 told below
            errors.append(error)
            over.set()

    with Client(address, token=TOKEN) as client:
        enough = f"workload.num_requests={round(2 * _RATE_PER_S * _SPEED * seconds)}"
        run = client.launch("name: soak", [*SETTINGS, enough], speed=_SPEED).id
        while not client.get(run).progress:
            time.sleep(0.1)
        worker = (read_json(data / "runs" / run / "worker.json") or {})["pid"]
        bodies = (
            lambda client, _: ask(client, run),
            lambda client, _: ask(client, run),
            lambda _, __: trouble(address),
            other_runs,
        )
        threads = [threading.Thread(target=repeat, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        seen: list[tuple[float, float, float]] = []
        began = time.monotonic()
        while time.monotonic() < began + seconds and not over.wait(seconds / 30):
            seen.append((time.monotonic() - began, memory_mb(server.pid), memory_mb(worker)))
            at, served_mb, run_mb = seen[-1]
            print(f"{at:6.0f} s   server {served_mb:7.1f} MB   run {run_mb:7.1f} MB", flush=True)
        over.set()
        for thread in threads:
            thread.join()
        rounds = next(calls)
        client.cancel(run)
    if errors:
        raise errors[0]
    size = len(seen) // 3  # medians, for a checkpoint takes memory for a moment
    second, last = seen[size : 2 * size], seen[2 * size :]
    server_growth, run_growth = (
        statistics.median(each[part] for each in last) / statistics.median(each[part] for each in second)
        for part in (1, 2)
    )
    print(f"{rounds:,} rounds; memory in the last third over that in the second:", end=" ")
    print(f"server {server_growth:.3f}, run {run_growth:.3f}")
    return int(max(server_growth, run_growth) > MOST_GROWTH)


if __name__ == "__main__":
    main()
