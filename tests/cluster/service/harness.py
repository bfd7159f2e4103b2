"""Servers and workers for the tests of the service, in this process where that is possible."""

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from pimserve.cluster.base.files import read_json
from pimserve.cluster.base.rpc.security import bearer
from pimserve.cluster.client import Client, ServiceError
from pimserve.cluster.service.limits import Limits
from pimserve.cluster.service.received_scenario import as_yaml, read_scenario
from pimserve.cluster.service.server import ServerOptions, serving
from pimserve.cluster.service.worker import work
from pimserve.cluster.service.worker_link import WORKER
from pimserve.v1 import scheduler_pb2_grpc, simulation_pb2_grpc, worker_pb2_grpc

STAND_IN = (WORKER[0], str(Path(__file__).with_name("stand_in.py")))
PATIENCE_S = 30.0


def until(condition):
    """Wait until a condition holds; returns what it gave."""
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return found


def prepared(data, *overrides, speed=0.0):
    """The folder of a run that nobody has begun."""
    scenario = read_scenario("name: live", overrides, "", None).scenario
    return data.create("abcd", as_yaml(scenario), {"speed": speed})


class Worker:
    """A worker in a thread, with its run held before the first step, and the stubs to talk to it."""

    def __init__(self, data, overrides, *, speed):
        self.folder = prepared(data, *overrides, speed=speed)
        self.code = None

        def body():
            self.code = work(self.folder, held=True)

        self._thread = threading.Thread(target=body, daemon=True)
        self._thread.start()
        said = until(lambda: read_json(self.folder.worker))
        self.address, self.metadata = said["address"], bearer(said["token"])
        self.channel = grpc.insecure_channel(self.address)
        self.simulation = simulation_pb2_grpc.SimulationServiceStub(self.channel)
        self.scheduler = scheduler_pb2_grpc.SchedulerServiceStub(self.channel)
        self.follower = worker_pb2_grpc.WorkerServiceStub(self.channel)

    def call(self, method, request):
        stub = self.simulation if hasattr(self.simulation, method) else self.scheduler
        return getattr(stub, method)(request, metadata=self.metadata, timeout=PATIENCE_S, wait_for_ready=True)

    def outcome(self):
        """How the run ended, once it has."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return read_json(self.folder.outcome)


@contextmanager
def server_and_client(data, *, running=1, queued=5, disk_bytes=None, worker=STAND_IN, token=None, **options):
    """A server in this process, and a client of it; workers are processes."""
    limits = Limits(running, queued, disk_bytes)
    options_ = ServerOptions("127.0.0.1:0", data, limits, worker=worker, token=token, **options)
    with serving(options_) as address, Client(address, token=token) as client:
        yield client
        going_on = ["queued", "starting", "running", "paused"]
        for each in client.list(going_on):
            client.cancel(each.id)
        until(lambda: not list(client.list(going_on)))


def refused(call, *arguments, **options):
    """Status and message of a call that fails."""
    with pytest.raises(ServiceError) as caught:
        call(*arguments, **options)
    return caught.value.code, str(caught.value)
