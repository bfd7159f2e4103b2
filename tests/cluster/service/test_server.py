"""A server and its workers: the queue, what happens to workers, limits, and what the server says of runs."""

import errno
import json
import os
import signal
from itertools import pairwise
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pimserve.cluster.base.files import read_json
from pimserve.cluster.base.supervisor import Patience
from pimserve.cluster.client import Client, ServiceError
from pimserve.cluster.metrics.endpoint import EndpointOptions
from pimserve.cluster.run.read_summary import load_document
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.service.limits import Limits
from pimserve.cluster.service.server import ServerOptions, serving
from pimserve.cluster.service.worker_link import WORKER
from pimserve.errors import InputError
from tests.cluster.documents import serve
from tests.cluster.service.harness import STAND_IN, refused, server_and_client, until

SMALL = ["workload.num_requests=50"]
LONG = ["workload.num_requests=100000", "output.steps=false"]
pytestmark = pytest.mark.e2e

TRACE = "arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,6\n"


def ended(client, run_id):
    return list(client.watch(run_id, 0.05))[-1]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Of a server that most tests share."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "traces").mkdir()
    (folder / "traces" / "two.csv").write_text(TRACE)
    with server_and_client(folder / "data", running=2, queued=20, traces=folder / "traces") as each:
        yield each


def test_a_run_from_launch_to_results(client, tmp_path):
    launched = client.launch("name: mine", SMALL)
    assert (launched.name, launched.restarts, launched.error) == ("mine", 0, "")
    seen = list(client.watch(launched.id, 0.05))
    assert seen[-1].state == "finished"
    assert all(a.progress is None or a.progress.finished <= b.progress.finished for a, b in pairwise(seen))
    assert seen[-1].created_at <= seen[-1].started_at <= seen[-1].ended_at

    out = tmp_path / "results"
    sizes = client.results(launched.id, out)
    assert sizes == {path.name: path.stat().st_size for path in out.iterdir()}
    assert set(sizes) == {"SHA256SUMS", "requests.npy", "scenario.yaml", "steps.npy", "summary.json"}
    summary, _ = serve(prepare(load_scenario(None, ["name=mine", *SMALL])))
    assert load_document(out)["digest"] == summary["digest"]
    assert client.summary(launched.id).document() == load_document(out)
    assert len(np.load(out / "requests.npy")) == seen[-1].progress.finished == 50
    assert client.results(launched.id, tmp_path / "one", ["summary.json"]) == {"summary.json": sizes["summary.json"]}
    assert refused(client.results, launched.id, tmp_path / "two", ["../registry.sqlite3"])[0] == "INVALID_ARGUMENT"
    assert not (tmp_path / "two").exists()
    with pytest.raises(InputError, match="exists already"):
        client.results(launched.id, out)
    assert load_scenario_text(client.scenario(launched.id), tmp_path).workload.num_requests == 50
    assert client.latencies(launched.id).latencies["ttft"].count == 50  # also of a run that has ended
    assert client.request(launched.id, 49).state == "finished"
    assert refused(client.request, launched.id, 50)[0] == "NOT_FOUND"
    assert refused(client.scale_rate, launched.id, 2) == (
        "FAILED_PRECONDITION",
        f"run {launched.id} is finished: only a run that goes on answers",
    )
    client.delete(launched.id)
    assert refused(client.get, launched.id)[0] == "NOT_FOUND"


def load_scenario_text(text, folder):
    file = folder / "again.yaml"
    file.write_text(text)
    return load_scenario(file)


def test_traces_of_the_servers_folder(client, tmp_path):
    launched = client.launch("", trace="csv:two.csv")
    assert ended(client, launched.id).progress.finished == 2
    assert refused(client.launch, "", trace="csv:/etc/passwd") == (
        "INVALID_ARGUMENT",
        "workload.trace.path: no file '/etc/passwd' below the folder of the server's --traces",
    )


def test_runs_are_held_changed_and_ended_from_outside(client):
    run = client.launch("", LONG, paused=True)
    until(lambda: client.get(run.id).progress)
    assert client.get(run.id).state == "paused"
    assert client.pause(run.id) == 1e-15
    injected = client.inject(run.id, [5], [6], 0.5)
    assert client.request(run.id, injected.first_request).input_tokens == 5
    assert client.scale_rate(run.id, 2) == 1e-15
    assert client.change_scheduler(run.id, max_num_seqs=7) == 1e-15
    assert client.resume(run.id) == 1e-15
    assert client.get(run.id).state == "running"
    until(lambda: client.latencies(run.id).left)
    assert client.pause(run.id) > 1e-15
    assert client.replicas(run.id).replicas[0].running <= 7
    assert client.ledgers(run.id).ledgers[0].output_tokens > 0
    assert client.placement(run.id).replicas[0].devices == 4
    assert refused(client.delete, run.id) == (
        "FAILED_PRECONDITION",
        f"run {run.id} is paused: cancel it before you delete it",
    )
    client.cancel(run.id)
    last = ended(client, run.id)
    assert last.state == "cancelled"
    assert last.progress.finished > 0
    assert client.cancel(run.id).state == "cancelled"  # again changes nothing


