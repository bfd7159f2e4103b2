"""Fixtures of the service."""

import os

import pytest

from pimserve.cluster.base.files import write_json
from pimserve.cluster.base.processes import Process
from pimserve.cluster.service.data_folder import DataFolder
from pimserve.v1 import simulation_pb2
from tests.cluster.service.harness import Worker


@pytest.fixture
def worker(tmp_path):
    """Start a worker in this process; ended at the end."""
    started = []

    def start(*overrides, speed=0.0, server="none"):
        data = DataFolder(tmp_path / "data")
        if server != "none":
            me = Process.of(os.getpid())
            write_json(data.server, (me if server == "there" else Process(me.pid, "gone")).document())
        started.append(Worker(data, overrides, speed=speed))
        return started[-1]

    yield start
    for each in started:
        if each.code is None:
            each.call("Cancel", simulation_pb2.CancelRequest(run_id="abcd"))
            each.outcome()
        each.channel.close()
