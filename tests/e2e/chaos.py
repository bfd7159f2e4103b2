"""Disturb running simulations, and see that each ends with the bits of an undisturbed one and leaves nothing behind.

    python tests/e2e/chaos.py --kills 100                 # everywhere
    python tests/e2e/chaos.py --kills 20 --on ray         # on a Ray of its own

Each run is `pimserve run ... --on WHERE --checkpoint DIR`, paced so that it lasts. At random moments a part of it is
killed or stopped, its disk is full, or a node of its cluster is lost, as `FAULTS` says. Where that ends the command, it
is given again. Only processes that the run itself started are touched, by their id.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

PIMSERVE = Path(sysconfig.get_path("scripts")) / "pimserve"
HOSTS = ("pimserve.cluster.distributed.hosts.hosting", "ray::HostActor")  # in the command lines of hosts
DISK_BYTES = 24 << 20
FAULTS: Mapping[str, tuple[str, ...]] = {  # by where a run computes
    "local": ("coordinator", "command", "disk"),
    "processes": ("host", "host", "host stopped", "coordinator", "command", "disk"),
    "ray": ("host", "host stopped", "coordinator", "command", "gcs", "raylet", "driver", "gcs stopped"),
    "nodes": ("host", "node", "driver", "coordinator"),
}
SCENARIO = (
    *("--set", "workload.num_requests=6000", "--set", "cluster.replicas=2"),
    *("--set", "workload.arrival.process=poisson", "--set", "workload.arrival.rate_per_s=16"),
    *("--set", "scheduler.router=least_outstanding", "--set", "scheduler.report_interval_s=1"),
)
_MARKS = {"gcs": "/gcs_server ", "raylet": "/raylet/raylet ", "driver": "hosts.ray_driver "}
_LIMIT_S, _LEFT_S = 400.0, 10.0
_NODES = """
import json, os, sys
from ray.cluster_utils import Cluster
args = {"num_cpus": 1, "resources": {"duplex": 4}, "object_store_memory": 128 << 20, "include_dashboard": False}
os.makedirs("/tmp/ray", exist_ok=True)  # where it notes its address, whatever its folder
cluster = Cluster(initialize_head=True, head_node_args={**args, "temp_dir": sys.argv[1]})
node = cluster.add_node(**args)
print(cluster.address, flush=True)
for _ in sys.stdin:
    cluster.remove_node(node, allow_graceful=False)
    print("lost", flush=True)
    node = cluster.add_node(wait=False, **args)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
cluster.shutdown()
"""


@dataclass
class Outcome:
    """What came of one disturbed run."""

    digest: str = ""
    faults: list[str] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0


def parents() -> dict[int, int]:
    """All processes that run, with the one above each."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            except (OSError, ValueError):  # it has just ended
                continue
            if state not in "ZX":
                found[int(entry.name)] = int(parent)
    return found


def command_line(pid: int) -> str:
    """Of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def descendants(pid: int) -> dict[int, str]:
    """Processes below `pid`, with their command lines."""
    above, found = parents(), {pid}
    while more := {child for child, parent in above.items() if parent in found} - found:
        found |= more
    return {child: line for child in found - {pid} if (line := command_line(child))}


def hosts_of(pid: int) -> list[int]:
    """Hosts that the run with that process id has started."""
    return sorted(child for child, line in descendants(pid).items() if any(mark in line for mark in HOSTS))


class Nodes:
    """A Ray with two nodes on this machine, one of which is lost and replaced now and then."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.pid = process.pid
        self.address = process.stdout.readline().strip()
        self._process = process

    def lose(self) -> None:
        """Kill a node's raylet, and so all on it; another node comes some seconds later."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("lose\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline(), "the nodes themselves have ended"


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Started, and ended with all that belongs to them."""
    environment = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    os.environ.update({**environment, "RAY_USAGE_STATS_ENABLED": "0"})  # of the runs too
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="nodes-") as folder:  # Ray wants a short path
        with (Path(folder) / "log").open("w") as log:
            command = [sys.executable, "-c", _NODES, folder]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        below: dict[int, str] = {}
        try:
            nodes = Nodes(process)
            assert nodes.address, f"no nodes: {(Path(folder) / 'log').read_text()[-500:]}"
            below = descendants(process.pid)
            yield nodes
        finally:
            below.update(descendants(process.pid))
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            for pid, line in below.items():
                if command_line(pid) == line:
                    os.kill(pid, signal.SIGKILL)


