"""What a server says when its disk is full, or when a run's process does not answer."""

import errno
import os
import socket
import threading
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import grpc
import pytest

from pimserve.cluster.base.rpc.channels import make_server
from pimserve.cluster.client import Client
from pimserve.cluster.metrics.endpoint import EndpointOptions
from pimserve.cluster.service.data_folder import DataFolder
from pimserve.cluster.service.limits import Limits
from pimserve.cluster.service.run_registry import Registry, RunRequest
from pimserve.cluster.service.server import ServerOptions, serving
from pimserve.cluster.service.simulations import Simulations
from pimserve.errors import InputError
from pimserve.v1 import scheduler_pb2, scheduler_pb2_grpc, simulation_pb2
from tests.cluster.service.harness import STAND_IN, refused, server_and_client, until


def test_a_registry_that_cannot_grow_says_so_and_goes_on(tmp_path):
    registry = Registry(tmp_path / "registry.sqlite3")
    pages = registry._connection.execute("PRAGMA page_count").fetchone()[0]
    registry._connection.execute(f"PRAGMA max_page_count = {pages}")
    added = []

    def add(number):
        added.append(registry.add(f"{number}", RunRequest("n" * 500, 0, False, "", "")))

    with pytest.raises(OSError, match="No space left on device") as caught:
        list(map(add, range(10_000)))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "registry.sqlite3"))
    assert registry.in_states("queued") == added
    registry._connection.execute("PRAGMA max_page_count = 100000")
    add("more")
    registry.close()


@pytest.mark.e2e
def test_a_full_disk_is_no_internal_error(tmp_path, monkeypatch):
    with server_and_client(tmp_path / "data", worker=STAND_IN) as client:
        with monkeypatch.context() as full:

            def add(*_, **__):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "registry.sqlite3")

            full.setattr(Registry, "add", add)
            assert refused(client.launch, "name: silent") == ("RESOURCE_EXHAUSTED", "the server's disk is full")
        assert not list((tmp_path / "data" / "runs").iterdir())


@pytest.mark.e2e
def test_a_run_that_could_not_be_deleted_can_be_deleted_again(tmp_path, monkeypatch):
    """Its files first: a run that is forgotten while they are there would keep them for good."""
    with server_and_client(tmp_path / "data", worker=STAND_IN) as client:
        run_id = client.launch("name: silent").id
        client.cancel(run_id)
        with monkeypatch.context() as failing:

            def remove(*_):
                raise OSError(errno.EIO, os.strerror(errno.EIO), "runs")

            failing.setattr(DataFolder, "remove", remove)
            until(lambda: client.get(run_id).state == "cancelled")
            assert refused(client.delete, run_id) == ("UNAVAILABLE", "the server's disk fails; try again")
        client.delete(run_id)
        assert not list((tmp_path / "data" / "runs").iterdir())


class Queue:
    """A queue with a run whose worker is another one at each look."""

    def __init__(self, links):
        self.links = links
        self.held = None

    def link(self, _):
        return self.links[0]

    def hold(self, _, *, held):
        self.held = held
        if len(self.links) > 1:  # this worker dies here, and the next has begun as was noted before
            del self.links[0]

    def replaced(self, _, link):
        return link is not self.links[0]


def test_a_worker_that_began_before_an_order_was_noted_is_told_too():
    """The first one answered and died: its successor was held for good, and the run said to be running."""
    told = []

    def link(number):
        def resume(request, **_):
            told.append((number, request.run_id))
            return simulation_pb2.ResumeResponse(simulated_s=number)

        simulation = SimpleNamespace(Resume=resume)
        return SimpleNamespace(simulation=simulation, metadata=(), changed=lambda: None, wait_for_news=lambda: None)

    queue = Queue([link(0), link(1)])
    context = SimpleNamespace(time_remaining=lambda: None)
    answer = Simulations(queue, None, 1).Resume(simulation_pb2.ResumeRequest(run_id="a"), context)
    assert (told, answer.simulated_s, queue.held) == ([(0, "a"), (1, "a")], 1, False)


class Forwards(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Hands a query on to a process at that address."""

    def __init__(self, address, timeout_s):
        self.channel = grpc.insecure_channel(address)
        self.timeout_s = timeout_s

    def GetReplicas(self, request, context):  # noqa: N802
        stub = scheduler_pb2_grpc.SchedulerServiceStub(self.channel)
        return stub.GetReplicas(request, timeout=self.timeout_s)


class Answers(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Answers when it is told to."""

    def __init__(self):
        self.asked, self.may = threading.Event(), threading.Event()

    def GetReplicas(self, request, context):  # noqa: N802
        self.asked.set()
        self.may.wait(30)
        return scheduler_pb2.GetReplicasResponse()


@contextmanager
def listening(servicer, threads):
    server = make_server(threads, None)
    if servicer is not None:
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield address
    finally:
        server.stop(None).wait()


def asked_through(address, timeout_s=10.0):
    with listening(Forwards(address, timeout_s), 2) as server, Client(server) as client:
        return refused(client.replicas, "abcd")


def test_a_process_that_went_away():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        assert asked_through(nobody) == ("UNAVAILABLE", "the run's process went away; try again")


def test_a_process_of_another_version():
    with listening(None, 1) as address:
        code, message = asked_through(address)
    assert (code, message) == (
        "UNIMPLEMENTED",
        "the run's process is of another version of pimserve, which cannot do this",
    )


def test_a_process_that_is_busy():
    busy = Answers()
    with listening(busy, 1) as address:
        code, message = asked_through(address, 0.2)
        assert (code, message) == (
            "DEADLINE_EXCEEDED",
            "the run's process is busy and did not answer in time; try again",
        )
        busy.may.set()


def test_a_process_and_a_server_with_too_many_calls():
    busy = Answers()
    with listening(busy, 1) as address, ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(address))
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        futures = [stub.GetReplicas.future(scheduler_pb2.GetReplicasRequest(run_id="a")) for _ in range(2)]
        assert busy.asked.wait(10)
        code, message = asked_through(address)
        assert (code, message) == (
            "RESOURCE_EXHAUSTED",
            "the run's process has too many calls to answer; try again later",
        )
        client = stack.enter_context(Client(address))
        assert refused(client.replicas, "abcd") == (
            "RESOURCE_EXHAUSTED",
            f"{address}: the server has too many calls to answer; try again later",
        )
        busy.may.set()
        for future in futures:
            future.result(10)


@pytest.mark.parametrize("port", ["server", "metrics"])
def test_a_server_that_cannot_listen_makes_no_folder(port, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        addresses = {"server": "127.0.0.1:0", "metrics": "127.0.0.1:0"}
        addresses[port] = f"127.0.0.1:{taken.getsockname()[1]}"
        metrics = EndpointOptions(addresses["metrics"])
        options = ServerOptions(addresses["server"], tmp_path / "new" / "data", Limits(1, 1, None), metrics=metrics)
        with pytest.raises(InputError, match="cannot be used"), serving(options):
            pass
    assert not list(tmp_path.iterdir())
