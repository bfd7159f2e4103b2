"""What no client of ours sends: noise, fields out of range, too much, half a call, two hundred at once.

Whatever comes, a call ends with a status that says whose fault it is, and the server goes on.
"""

import gc
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from pimserve.cluster.base.rpc.security import bearer
from pimserve.cluster.client import Client
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import simulation_pb2 as sim
from tests.cluster.service.harness import server_and_client
from tests.examples import examples

TOKEN = "a token of the tests".replace(" ", "-")
METADATA = bearer(TOKEN)
SLEEPING = (sys.executable, "-c", "import time; time.sleep(600)")
EVERY_METHOD = [
    (f"/{service.full_name}/{method.name}", getattr(module, method.input_type.name), method.server_streaming)
    for module in (sim, sched)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
CLEAR = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,  # a run that is starting
    grpc.StatusCode.DEADLINE_EXCEEDED,  # a stream without an end
}


@contextmanager
def hostile_server(folder):
    """A server that asks for a token, with a run that never answers."""
    with server_and_client(folder, running=1, queued=3, worker=SLEEPING, token=TOKEN) as client:
        client.run_id = client.launch("").id
        yield client


@contextmanager
def raw(client):
    """A channel that takes any bytes."""
    with grpc.insecure_channel(client.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with hostile_server(tmp_path_factory.mktemp("hostile")) as each:
        yield each


@pytest.fixture(scope="module")
def channel(client):
    with raw(client) as each:
        yield each


def status(channel, path, data, *, stream, metadata=METADATA, timeout=0.5):
    """How a call with these bytes ends."""
    call = (channel.unary_stream if stream else channel.unary_unary)(path)
    try:
        if stream:
            list(call(data, metadata=metadata, timeout=timeout))
        else:
            call(data, metadata=metadata, timeout=timeout)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def alive(client):
    return client.get(client.run_id).state == "starting"


def values(field, run_ids):
    """Anything that a field of a message can hold."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.just({})
    if field.name == "run_id":
        return st.one_of(run_ids, st.text(max_size=20))
    kinds = {
        field.TYPE_STRING: st.text(max_size=50),
        field.TYPE_BYTES: st.binary(max_size=50),
        field.TYPE_BOOL: st.booleans(),
        field.TYPE_DOUBLE: st.floats(),
        field.TYPE_UINT32: st.integers(0, 2**32 - 1),
        field.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        field.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        field.TYPE_ENUM: st.integers(-5, 10),
    }
    one = kinds[field.type] if field.message_type is None else messages(field.message_type._concrete_class, run_ids)
    return st.lists(one, max_size=5) if field.is_repeated else one


def messages(kind, run_ids):
    """Any message of a type."""
    fields = {field.name: values(field, run_ids) for field in kind.DESCRIPTOR.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: kind(**given))


def requests(run_ids, methods=EVERY_METHOD):
    """A method, and bytes for it: a message, a damaged message, or noise."""

    def bytes_for(method):
        whole = messages(method[1], run_ids).map(lambda message: message.SerializeToString())
        damaged = st.tuples(whole, st.integers(0, 200), st.binary(max_size=8)).map(
            lambda given: given[0][: given[1]] + given[2] + given[0][given[1] :]
        )
        return st.tuples(st.just(method), st.one_of(whole, damaged, st.binary(max_size=200)))

    return st.sampled_from(methods).flatmap(bytes_for)


def send_anything(client, channel, count):
    """Calls whose bytes may well be right: they launch, cancel and delete runs, too."""

    @examples(count, suppress_health_check=list(HealthCheck))
    @given(requests(st.builds(lambda: client.run_id)))
    def anything(request):
        (path, _, stream), data = request
        assert status(channel, path, data, stream=stream) in CLEAR

    anything()
    for run in client.list(["queued", "starting", "running", "paused"]):
        client.cancel(run.id)
    assert client.launch("").state in {"queued", "starting"}


def test_whatever_the_bytes_the_status_is_clear(tmp_path):
    with hostile_server(tmp_path) as client, raw(client) as channel:
        send_anything(client, channel, 300)


def test_a_run_survives_whatever_it_is_asked(worker):
    """The scheduler's methods, on a run that goes on; few of the requests are right, and those take effect."""
    each = worker("workload.num_requests=100000", "output.steps=false")
    each.call("Pause", sim.PauseRequest(run_id="abcd"))
    scheduler = [method for method in EVERY_METHOD if "Scheduler" in method[0]]

    @examples(200, suppress_health_check=list(HealthCheck))
    @given(requests(st.just("abcd"), scheduler))
    def anything(request):
        (path, _, stream), data = request
        assert status(each.channel, path, data, stream=stream, metadata=each.metadata, timeout=5) in CLEAR

    anything()
    each.call("Resume", sim.ResumeRequest(run_id="abcd"))
    assert each.call("GetLedgers", sched.GetLedgersRequest(run_id="abcd")).simulated_s > 0


@pytest.mark.deep
def test_thousands_of_messages(tmp_path):
    with hostile_server(tmp_path) as client, raw(client) as channel:
        send_anything(client, channel, 3_000)


@pytest.mark.deep
def test_memory_is_flat(client, channel):
    """Thousands of good calls, refused calls, noise, and streams that are left: an hour of a busy client."""

    def calls(times):
        for _ in range(times):
            client.get(client.run_id)
            list(client.list())
            next(client.watch(client.run_id))
            for path, _, stream in EVERY_METHOD:
                status(channel, path, b"\xff", stream=stream)
                status(channel, path, b"", stream=stream, metadata=())
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    calls(50)
    before = calls(50)
    after = calls(400)
    assert after - before < 4_000_000


@pytest.mark.parametrize("method", EVERY_METHOD, ids=lambda method: method[0].rpartition("/")[2])
def test_bytes_that_are_no_message_are_the_callers_fault(client, channel, method):
    path, _, stream = method
    assert status(channel, path, b"\xff\xff\xff", stream=stream) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("metadata", [(), bearer("not-the-right-token"), (("authorization", TOKEN),)])
@pytest.mark.parametrize("method", EVERY_METHOD, ids=lambda method: method[0].rpartition("/")[2])
def test_no_method_is_open_to_strangers(client, channel, method, metadata):
    path, kind, stream = method
    data = kind().SerializeToString()
    assert status(channel, path, data, stream=stream, metadata=metadata) is grpc.StatusCode.UNAUTHENTICATED


def test_the_scheme_of_the_token_may_be_written_in_any_case(client, channel):
    path, kind, stream = next(method for method in EVERY_METHOD if method[0].endswith("/List"))
    data = kind().SerializeToString()
    for scheme in ("Bearer", "bearer", "BEARER"):
        given = (("authorization", f"{scheme} {TOKEN}"),)
        assert status(channel, path, data, stream=stream, metadata=given) is grpc.StatusCode.OK


def test_reflection_is_not_open_to_strangers_either(client, channel):
    call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter([b""]), timeout=5))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_too_much_at_once(client, channel):
    path = EVERY_METHOD[0][0]
    request = sim.ValidateRequest(scenario={"yaml": "#" * (33 << 20)}).SerializeToString()
    assert status(channel, path, request, stream=False, timeout=20) is grpc.StatusCode.RESOURCE_EXHAUSTED
    request = sim.ValidateRequest(scenario={"yaml": "#" * (2 << 20)}).SerializeToString()
    assert status(channel, path, request, stream=False, timeout=20) is grpc.StatusCode.INVALID_ARGUMENT