def test_a_run_that_fails_says_why(client):
    run = client.launch("", ["run.warmup_s=100000", "workload.num_requests=5"])
    last = ended(client, run.id)
    assert last.state == "failed"
    assert last.error.startswith("run.warmup_s: ")


def test_lists_come_in_pages_and_by_state(client, monkeypatch):
    monkeypatch.setattr("pimserve.cluster.client.client._PAGE", 2)
    runs = [client.launch(f"name: n{number}", SMALL) for number in range(3)]
    for run in runs:
        ended(client, run.id)
    listed = [run.id for run in client.list()]
    assert len(listed) == len(set(listed))
    assert [run_id for run_id in listed if run_id in {run.id for run in runs}] == [run.id for run in reversed(runs)]
    assert {run.state for run in client.list(["finished"])} == {"finished"}


def test_a_worker_that_dies_is_replaced_a_few_times(tmp_path):
    with server_and_client(tmp_path / "data", running=2) as client:
        unlucky, hopeless = client.launch("name: dies-twice", SMALL), client.launch("name: dies", SMALL)
        last = ended(client, unlucky.id)
        assert (last.state, last.restarts) == ("finished", 2)
        last = ended(client, hopeless.id)
        assert (last.state, last.restarts) == ("failed", 3)
        assert "its process died 4 times within 120 s (signal 9)" in last.error
        assert (tmp_path / "data" / "runs" / hopeless.id / "starts").read_text() == "xxxx"


def test_a_run_that_was_killed_goes_on_and_gives_the_same(tmp_path):
    settings = ["workload.num_requests=1000"]
    with server_and_client(tmp_path / "data") as client:
        run = client.launch("", settings, paused=True)
        until(lambda: client.get(run.id).progress)
        worker = tmp_path / "data" / "runs" / run.id / "worker.json"
        first = read_json(worker)["pid"]
        os.kill(first, signal.SIGKILL)
        until(lambda: client.get(run.id).restarts == 1)
        until(lambda: (read_json(worker) or {"pid": first})["pid"] != first)
        until(lambda: client.get(run.id).state == "paused")  # it stays held
        until(lambda: not refused_or_none(client.resume, run.id))
        assert ended(client, run.id).state == "finished"
        client.results(run.id, tmp_path / "out", ["summary.json"])
    summary, _ = serve(prepare(load_scenario(None, settings)))
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["digest"] == summary["digest"]


@pytest.mark.slow
def test_a_run_that_failed_is_continued_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("pimserve.cluster.service.worker_supervisor._PATIENCE", Patience(deaths=0, stop_s=10))
    settings = ["workload.num_requests=2000"]
    with server_and_client(tmp_path / "data", queued=0) as client:
        run = client.launch("", settings, speed=100)  # for four seconds; a checkpoint comes after two
        assert client.continue_(run.id).state in {"starting", "running"}  # it has not failed
        folder = tmp_path / "data" / "runs" / run.id
        until((folder / "checkpoints" / "checkpoint").exists)
        os.kill(read_json(folder / "worker.json")["pid"], signal.SIGKILL)
        failed = ended(client, run.id)
        assert (failed.state, failed.error.partition(";")[0]) == (
            "failed",
            "its process died 1 times within 60 s (signal 9)",
        )
        target = folder / "checkpoints" / "target.json"
        kept = target.read_bytes()
        target.write_bytes(b"{")
        client.continue_(run.id)
        again = ended(client, run.id)
        assert "is damaged" in again.error
        assert again.progress == failed.progress  # how far it had come is known all the same
        target.write_bytes(kept)
        goes_on = client.continue_(run.id)
        assert (goes_on.error, goes_on.ended_at) == ("", None)
        assert goes_on.progress.finished >= failed.progress.finished > 0
        last = ended(client, run.id)
        assert (last.state, last.progress.finished) == ("finished", 2000)
        assert refused(client.continue_, run.id) == (
            "FAILED_PRECONDITION",
            f"run {run.id} is finished: only a failed run goes on; launch it again",
        )
        client.results(run.id, tmp_path / "out", ["summary.json"])
        hopeless = client.launch("", ["run.warmup_s=100000", "workload.num_requests=5"])
        assert ended(client, hopeless.id).state == "failed"
        assert refused(client.continue_, hopeless.id) == (
            "FAILED_PRECONDITION",
            f"run {hopeless.id} is failed: it has no checkpoint to go on from; launch it again",
        )
    simulator = load_document(tmp_path / "out")["simulator"]
    assert simulator["continued"] is True
    summary, _ = serve(prepare(load_scenario(None, settings)))
    assert load_document(tmp_path / "out")["digest"] == summary["digest"]


