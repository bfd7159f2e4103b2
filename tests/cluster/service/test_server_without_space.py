"""A server whose disk is full to the last byte: runs wait for space and go on, and its API can make space."""

import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pimserve.cluster.client import Client
from pimserve.cluster.service.limits import Limits
from pimserve.cluster.service.run_registry import Registry, RunRequest
from pimserve.cluster.service.server import ServerOptions, serving
from tests.cluster.service.harness import STAND_IN, refused, until

LONG = "workload: {num_requests: 10000}\n"


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounts are not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def full(disk):
    """Nothing is free for the block."""
    filler = disk / "filler"
    fill(filler)
    assert os.statvfs(disk).f_bavail == 0
    yield
    filler.unlink()


def fill(filler):
    for size in (1 << 20, 1 << 12, 1):
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(size)) == size:
                pass


@contextmanager
def server(disk):
    options = ServerOptions("127.0.0.1:0", disk / "data", Limits(2, 5, None), worker=STAND_IN)
    with serving(options) as address, Client(address) as client:
        yield client


def test_what_is_in_a_registry_can_be_changed_when_nothing_is_free(disk):
    def add(registry, number):
        registry.add(f"{number}", RunRequest("n" * 500, 0, False, "", ""))

    registry = Registry(disk / "registry.sqlite3")
    for number in range(300):
        add(registry, number)
    with full(disk):
        for number in range(0, 300, 3):
            registry.start(f"{number}")
            registry.end(f"{number}", "failed", "why " * 50, {"simulated_s": 1.0})
        registry.close()
        registry = Registry(disk / "registry.sqlite3")  # another server, on the same full disk
        for number in range(1, 300, 3):
            registry.start(f"{number}")
            registry.cancel(f"{number}")
            registry.end(f"{number}", "cancelled", "", {})
        for number in range(0, 300, 6):
            registry.remove(f"{number}")
        assert len(registry.in_states("failed")) == 50
        assert len(registry.in_states("cancelled")) == 100
        with pytest.raises(OSError, match="No space left"):
            list(map(partial(add, registry), range(1000, 3000)))
        registry.end("2", "cancelled", "", {})  # new runs leave room for the old ones
    registry.close()


@pytest.mark.server
@pytest.mark.e2e
@pytest.mark.deep
def test_a_run_waits_for_space_and_goes_on_and_others_can_be_ended_meanwhile(disk, tmp_path):
    with server(disk) as client:
        run = client.launch(LONG)
        other = client.launch("name: silent")
        until(lambda: client.get(run.id).state == "running")
        until((disk / "data" / "runs" / other.id / "starts").exists)
        with full(disk):
            waiting = until(lambda: found if "waits for disk space" in (found := client.get(run.id)).error else None)
            fill(disk / "filler")  # what it was writing is gone
            assert waiting.state == "starting"
            assert "MB needed" in waiting.error
            assert "waits for disk space" in refused(client.ledgers, run.id)[1]
            assert refused(client.launch, "")[0] == "RESOURCE_EXHAUSTED"
            assert client.cancel(other.id).state in {"starting", "cancelled"}
            until(lambda: client.get(other.id).state == "cancelled")
            client.delete(other.id)
            assert [each.id for each in client.list()] == [run.id]
            fill(disk / "filler")
    with full(disk), server(disk) as client:  # another one, while there is nothing free
        until(lambda: "waits for disk space" in client.get(run.id).error)
        assert client.get(run.id).state == "starting"
    with server(disk) as client:
        until(lambda: client.get(run.id).state == "finished")
        assert client.get(run.id).error == ""
        client.results(run.id, tmp_path / "results")
    assert_as_if_nothing_had_been(tmp_path / "results")


def assert_as_if_nothing_had_been(results):
    alone = results.parent / "alone"
    pimserve = Path(sys.executable).with_name("pimserve")
    options = ["--quiet", "--out", str(alone), "--set", "workload.num_requests=10000"]
    subprocess.run([pimserve, "run", *options], check=True, capture_output=True)
    for name in ("requests.npy", "steps.npy"):
        assert np.array_equal(np.load(results / name), np.load(alone / name))