def test_deadlines_that_are_over(client, channel):
    request = sim.WatchRequest(run_id=client.run_id, interval_s=60).SerializeToString()
    for timeout in (-1, 0.1):
        found = status(channel, "/pimserve.v1.SimulationService/Watch", request, stream=True, timeout=timeout)
        assert found is grpc.StatusCode.DEADLINE_EXCEEDED
    assert alive(client)


def test_unknown_methods(client, channel):
    assert status(channel, "/pimserve.v1.Nothing/Nothing", b"", stream=False) is grpc.StatusCode.UNIMPLEMENTED


def test_calls_that_are_begun_and_not_finished(client, channel):
    """Streams of requests that never come, or that are left half-way, where one request is expected."""
    never = threading.Event()

    def silent():
        never.wait()
        yield b""

    begun = [channel.stream_stream(path)(silent(), metadata=METADATA) for path, _, _ in EVERY_METHOD]
    watches = [
        channel.unary_stream("/pimserve.v1.SimulationService/Watch")(
            sim.WatchRequest(run_id=client.run_id).SerializeToString(), metadata=METADATA
        )
        for _ in range(20)
    ]
    for watch in watches:
        next(watch)
    assert alive(client)
    for call in (*begun, *watches):
        call.cancel()
    never.set()
    assert alive(client)


def test_two_hundred_clients(client):
    """Each with a connection of its own, and a watch beside its calls."""
    began = threading.Barrier(200)

    def one(_):
        with Client(client.address, token=TOKEN, timeout_s=60) as mine:
            began.wait(60)
            watch = mine.watch(client.run_id)
            first = next(watch)
            found = [mine.get(client.run_id).state for _ in range(3)]
            watch.close()
            return {first.state, *found}

    with ThreadPoolExecutor(200) as pool:
        assert set().union(*pool.map(one, range(200))) == {"starting"}
    assert alive(client)


def test_more_streams_than_there_are_threads_for(client, channel):
    """What is too much is refused, and calls are still answered."""
    request = sim.WatchRequest(run_id=client.run_id).SerializeToString()
    watch = channel.unary_stream("/pimserve.v1.SimulationService/Watch")

    def opened() -> tuple[list[Any], int]:
        streams, refused = [], 0
        for _ in range(300):
            stream = watch(request, metadata=METADATA)
            try:
                next(stream)
                streams.append(stream)
            except grpc.RpcError as error:
                refused += error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return streams, refused

    open_, refused = opened()
    end = time.monotonic() + 20
    while len(open_) < 256 and time.monotonic() < end:  # threads of other tests' streams end after these do
        for stream in open_:
            stream.cancel()
        time.sleep(0.5)
        open_, refused = opened()
    assert (len(open_), refused) == (256, 44)
    assert alive(client)
    for stream in open_:
        stream.cancel()
    end = time.monotonic() + 10
    while True:  # their threads are free again
        try:
            stream = watch(request, metadata=METADATA)
            next(stream)
            break
        except grpc.RpcError:
            assert time.monotonic() < end
    stream.cancel()
