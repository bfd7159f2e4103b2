"""One Ray for all tests that need one, and supervisors of either kind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pimserve.cluster.distributed.hosts.process_supervisor import ProcessSupervisor
from pimserve.cluster.distributed.hosts.ray_cluster import local_ray
from pimserve.cluster.distributed.hosts.ray_supervisor import RaySupervisor

HERE = str(Path(__file__).parent)
# Where processes find echo_host, and this code if it is not what is installed.
PATHS = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session")
def own_ray():
    """A Ray head of our own; its start has limits of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATHS)
        with local_ray(2, {"duplex": 4}) as cluster:
            yield cluster


@pytest.fixture(params=["process", pytest.param("ray", marks=pytest.mark.ray)])
def supervise(request, monkeypatch):
    """Makes a supervisor of hosts."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", PATHS)
    if request.param == "process":
        return ProcessSupervisor
    cluster = request.getfixturevalue("own_ray")
    return lambda specs, patience=None: RaySupervisor(cluster, "test", specs, patience=patience)


@pytest.fixture
def python():
    """Starts a fresh interpreter that finds echo_host."""
    started = []

    def start(code, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": PATHS},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