@contextmanager
def small_disk(folder: Path) -> Iterator[str | None]:
    """A small file system at that folder; yields why there is none, if so."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        yield f"no tmpfs can be mounted here: {mounted.stderr.strip()}"
        return
    try:
        yield None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Run:
    """A run that is disturbed.

    Args:
        command: that runs it; its results folder lies in the folder that may become full.
        rng: says when and what.
        nodes: on which its hosts live, if not on its own.
    """

    def __init__(self, command: Sequence[str], rng: random.Random, nodes: Nodes | None = None) -> None:
        self.outcome = Outcome()
        self._command = command
        self._results = Path(command[command.index("--out") + 1])
        self._rng = rng
        self._nodes = nodes
        self._seen: dict[int, str] = {}
        self._began = time.monotonic()
        self._start()

    def disturb(self, fault: str, within_s: float) -> bool:
        """Let a fault happen at a random moment when the run is under way; returns whether it was before its end."""
        while self._process.poll() is None and not self._under_way():
            self._in_time()
            time.sleep(0.05)
        time.sleep(self._rng.uniform(0, within_s))
        if self._process.poll() is not None:
            return False
        self._see()
        if fault == "disk":
            return self._fill_disk()
        if fault == "node":
            assert self._nodes is not None
            self._nodes.lose()
        else:
            kind, _, stopped = fault.partition(" ")
            victims = self._victims(kind)
            if not victims:
                return False
            os.kill(self._rng.choice(victims), signal.SIGSTOP if stopped else signal.SIGKILL)
            if kind == "command":
                self._process.communicate()
                self._start()
        self.outcome.faults.append(fault)
        return True

    def end(self) -> Outcome:
        """Wait for the end, and see that nothing is left.

        Raises:
            AssertionError: it failed, or something is.
        """
        out, err = self._process.communicate(timeout=_LIMIT_S)
        assert self._process.returncode == 0, f"exit code {self._process.returncode}: {err}"
        notes = [line for line in err.splitlines() if not line.startswith(("note: ", "results in "))]
        assert not notes, f"more was said than notes: {notes}"
        summary = json.loads(out)
        self.outcome.digest = summary["digest"]
        self.outcome.recovery_s = summary["simulator"].get("spread", {}).get("recovery_s", [])
        self.outcome.wall_s = time.monotonic() - self._began
        deadline = time.monotonic() + _LEFT_S
        while left := self._left():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.1)
        return self.outcome

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _under_way(self) -> bool:
        if "--on" not in self._command:
            return (self._results.parent / "kept" / "target.json").exists()
        return bool(self._victims("host"))

    def _victims(self, kind: str) -> list[int]:
        """Processes of that kind."""
        pid, above = self._process.pid, parents()
        coordinators = [child for child, parent in above.items() if parent == pid]
        if kind == "command":
            return [pid]
        if kind == "coordinator":
            return coordinators
        if kind == "host":
            return hosts_of(pid if self._nodes is None else self._nodes.pid)
        lines = descendants(pid)
        found = [child for child, line in lines.items() if _MARKS[kind] in line]
        return [child for child in found if above.get(child) in coordinators] if kind == "driver" else found

    def _fill_disk(self) -> bool:
        """Let the disk be full until the command has ended, and give it again."""
        self._results.parent.mkdir(parents=True, exist_ok=True)  # it has hardly begun
        filler = self._results.parent / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while self._process.poll() is None:
                    file.write(bytes(4096))  # also what has become free since
            except OSError:
                pass
        try:
            _, err = self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            raise AssertionError("it has not noticed that the disk is full") from None
        finally:
            filler.unlink()
        if self._process.returncode == 0:
            raise AssertionError("it was over before the disk was full")
        assert "No space left on device" in err, err
        self.outcome.faults.append("disk")
        self._start()
        return True

    def _see(self) -> None:
        self._seen.update(descendants(self._process.pid))

    def _left(self) -> list[str]:
        """Processes and folders that are left of the run."""
        running = [line for pid, line in self._seen.items() if pid in parents() and command_line(pid) == line]
        hosts = hosts_of(self._nodes.pid) if self._nodes is not None else []
        folders = [word for line in self._seen.values() for word in _folders(line) if Path(word).exists()]
        kept = self._results.parent / "kept"
        return [*running, *map(command_line, hosts), *sorted(set(folders)), *([str(kept)] if kept.exists() else [])]

    def _in_time(self) -> None:
        assert time.monotonic() - self._began < _LIMIT_S, "it takes too long"


def _folders(line: str) -> list[str]:
    """Folders of Ray in a command line."""
    own = f"{tempfile.gettempdir()}/pimserve-ray-"
    return [part for part in line.replace('"', " ").replace("=", " ").split() if part.startswith(own)]


def command_for(folder: Path, on: str, options: Sequence[str]) -> list[str]:
    """The command of a run in that folder, with checkpoints; `on` "": undisturbed, and in one process."""
    kept = ["--checkpoint", str(folder / "kept")] if on else []
    where = ["--on", on] if on not in {"", "local"} else []
    return [str(PIMSERVE), "run", "--json", *where, *kept, "--out", str(folder / "out"), *options]


def disturbed(
    command: Sequence[str], rng: random.Random, faults: Sequence[str], within_s: float, nodes: Nodes | None = None
) -> Outcome:
    """Run a command with these faults, as far as it gets to them before it is over."""
    run = Run(command, rng, nodes)
    for fault in faults:
        if not run.disturb(fault, within_s):
            break
    return run.end()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="faults of all runs together")
    parser.add_argument("--on", choices=FAULTS, nargs="+", default=[*FAULTS], help="where runs compute")
    parser.add_argument("--per-run", type=int, default=4, help="faults of each run, at most")
    parser.add_argument("--within", type=float, default=4.0, help="seconds until a fault, once the run is under way")
    parser.add_argument("--speed", default="12x", help="pace of the runs, of 375 simulated seconds each")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and unmount what is mounted
    rng = random.Random(asked.seed)
    done: Counter[tuple[str, str]] = Counter()
    failed, runs, recoveries = 0, 0, []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        no_disk = stack.enter_context(small_disk(scratch / "disk"))
        if no_disk is not None:
            print(f"skipped full disks: {no_disk}", flush=True)
        plain = subprocess.run(command_for(scratch / "whole", "", SCENARIO), capture_output=True, text=True, check=True)
        expected = json.loads(plain.stdout)["digest"]
        while done.total() < asked.kills and failed < 10:
            place = asked.on[runs % len(asked.on)]
            kinds = [kind for kind in FAULTS[place] if kind != "disk" or no_disk is None]
            faults = rng.sample(kinds, min(asked.per_run, len(kinds), asked.kills - done.total()))
            folder = (scratch / "disk" if no_disk is None else scratch) / str(runs)
            runs += 1
            options = [*SCENARIO, "--speed", asked.speed]
            if place != "local":
                options += ["--shards", str(rng.choice([1, 2])), "--devices-per-actor", str(rng.choice([2, 4]))]
            try:
                with two_nodes() if place == "nodes" else nullcontext() as nodes:
                    on = place if nodes is None else nodes.address
                    options += ["--resource", "duplex=1"] if place == "nodes" else []
                    outcome = disturbed(command_for(folder, on, options), rng, faults, asked.within, nodes)
                assert outcome.digest == expected, "OTHER BITS"
            except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
                print(f"run {runs} on {place}, {', '.join(faults)}: FAILED: {error}", flush=True)
                failed += 1
                continue
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            done.update((place, fault) for fault in outcome.faults)
            recoveries += outcome.recovery_s
            told = f"run {runs} on {place}: same bits in {outcome.wall_s:.0f} s; {', '.join(outcome.faults) or 'over'}"
            print(f"{told} ({done.total()} so far)", flush=True)
    _report(done, recoveries)
    print(f"{done.total()} faults; {runs - failed} of {runs} runs ended with the same bits, and left nothing behind")
    return 1 if failed else 0


def _report(done: Mapping[tuple[str, str], int], recoveries: Sequence[float]) -> None:
    """A row for each fault, a column for each place."""
    faults = list(dict.fromkeys(fault for kinds in FAULTS.values() for fault in kinds))
    print("\n" + f"{'':14}" + "".join(f"{place:>11}" for place in FAULTS))
    for fault in faults:
        print(f"{fault:14}" + "".join(f"{done.get((place, fault), 0) or '':>11}" for place in FAULTS))
    if recoveries:
        ordered = sorted(recoveries)
        print(f"{len(ordered)} hosts replaced, median {ordered[len(ordered) // 2]:.2f} s, longest {ordered[-1]:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
