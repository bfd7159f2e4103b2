"""Run `pimserve` as a process of its own and take its time and memory from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIMSERVE = str(Path(sys.executable).parent / "pimserve")
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Process:
    """A process that ended well: wall-clock and CPU (user + system) seconds, peak memory (10^6 bytes), output."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    output: str


def run_process(command: Sequence[str]) -> Process:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed.
    """
    # The kernel counts the memory of the process that spawned a child into the child's peak, so this side of the
    # benchmarks imports the standard library only.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        _, status, used = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        for stream in (out, err):
            stream.seek(0)
        if child.returncode:
            raise RuntimeError(f"{' '.join(command)} exited with {child.returncode}:\n{err.read()}")
        return Process(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss * _MAXRSS_BYTES / 1e6, out.read())


@dataclass(frozen=True)
class Simulation:
    """One `pimserve run`: the process and the summary that it printed."""

    process: Process
    summary: dict[str, Any]

    @property
    def loop_s(self) -> float:
        """Wall-clock seconds of the simulation loop, as the run itself reports."""
        return float(self.summary["simulator"]["loop_s"])


def simulate(scenario: dict[str, Any], scratch: Path, *, trace: Path | None = None, runs: int = 1) -> list[Simulation]:
    """Run a scenario `runs` times with all metrics on and the results folder written.

    Raises:
        RuntimeError: a run failed, or equal runs gave different bits.
    """
    document = scratch / "scenario.yaml"
    document.write_text(json.dumps(scenario), encoding="utf-8")  # JSON is YAML too
    done = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            command = [PIMSERVE, "run", str(document), "--json", "--out", str(Path(folder) / "results")]
            if trace is not None:
                command += ["--trace", f"csv:{trace}"]
            process = run_process(command)
        done.append(Simulation(process, json.loads(process.output)))
    if len({simulation.summary["digest"] for simulation in done}) != 1:
        raise RuntimeError(f"equal runs of {scenario['name']} differ in their digest")
    return done
