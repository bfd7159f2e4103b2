"""Seeds of the fault simulation, and that a seed always does the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import number

ROOT = Path(__file__).parents[2]
SEEDS = max(100, number(300))  # fewer have not all kinds of faults
KINDS = {
    *(f"kill {what}" for what in ("coordinator", "shard", "devices", "server", "worker")),
    *("terminate", "stop", "break", "partition", "full disk", "bad disk", "wall clock", "power"),
}


def simulated(*options):
    """What the simulation prints, in a process of its own, where names may be replaced."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "tests.simulated", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.medium
def test_a_seed_always_does_the_same():
    first, again = (simulated("--seed", "7", "--trace") for _ in range(2))
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr
    assert len(first.stdout.splitlines()) > 50
    assert first.stdout == again.stdout


@pytest.mark.slow
def test_all_seeds_end_with_the_same_bits():
    done = simulated("--seeds", str(SEEDS), "--processes", "2")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    made = {kind: int(count) for count, kind in re.findall(r"(\d+) x ([a-z ]+)", done.stdout)}
    assert {kind for kind in KINDS if made.get(kind, 0) < SEEDS / 100} == set()
