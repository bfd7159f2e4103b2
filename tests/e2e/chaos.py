"""Kill parts of running simulations with SIGKILL, and see that each run ends with the bits of an undisturbed one.

    python tests/e2e/chaos.py --runs 30 --on ray        # device and shard actors, and the coordinator itself

Each run is `pimserve run ... --on WHERE --checkpoint DIR`. At random moments a random process of it is killed: a host
(an actor of shards or devices), or the coordinator, after which the same command is given again. Only processes that
the run itself started are touched, by their id.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PIMSERVE = Path(sysconfig.get_path("scripts")) / "pimserve"
HOSTS = ("pimserve.cluster.distributed.hosts.hosting", "ray::HostActor")  # in the command lines of hosts
_LIMIT_S = 300.0


@dataclass
class Outcome:
    """What came of one disturbed run."""

    digest: str
    killed: list[str] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    continued: bool = False
    wall_s: float = 0.0


def descendants(pid: int) -> dict[int, str]:
    """Processes below `pid`, with their command lines."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    lines = {}
    for child in found - {pid}:
        try:
            lines[child] = (Path("/proc") / str(child) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return lines


def hosts_of(pid: int) -> list[int]:
    """Hosts that the run with that process id has started."""
    return sorted(child for child, line in descendants(pid).items() if any(mark in line for mark in HOSTS))


def disturbed(command: Sequence[str], rng: random.Random, kills: int, within_s: float, spare: bool) -> Outcome:
    """Run a command and kill parts of it; `spare`: never the coordinator."""
    outcome = Outcome("")
    began = time.monotonic()
    deadline = began + _LIMIT_S
    left = kills
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while left and process.poll() is None and time.monotonic() < deadline:
            hosts = hosts_of(process.pid)
            if not hosts:
                time.sleep(0.02)
                continue
            time.sleep(rng.uniform(0, within_s) + rng.choice([0.0, 1.0, 2.0]))
            hosts = hosts_of(process.pid)
            if process.poll() is not None or not hosts:
                continue
            coordinator = not spare and rng.random() < 1 / 3
            victim = process.pid if coordinator else rng.choice(hosts)
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
            outcome.killed.append("coordinator" if coordinator else "host")
            left -= 1
            if coordinator:
                break
        out, err = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
        if process.returncode == -signal.SIGKILL:
            continue  # it goes on from its checkpoint
        results = Path(command[command.index("--out") + 1])
        if process.returncode == 2 and "coordinator" in outcome.killed and "exists already" in err:
            out = (results / "summary.json").read_text()  # one was killed when all was done, but for saying so
        elif process.returncode:
            raise AssertionError(f"exit code {process.returncode} after {outcome.killed}: {err}")
        summary = json.loads(out)
        outcome.digest = summary["digest"]
        outcome.continued = summary["simulator"]["continued"]
        outcome.recovery_s = summary["simulator"]["spread"]["recovery_s"]
        outcome.wall_s = time.monotonic() - began
        return outcome


def command_for(folder: Path, on: str, options: Sequence[str]) -> list[str]:
    """The command of a run in that folder."""
    where = ["--on", on, "--checkpoint", str(folder / "kept"), "--out", str(folder / "out")] if on != "local" else []
    where = where or ["--out", str(folder / "out")]
    return [str(PIMSERVE), "run", "--json", *where, *options]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--on", default="ray")
    parser.add_argument("--kills", type=int, default=2, help="of each run")
    parser.add_argument("--within", type=float, default=2.0, help="seconds between kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    rng = random.Random(asked.seed)
    shared = [
        *("--set", "workload.num_requests=6000", "--set", "cluster.replicas=2", "--set", "output.steps=false"),
        *("--set", "workload.arrival.process=poisson", "--set", "workload.arrival.rate_per_s=16"),
        *("--set", "scheduler.router=least_outstanding", "--set", "scheduler.report_interval_s=1"),
    ]
    failed, recoveries = 0, []
    with tempfile.TemporaryDirectory() as scratch:
        plain = subprocess.run(
            command_for(Path(scratch) / "whole", "local", shared), capture_output=True, text=True, check=True
        )
        expected = json.loads(plain.stdout)["digest"]
        for number in range(asked.runs):
            options = [*shared, "--shards", str(rng.choice([1, 2])), "--devices-per-actor", str(rng.choice([2, 4]))]
            command = command_for(Path(scratch) / str(number), asked.on, options)
            try:
                outcome = disturbed(command, rng, asked.kills, asked.within, spare=False)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                print(f"run {number}: FAILED: {error}", flush=True)
                failed += 1
                continue
            same = outcome.digest == expected
            failed += not same
            recoveries += outcome.recovery_s
            told = ", ".join(f"{seconds:.2f}" for seconds in outcome.recovery_s)
            print(
                f"run {number}: {'same bits' if same else 'OTHER BITS'} in {outcome.wall_s:.1f} s; killed "
                f"{', '.join(outcome.killed) or 'nothing, it was over'}; replaced in s: {told or '-'}",
                flush=True,
            )
    recoveries.sort()
    if recoveries:
        middle = recoveries[len(recoveries) // 2]
        print(f"{len(recoveries)} hosts replaced, median {middle:.2f} s, longest {recoveries[-1]:.2f} s")
    print(f"{asked.runs - failed} of {asked.runs} runs ended with the same bits")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
