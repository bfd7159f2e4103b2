"""Runs that a server launches on processes and on Ray: watched, held, killed, and the bits of an undisturbed one."""

import os
import signal

import pytest

from pimserve.cluster.base.files import read_json
from pimserve.cluster.client import ServiceError
from pimserve.cluster.run.read_summary import load_document
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.service.launch_options import AllowedPlaces
from pimserve.cluster.service.worker_link import WORKER
from tests.cluster.documents import serve
from tests.cluster.service.harness import refused, server_and_client, until
from tests.e2e.chaos import HOSTS, descendants, hosts_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SETTINGS = ["workload.num_requests=2000", "output.steps=false"]
SPREAD = {"on": "processes", "devices_per_actor": 2}  # one shard, and two hosts of two devices each


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Six processes start on a machine that may be busy."""
    monkeypatch.setattr("tests.cluster.service.harness.PATIENCE_S", 120.0)


def worker_of(data, run):
    return until(lambda: (read_json(data / "runs" / run.id / "worker.json") or {}).get("pid"))


def alive(pid):
    return os.path.exists(f"/proc/{pid}")


def state(client, run):
    return client.get(run.id).state


def digest_of(client, run, out, **spread):
    last = list(client.watch(run.id, 0.05))[-1]
    assert last.state == "finished", last.error
    client.results(run.id, out, ["summary.json"])
    document = load_document(out)
    assert {key: document["simulator"]["spread"][key] for key in spread} == spread
    return document["digest"]


def test_on_processes_through_kills_of_hosts_and_worker(tmp_path):
    data = tmp_path / "data"
    with server_and_client(data, worker=WORKER) as client:
        run = client.launch("", SETTINGS, speed=100, paused=True, **SPREAD)  # four seconds long
        assert state(client, run) == "starting"
        code = ""
        try:
            client.ledgers(run.id)
        except ServiceError as error:
            code = error.code
        assert code == "UNAVAILABLE" or state(client, run) != "starting"  # it may have begun between two calls
        until(lambda: state(client, run) == "paused")
        told = client.get(run.id)
        assert (told.on, told.shards, told.devices, told.devices_per_actor) == ("processes", 1, "planned", 2)

        worker = worker_of(data, run)
        hosts = hosts_of(worker)
        assert len(hosts) == 3
        nothing = client.devices(run.id).devices
        assert [(each.replica, each.device, each.host) for each in nothing] == [
            (0, 0, "devices-0"),
            (0, 1, "devices-0"),
            (0, 2, "devices-1"),
            (0, 3, "devices-1"),
        ]
        assert sum(each.output_tokens for each in nothing) <= 1
        client.resume(run.id)
        until(lambda: client.latencies(run.id).left)
        os.kill(hosts[-1], signal.SIGKILL)
        until(lambda: sum(each.host_restarts for each in client.devices(run.id).devices) >= 2)  # devices of one host

        client.pause(run.id)
        devices, (ledger,) = client.devices(run.id), client.ledgers(run.id).ledgers
        assert devices.simulated_s == client.ledgers(run.id).simulated_s
        assert sum(each.output_tokens for each in devices.devices) == ledger.output_tokens > 0
        assert {each.steps for each in devices.devices} == {ledger.steps}
        assert sum(each.active_joules for each in devices.devices) == pytest.approx(ledger.active_joules, rel=1e-12)
        passed = {traffic.kind: traffic for traffic in devices.devices[0].traffic}
        assert passed["all_reduce"].sent_bytes == passed["all_reduce"].received_bytes > 0

        hosts = hosts_of(worker)
        os.kill(worker, signal.SIGKILL)
        until(lambda: not any(map(alive, hosts)))
        until(lambda: client.get(run.id).restarts == 1)
        assert state(client, run) in {"starting", "paused"}  # hosts may take longer to end than the worker to start
        until(lambda: state(client, run) == "paused")  # it was held, and is
        client.resume(run.id)
        digest = digest_of(client, run, tmp_path / "out", shards=1, devices="planned")
        at_last, (ledger,) = client.devices(run.id), client.ledgers(run.id).ledgers
        assert sum(each.output_tokens for each in at_last.devices) == ledger.output_tokens
    summary, _ = serve(prepare(load_scenario(None, SETTINGS)))
    assert digest == summary["digest"]
    assert ledger.steps == summary["batch"]["steps"]


def test_nothing_is_left_of_a_run_that_is_cancelled_while_it_starts_or_goes_on(tmp_path):
    data = tmp_path / "data"
    with server_and_client(data, worker=WORKER) as client:
        for begun in (False, True):
            run = client.launch("", SETTINGS, speed=1, **SPREAD)
            worker = worker_of(data, run)
            hosts = until(lambda worker=worker: hosts_of(worker))
            assert state(client, run) in {"starting", "running"}
            if begun:
                until(lambda run=run: state(client, run) == "running")
                hosts = hosts_of(worker)
                assert client.scale_rate(run.id, 2) > 0
                assert client.inject(run.id, [5], [6]).first_request > 0
            client.cancel(run.id)
            until(lambda run=run: state(client, run) == "cancelled")
            until(lambda hosts=hosts: not any(map(alive, hosts)))


@pytest.mark.ray
def test_on_a_ray_of_its_own_where_the_server_allows_it(tmp_path):
    settings, before = ["workload.num_requests=100"], descendants(os.getpid())  # the Ray of other tests, maybe
    with server_and_client(tmp_path / "data", worker=WORKER, places=AllowedPlaces(("ray",))) as client:
        assert refused(client.launch, "", settings)[1].startswith("options.on: must be one of ray: this server")
        run = client.launch("", settings, on="ray", devices="planned")
        until(lambda: state(client, run) != "queued")
        assert state(client, run) == "starting"
        digest = digest_of(client, run, tmp_path / "out", shards=1, devices="planned")
    summary, _ = serve(prepare(load_scenario(None, settings)))
    assert digest == summary["digest"]
    until(
        lambda: (
            not any(
                pid not in before and mark in line
                for pid, line in descendants(os.getpid()).items()
                for mark in (*HOSTS, "raylet")
            )
        )
    )