def refused_or_none(call, *arguments):
    try:
        call(*arguments)
    except ServiceError as error:
        return error
    return None


def test_the_disk_quota_holds_at_launch_and_while_runs_go_on(tmp_path):
    with server_and_client(tmp_path / "data", disk_bytes=1_000_000) as client:
        greedy = client.launch("name: greedy", SMALL)
        last = ended(client, greedy.id)
        assert (last.state, last.error) == ("failed", "disk quota: all runs together may take up 1,000,000 bytes")
        assert refused(client.launch, "", SMALL) == (
            "RESOURCE_EXHAUSTED",
            "runs take up the 1,000,000 bytes that the server may use; delete some",
        )
        client.delete(greedy.id)
        assert ended(client, client.launch("", SMALL).id).state == "finished"


def test_a_full_disk_refuses_runs(tmp_path, monkeypatch):
    with server_and_client(tmp_path / "data") as client:
        with monkeypatch.context() as full:

            def write_json(*_):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            full.setattr("pimserve.cluster.service.data_folder.write_json", write_json)
            assert refused(client.launch, "", SMALL) == (
                "RESOURCE_EXHAUSTED",
                "the server cannot write its files: No space left on device",
            )
        assert not list((tmp_path / "data" / "runs").iterdir())
        assert ended(client, client.launch("", SMALL).id).state == "finished"


def test_the_client_refuses_what_no_server_takes(tmp_path):
    with Client("127.0.0.1:1") as client:
        code, message = refused(client.launch, "#" * (2 << 20), [])
    assert (code, message) == ("INVALID_ARGUMENT", "scenario: has 2,097,152 bytes; a server takes at most 1,048,576")


def test_a_server_that_stops_leaves_runs_to_the_next(tmp_path):
    settings = ["workload.num_requests=2000"]
    data = tmp_path / "data"
    options = ServerOptions("127.0.0.1:0", data, Limits(1, 5, None), worker=STAND_IN)
    with serving(options) as address, Client(address) as client:
        held = client.launch("", settings, paused=True)
        waiting = client.launch("", SMALL)
        until(lambda: client.get(held.id).progress)
        pid = read_json(data / "runs" / held.id / "worker.json")["pid"]
    assert not Path(f"/proc/{pid}").exists()
    assert not (data / "server.json").exists()
    with server_and_client(data) as client:
        assert client.get(held.id).state in {"starting", "paused"}
        until(lambda: client.get(held.id).state == "paused")
        assert client.get(held.id).restarts == 0
        assert client.get(waiting.id).state == "queued"
        until(lambda: not refused_or_none(client.resume, held.id))
        assert ended(client, held.id).state == "finished"
        assert ended(client, waiting.id).state == "finished"


@pytest.mark.parametrize("per_engine", [pytest.param(False, marks=pytest.mark.deep), True])
def test_histograms_are_per_engine_if_the_server_is_asked_for_them(tmp_path, per_engine):
    addresses = []
    metrics = EndpointOptions("127.0.0.1:0", per_engine=per_engine)
    options = {"metrics": metrics, "announce_metrics": addresses.append, "worker": WORKER}
    with server_and_client(tmp_path / "data", **options) as client:
        ended(client, client.launch("", [*SMALL, "cluster.replicas=9"]).id)
        with urlopen(f"http://{addresses[0]}/metrics", timeout=10) as answer:
            families = {f.name: f for f in text_string_to_metric_families(answer.read().decode())}
    engines = {sample.labels["engine"] for sample in families["pimserve_step_tokens"].samples}
    assert engines == ({str(engine) for engine in range(9)} if per_engine else {"all"})


def test_metrics_of_all_runs_are_exposed_and_stay_for_the_last_scrape(tmp_path):
    addresses = []
    options = {"metrics": EndpointOptions("127.0.0.1:0", "token-for-scrapers"), "announce_metrics": addresses.append}
    with server_and_client(tmp_path / "data", running=2, **options) as client:

        def scrape():
            request = Request(f"http://{addresses[0]}/metrics", headers={"Authorization": "Bearer token-for-scrapers"})
            with urlopen(request, timeout=10) as answer:
                families = text_string_to_metric_families(answer.read().decode())
            return {(s.name, s.labels["run_id"], s.labels.get("outcome")): s.value for f in families for s in f.samples}

        assert scrape() == {}
        held = client.launch("", ["workload.num_requests=2000"], paused=True)
        done = ended(client, client.launch("", SMALL).id)
        until(lambda: len({run for _, run, _ in scrape()}) == 2)
        found = scrape()
        assert found["pimserve_requests_total", done.id, "finished"] == done.progress.finished
        assert found["pimserve_virtual_time_seconds_total", done.id, None] >= done.progress.simulated_s
        assert found["pimserve_requests_expected", held.id, None] == 2000
        assert found["pimserve_requests_total", held.id, "finished"] == 0
