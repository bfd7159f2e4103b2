"""The Python client, both kinds, over TLS and without; and what it says when it cannot be answered."""

import asyncio
import inspect
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from pimserve.cluster.base.rpc.results_stream import receiving
from pimserve.cluster.client import AsyncClient, Client, ServiceError, TlsFiles, calls
from pimserve.cluster.service.limits import Limits
from pimserve.cluster.service.server import ServerOptions, serving
from pimserve.errors import PimserveError
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import simulation_pb2 as sim
from tests.cluster.service.harness import refused, server_and_client

SLEEPING = (sys.executable, "-c", "import time; time.sleep(600)")
LIMITS = Limits(1, 5, None)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with server_and_client(tmp_path_factory.mktemp("client"), queued=20, worker=SLEEPING) as each:
        yield each


def test_the_asynchronous_client_does_the_same(client):
    async def everything():
        async with AsyncClient(client.address) as mine:
            run = await mine.launch("name: theirs", ["workload.num_requests=9"], speed=2)
            assert await mine.get(run.id) == client.get(run.id)
            assert await mine.scenario(run.id) == client.scenario(run.id)
            assert [each.id async for each in mine.list()] == [each.id for each in client.list()]
            assert (await mine.validate("")).model == "mixtral-8x7b"
            with pytest.raises(ServiceError, match="no run 'ffff' here"):
                await mine.get("ffff")
            assert inspect.iscoroutinefunction(AsyncClient.get)
            refused_later = mine.launch("x" * 10**7)  # raises where it is awaited, not here
            with pytest.raises(ServiceError):
                await refused_later
            watching = mine.watch(run.id, 0.05)
            seen = [await anext(watching)]
            await mine.cancel(run.id)
            seen += [each async for each in watching]
            assert seen[-1].state == "cancelled"
            with pytest.raises(ServiceError, match="only finished runs have results"):
                await mine.results(run.id, tmp)
            await mine.delete(run.id)
            return run

    tmp = Path("never-written")
    run = asyncio.run(everything())
    assert (run.name, run.speed) == ("theirs", 2)
    assert refused(client.get, run.id)[0] == "NOT_FOUND"
    assert not tmp.exists()


def test_both_clients_have_the_same_methods():
    def public(kind):
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)


def test_only_idempotent_calls_are_made_again():
    retried = {name for methods in calls._IDEMPOTENT.values() for name in methods}
    assert not retried & {"Delete", "ChangeScheduler", "ScaleRate", "InjectRequests", "Watch", "GetResults"}
    files = (sim, sched)
    services = {each.full_name: each for file in files for each in file.DESCRIPTOR.services_by_name.values()}
    for service, methods in calls._IDEMPOTENT.items():
        assert set(methods) <= set(services[service].methods_by_name)


def test_a_server_that_comes_back_is_found_again(tmp_path):
    options = ServerOptions("127.0.0.1:0", tmp_path, LIMITS, worker=SLEEPING)
    with serving(options) as address:
        client = Client(address)
        run = client.launch("")
        watch = client.watch(run.id, 0.05)
        assert next(watch).id == run.id
    with serving(replace(options, listen=address)):
        assert client.get(run.id).id == run.id
        client.cancel(run.id)
        assert list(watch)[-1].state == "cancelled"  # although its stream had broken off
    client.close()


def test_no_server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with Client(address) as client:
            code, message = refused(lambda: list(client.list()))
            assert code == "UNAVAILABLE"
            assert message == f"{address}: no server answers there, or one with other TLS settings (Connection refused)"


def test_a_server_that_says_nothing():
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with Client(address, timeout_s=0.2) as client:
            assert refused(client.get, "abcd") == (
                "DEADLINE_EXCEEDED",
                f"{address}: no answer in time; --timeout allows more",
            )


def test_tokens(tmp_path):
    options = ServerOptions("127.0.0.1:0", tmp_path, LIMITS, token="right-right-right", worker=SLEEPING)
    with serving(options) as address:
        with Client(address, token="right-right-right") as client:
            assert list(client.list()) == []
        for token, message in (("wrong-wrong-wrong", "wrong token"), (None, "this server asks for a token")):
            with Client(address, token=token) as client:
                assert refused(lambda client=client: list(client.list())) == (
                    "UNAUTHENTICATED",
                    f"{address}: {message}; give it with --token-file or PIMSERVE_TOKEN",
                )


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    """Files of a server and of a client with a certificate each, and of a stranger."""
    folder = tmp_path_factory.mktemp("pems")
    ours, others = trustme.CA(), trustme.CA()
    for name, authority in (("server", ours), ("client", ours), ("stranger", others)):
        issued = authority.issue_cert("127.0.0.1", "localhost")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
    ours.cert_pem.write_to_path(folder / "ca.pem")
    return folder


def tls(pems, name=None):
    if name is None:
        return TlsFiles(ca=pems / "ca.pem")
    return TlsFiles(cert=pems / f"{name}.pem", key=pems / f"{name}.key", ca=pems / "ca.pem")


def test_tls(tmp_path, pems):
    files = TlsFiles(pems / "server.pem", pems / "server.key")
    with serving(ServerOptions("127.0.0.1:0", tmp_path, LIMITS, tls=files, worker=SLEEPING)) as address:
        with Client(address, tls=tls(pems)) as client:
            assert list(client.list()) == []
        with Client(address) as plain:
            assert refused(plain.get, "abcd")[0] == "UNAVAILABLE"


def test_mutual_tls(tmp_path, pems):
    options = ServerOptions("127.0.0.1:0", tmp_path, LIMITS, tls=tls(pems, "server"), worker=SLEEPING)
    with serving(options) as address:
        with Client(address, tls=tls(pems, "client")) as client:
            assert list(client.list()) == []
        for files in (tls(pems), tls(pems, "stranger")):
            with Client(address, tls=files) as client:
                code, message = refused(client.get, "abcd")
                assert code == "UNAVAILABLE"
                assert "no server answers there, or one with other TLS settings" in message


class TestReceiver:
    """Streams of files that are cut short, damaged or hostile leave nothing."""

    FILE = sim.GetResultsResponse(file=sim.ResultFile(name="a", size=3))
    CHUNK = sim.GetResultsResponse(chunk=b"abc")
    DIGEST = sim.GetResultsResponse(sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")

    def receive(self, folder, *parts):
        with receiving(folder) as receiver:
            for part in parts:
                receiver.take(part)
        return receiver.sizes

    def test_a_whole_file(self, tmp_path):
        assert self.receive(tmp_path / "out", self.FILE, self.CHUNK, self.DIGEST) == {"a": 3}
        assert (tmp_path / "out" / "a").read_bytes() == b"abc"

    @pytest.mark.parametrize(
        "parts",
        [
            (FILE, CHUNK),
            (FILE, DIGEST),
            (FILE, CHUNK, CHUNK, DIGEST),
            (FILE, sim.GetResultsResponse(chunk=b"abd"), DIGEST),
            (CHUNK,),
            (FILE, FILE),
            (sim.GetResultsResponse(),),
            (sim.GetResultsResponse(file=sim.ResultFile(name="../a", size=3)), CHUNK, DIGEST),
            (sim.GetResultsResponse(file=sim.ResultFile(name="..", size=3)), CHUNK, DIGEST),
            (sim.GetResultsResponse(file=sim.ResultFile(name="/tmp/a", size=3)), CHUNK, DIGEST),
        ],
    )
    def test_what_is_not_whole(self, tmp_path, parts):
        with pytest.raises(PimserveError):
            self.receive(tmp_path / "out", *parts)
        assert list(tmp_path.iterdir()) == []
