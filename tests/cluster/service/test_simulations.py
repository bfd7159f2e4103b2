"""The services of a server whose workers do nothing: what it checks, counts, refuses and says of itself."""

import json
import time
from contextlib import ExitStack

import grpc
import pytest
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from pimserve.cluster.client import Client, RunFilter, ServiceError
from pimserve.cluster.service.limits import Limits
from pimserve.cluster.service.server import SERVICES, ServerOptions, serving
from pimserve.errors import InputError
from pimserve.v1 import scheduler_pb2, simulation_pb2, simulation_pb2_grpc
from tests.cluster.service.harness import STAND_IN, refused, server_and_client, until

SMALL = ["workload.num_requests=50"]
LONG = ["workload.num_requests=100000", "output.steps=false"]
OUR_SERVICES = (
    simulation_pb2.DESCRIPTOR.services_by_name["SimulationService"],
    scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"],
)
VALID = {  # fields that must be there for a request to be looked at
    "ScaleRate": {"factor": 2},
    "InjectRequests": {"input_tokens": [1], "output_tokens": [1]},
}
TRACE = "arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,6\n"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Of a server that most tests share."""
    with server_and_client(tmp_path_factory.mktemp("shared"), queued=20) as each:
        yield each


def test_a_scenario_is_checked_before_it_is_launched(client):
    found = client.validate("cluster: {device: h100, devices_per_node: 2, replicas: 3}")
    assert (found.model, found.device, found.replicas, found.devices) == ("mixtral-8x7b", "h100", 3, 6)
    with pytest.raises(ServiceError) as caught:
        client.launch("cluster: {replicas: 0}\nworkload: {num_request: 3}")
    assert caught.value.code == "INVALID_ARGUMENT"
    assert [field for field, _ in caught.value.violations] == [
        "scenario.yaml: cluster.replicas",
        "scenario.yaml: workload.num_request",
    ]
    assert "did you mean num_requests?" in str(caught.value)


def test_all_that_is_wrong_with_a_launch_is_told_at_once(client):
    with pytest.raises(ServiceError) as caught:
        client.launch(
            "cluster: {replicas: 0}",
            ["run.seed=-1", "nonsense", "slo.x=1"],
            trace="zzz:",
            speed=-1,
            idempotency_key="a b",
        )
    assert [field for field, _ in caught.value.violations] == [
        "options.speed",
        "idempotency_key",
        "scenario.trace",
        "scenario.overrides[1]",
        "scenario.yaml: cluster.replicas",
        "scenario.overrides[2]: slo.x",
        "scenario.overrides[0]: run.seed",
    ]
    with pytest.raises(ServiceError) as caught:
        client.launch("run: {seed: -1}", idempotency_key="a b", on="ray")
    assert [field for field, _ in caught.value.violations] == [
        "idempotency_key",
        "options.on",
        "scenario.yaml: run.seed",
    ]
    with pytest.raises(ServiceError) as caught:
        client.launch("model: none-of-these\ncluster: {device: nor-this}\nscheduler: {router: dice}")
    assert {field for field, _ in caught.value.violations} == {
        "scenario.yaml: scheduler.router",
        "scenario.yaml: model",
        "scenario.yaml: cluster.device",
    }
    with pytest.raises(ServiceError) as caught:
        client.validate("a: [")
    assert [field for field, _ in caught.value.violations] == ["scenario.yaml:2"]


def test_a_launch_that_is_repeated_launches_once(client):
    first = client.launch("name: silent", SMALL, idempotency_key="once")
    again = client.launch("name: silent", SMALL, idempotency_key="once")
    assert first.id == again.id
    assert refused(client.launch, "name: silent", LONG, idempotency_key="once")[0] == "ALREADY_EXISTS"


def test_runs_are_found_by_their_labels_and_paced_before_they_begin(tmp_path):
    with server_and_client(tmp_path / "data", running=1, queued=5) as client:
        labels = {"team": "chips", "sweep/1": ""}
        first = client.launch("name: silent", SMALL, labels=labels, speed=2, idempotency_key="a")
        second = client.launch("name: other", SMALL, labels={"team": "chips"})
        assert (first.labels, client.get(first.id).labels) == (labels, labels)
        assert refused(client.launch, "name: silent", SMALL, speed=2, idempotency_key="a")[0] == "ALREADY_EXISTS"

        def listed(**wanted):
            return [run.id for run in client.list(matching=RunFilter(**wanted))]

        assert listed(labels={"team": "chips"}) == [second.id, first.id]
        assert listed(labels=labels) == listed(name="sil*") == [first.id]
        assert listed(labels={"team": "chips"}, states=["queued"], name="other") == [second.id]
        assert listed(since=second.created_at) == [second.id]
        assert listed(until=second.created_at) == [first.id]
        assert client.change_speed(second.id, 5) == 0
        assert client.get(second.id).speed == 5
        options = tmp_path / "data" / "runs" / second.id / "options.json"
        assert json.loads(options.read_text())["speed"] == 5
        assert refused(client.change_speed, first.id, 3) == ("UNAVAILABLE", f"run {first.id} is starting; try again")
        client.cancel(second.id)
        assert refused(client.change_speed, second.id, 3)[0] == "FAILED_PRECONDITION"


def test_health_and_reflection(client):
    with grpc.insecure_channel(client.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        [answer] = reflection.ServerReflectionInfo(asked, timeout=5)
        assert set(SERVICES) <= {service.name for service in answer.list_services_response.service}


def requests_of_runs(run_id):
    """(path, request, whether answers are a stream) of every method that is about a run."""
    for service in OUR_SERVICES:
        for method in service.methods:
            if "run_id" in method.input_type.fields_by_name:
                kind = message_factory.GetMessageClass(method.input_type)
                request = kind(run_id=run_id, **VALID.get(method.name, {}))
                yield f"/{service.full_name}/{method.name}", request, method.server_streaming


@pytest.mark.parametrize("run_id", ["ffff", "../registry.sqlite3", "\u00c4/\0"])
def test_unknown_runs_are_not_found_whatever_is_asked_of_them(client, run_id):
    with grpc.insecure_channel(client.address) as channel:
        for path, request, stream in requests_of_runs(run_id):
            make = channel.unary_stream if stream else channel.unary_unary
            with pytest.raises(grpc.RpcError) as caught:
                next(iter(make(path, type(request).SerializeToString)(request, timeout=5)))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND, path


def test_the_queue_is_bounded_and_first_come_first_served(tmp_path):
    with server_and_client(tmp_path / "data", running=1, queued=2) as client:
        first, second, third = (client.launch("name: silent", SMALL) for _ in range(3))
        assert client.get(second.id).queue_position == 0
        assert client.get(third.id).queue_position == 1
        assert refused(client.launch, "", SMALL) == (
            "RESOURCE_EXHAUSTED",
            "the queue is full: 2 runs wait; try again later",
        )
        assert refused(client.replicas, third.id) == (
            "FAILED_PRECONDITION",
            f"run {third.id} is still in the queue",
        )
        assert refused(client.summary, third.id)[0] == "FAILED_PRECONDITION"
        assert client.cancel(second.id).state == "cancelled"
        assert client.get(third.id).queue_position == 0
        assert client.cancel(first.id).id == first.id
        until(lambda: client.get(third.id).state == "starting")
        assert client.get(first.id).state == "cancelled"


def test_one_folder_and_one_port_have_one_server(tmp_path):
    limits = Limits(1, 1, None)
    with serving(ServerOptions("127.0.0.1:0", tmp_path / "a", limits)) as address:
        with (
            pytest.raises(InputError, match="another server uses this folder"),
            serving(ServerOptions("127.0.0.1:0", tmp_path / "a", limits)),
        ):
            pass
        with (
            pytest.raises(InputError, match="another program listens there"),
            serving(ServerOptions(address, tmp_path / "b", limits)),
        ):
            pass
    with (
        pytest.raises(InputError, match=r"--token-file or --tls-client-ca"),
        serving(ServerOptions("0.0.0.0:0", tmp_path / "c", limits)),
    ):
        pass
    with (
        pytest.raises(InputError, match="is no folder"),
        serving(ServerOptions("127.0.0.1:0", tmp_path / "c", limits, traces=tmp_path / "none")),
    ):
        pass


def test_watchers_are_told_when_the_server_stops(tmp_path):
    options = ServerOptions("127.0.0.1:0", tmp_path, Limits(1, 5, None), worker=STAND_IN)
    with ExitStack() as server:
        address = server.enter_context(serving(options))
        with grpc.insecure_channel(address) as channel, Client(address) as client:
            run = client.launch("name: silent", SMALL)
            stub = simulation_pb2_grpc.SimulationServiceStub(channel)
            watching = stub.Watch(simulation_pb2.WatchRequest(run_id=run.id, interval_s=0.05))
            next(watching)
            began = time.monotonic()
            server.close()
            with pytest.raises(grpc.RpcError) as caught:
                list(watching)
            assert caught.value.details() == "the server is stopping; the run goes on with the next"
            assert time.monotonic() - began < 10
