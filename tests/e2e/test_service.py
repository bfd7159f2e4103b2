"""The service as people use it: `pimserve serve` and the commands that talk to it, also when processes are killed."""

import json
import os
import re
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2

from pimserve.cluster.base.rpc.statuses import details_of
from tests.command import pimserve

PIMSERVE = Path(sysconfig.get_path("scripts")) / "pimserve"
PATIENCE_S = 60.0

pytestmark = pytest.mark.e2e


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Service:
    """A server that can be killed and started again at the same address, and the commands."""

    def __init__(self, folder):
        self.folder = folder
        self.address = "127.0.0.1:0"
        self.server = None

    def start(self, *options):
        command = [PIMSERVE, "serve", "--listen", self.address, "--data", self.folder / "data", *options]
        with (self.folder / "server.log").open("ab") as log:
            self.server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=plain_env()
            )
        said = self.server.stdout.readline()
        found = re.fullmatch(r"listening on (127\.0\.0\.1:\d+)\n", said)
        assert found, said + self.log()
        self.address = found[1]

    def end(self, number):
        self.server.send_signal(number)
        code = self.server.wait(PATIENCE_S)
        self.server.stdout.close()
        return code

    def log(self):
        return (self.folder / "server.log").read_text()

    def run(self, *arguments, **env):
        return pimserve(self.folder, *arguments, **{"PIMSERVE_SERVER": self.address, **env})

    def ok(self, *arguments):
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments):
        return json.loads(self.ok(*arguments, "--json"))

    def state(self, run):
        return self.json("query", run)["run"]

    def worker(self, run):
        return json.loads((self.folder / "data" / "runs" / run / "worker.json").read_text())["pid"]


def plain_env():
    unwanted = {"COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "PIMSERVE_DEBUG", "PIMSERVE_TOKEN", "PIMSERVE_SERVER"}
    return {key: value for key, value in os.environ.items() if key not in unwanted}


@pytest.fixture
def service(tmp_path):
    each = Service(tmp_path)
    yield each
    if each.server is not None and each.server.poll() is None:
        for run in each.json("list"):
            each.run("cancel", run["id"])
        assert each.end(signal.SIGTERM) == 0
    if each.server is not None:
        assert "Traceback" not in each.log()


def digest_of_an_undisturbed_run(folder, *settings):
    out = folder / "undisturbed"
    arguments = [PIMSERVE, "run", "--json", "--out", str(out), *settings]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)["digest"]


def test_launch_watch_query_results(service):
    service.start()
    scenario = service.folder / "mine.yaml"
    scenario.write_text("name: mine\nworkload: {num_requests: 100}\n")
    watched = service.run("launch", scenario, "--watch")
    assert watched.returncode == 0, watched.stderr
    assert re.fullmatch(r"launched run ([0-9a-f]{8})\n", watched.stderr)
    last = watched.stdout.splitlines()[-1]
    assert re.search(r"^run [0-9a-f]{8} \(mine\): finished, .* 100 of 100 requests done", last)
    run = last.split()[1]
    assert re.search(rf"^{run} +mine +finished +100/100 ", service.ok("list"), re.MULTILINE)
    assert service.json("list", "--state", "failed") == []

    shown = service.ok("results", run)
    assert "mine: mixtral-8x7b on 4 duplex" in shown
    assert shown.endswith(f"results in results/mine-{run}\n")
    summary = json.loads((service.folder / "results" / f"mine-{run}" / "summary.json").read_text())
    assert summary["digest"] == digest_of_an_undisturbed_run(service.folder, str(scenario))
    again = service.run("results", run)
    assert (again.returncode, again.stderr.splitlines()[0]) == (
        2,
        f"error: results/mine-{run}: exists already; give another folder with --out",
    )
    assert service.ok("results", run, "--file", "summary.json", "--out", "one") == "summary.json in one\n"
    assert service.ok("delete", run) == f"run {run} is deleted\n"


@pytest.mark.slow
def test_a_paced_run_is_watched_held_changed_and_cancelled(service):
    service.start()
    run = service.ok("launch", "--speed", "20x", "--set", "workload.num_requests=5000").strip()
    until(lambda: (service.state(run)["progress"] or {}).get("finished"))
    shown = service.ok("query", run)
    for part in ("running", "waiting", "TTFT", "TPOT", "no SLO"):
        assert part in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert service.json("query", run, "--request", "0")["state"] in {"decode", "finished"}
    ledgers = service.ok("query", run, "--ledgers")
    assert "Logic-PIM busy" in ledgers
    assert "…" not in ledgers  # figures that are cut are no figures
    assert "0..3" in service.ok("query", run, "--placement")
    assert "num_requests: 5000" in service.ok("query", run, "--scenario")
    assert "is held at" in service.ok("pause", run)
    held = service.state(run)["progress"]["simulated_s"]
    assert service.ok("change", run, "--rate", "2", "--max-num-seqs", "64").startswith("in force since ")
    injected = service.json("inject", run, "--input-tokens", "5", "--output-tokens", "2", "--count", "3")
    assert service.json("query", run, "--request", injected["first_request"])["input_tokens"] == 5
    assert service.state(run)["progress"]["simulated_s"] == held
    assert "goes on from" in service.ok("resume", run)
    assert service.ok("cancel", run) == f"run {run} is cancelled\n"
    watched = service.run("watch", run)
    assert (watched.returncode, watched.stderr) == (2, f"error: run {run} was cancelled\n")


@pytest.mark.slow
def test_mistakes_are_one_clear_line(service):
    service.start()
    for arguments, message in (
        (("query", "abcd"), "error: no run 'abcd' here; `pimserve list` shows those that are"),
        (("query", "../x"), "error: no run '../x' here; `pimserve list` shows those that are"),
        (("launch", "--set", "cluster.replicas=0"), "error: cluster.replicas: must be greater than 0 (got 0)"),
        (("launch", "--speed", "fast"), "error: --speed: must be a factor of 0.001 to 1e+06, such as 60x (got 'fast')"),
        (("launch", "none.yaml"), "error: none.yaml: cannot be read: No such file or directory"),
        (
            ("change", "abcd"),
            "error: change: give --router, --max-num-seqs, --max-num-batched-tokens, --speed or --rate",
        ),
        (("list", "--state", "gone"), "error: --state: must be one of queued, starting, running, paused, "),
        (("list", "--ca", "none.pem"), "error: none.pem: cannot be read: No such file or directory"),
        (("serve", "--data", "data"), "error: data: another server uses this folder; give another with --data"),
        (("serve", "--data", "b", "--listen", "0.0.0.0:0"), "error: --listen: 0.0.0.0:0 can be reached by other "),
        (("serve", "--data", "b", "--listen", service.address), f"error: --listen: {service.address} cannot be used"),
        (("serve", "--disk-quota", "lots"), "error: --disk-quota: must be a size such as 20GB (got 'lots')"),
    ):
        done = service.run(*arguments)
        assert (done.returncode, done.stderr.startswith(message)) == (2, True), done.stderr
        assert done.stderr.count("\n") == 1
    assert service.run("list", PIMSERVE_SERVER="127.0.0.1:1").stderr == (
        "error: 127.0.0.1:1: no server answers there, or one with other TLS settings (Connection refused)\n"
    )


def test_a_token_keeps_strangers_out(service):
    token = service.folder / "token"
    token.write_text("correct-horse-battery\n")
    token.chmod(0o644)
    service.start("--token-file", str(token))
    assert f"WARNING {token} is open to other users (mode 0644): chmod 600 makes it private\n" in service.log()
    assert service.ok("list", "--json", "--token-file", token) == "[]\n"
    assert service.run("list", PIMSERVE_TOKEN="correct-horse-battery").returncode == 0
    wrong = service.run("list", PIMSERVE_TOKEN="wrong-horse-battery")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        f"error: {service.address}: wrong token; give it with --token-file or PIMSERVE_TOKEN\n",
    )
    assert service.end(signal.SIGTERM) == 0
    service.server = None


@pytest.mark.slow
def test_a_run_outlives_a_server_that_is_killed(service):
    settings = ("--set", "workload.num_requests=1500", "--set", "run.seed=4")
    service.start()
    run = service.ok("launch", "--speed", "20x", *settings).strip()
    until(lambda: (service.state(run)["progress"] or {}).get("finished"))
    worker = service.worker(run)
    service.end(signal.SIGKILL)
    assert alive(worker)
    service.start()
    assert service.worker(run) == worker  # the same one goes on
    until(lambda: service.state(run)["progress"])
    service.ok("pause", run)
    service.ok("resume", run)
    assert service.run("watch", run).returncode == 0
    assert service.state(run)["restarts"] == 0
    service.ok("results", run, "--out", "out")
    summary = json.loads((service.folder / "out" / "summary.json").read_text())
    assert summary["digest"] == digest_of_an_undisturbed_run(service.folder, *settings)
    until(lambda: not alive(worker))


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint_when_all_are_killed(service):
    settings = ("--set", "workload.num_requests=1500", "--set", "run.seed=5")
    service.start()
    run = service.ok("launch", "--speed", "60x", *settings).strip()
    until((service.folder / "data" / "runs" / run / "checkpoints" / "checkpoint").exists)
    before = service.state(run)["progress"]["simulated_s"]
    worker = service.worker(run)
    service.end(signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    until(lambda: not alive(worker))
    service.start()
    progress = until(lambda: service.state(run)["progress"])
    assert progress["simulated_s"] > before / 4  # not from the start
    assert service.run("watch", run).returncode == 0
    service.ok("results", run, "--out", "out")
    summary = json.loads((service.folder / "out" / "summary.json").read_text())
    assert summary["simulator"]["continued"]
    assert summary["digest"] == digest_of_an_undisturbed_run(service.folder, *settings)


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_leaves_no_process_and_no_half_run(service):
    service.start()
    run = service.ok("launch", "--speed", "1x").strip()
    worker = until(lambda: service.state(run)["progress"] and service.worker(run))
    assert service.end(signal.SIGTERM) == 0
    assert not alive(worker)
    service.start()
    assert until(lambda: service.state(run)["progress"])["simulated_s"] > 0
    assert service.state(run)["state"] == "running"


class Contract:
    """A client that knows nothing but the server's address: all else it has from reflection, in its newest version."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.pool = descriptor_pool.DescriptorPool()
        files = {}
        for service in ("pimserve.v1.SimulationService", "pimserve.v1.SchedulerService"):
            request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)  # v1 has the same messages
            method = self.channel.stream_stream(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                lambda message: message.SerializeToString(),
                reflection_pb2.ServerReflectionResponse.FromString,
            )
            [told] = method(iter([request]), timeout=PATIENCE_S)
            for content in told.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(content)
                files[file.name] = file
        while files:
            ready = [file for file in files.values() if not files.keys() & set(file.dependency)]
            for file in ready:
                self.pool.Add(files.pop(file.name))

    def call(self, service, name, **fields):
        method = self.pool.FindServiceByName(f"pimserve.v1.{service}").methods_by_name[name]
        request, response = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
        make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        path = f"/pimserve.v1.{service}/{name}"
        return make(path, request.SerializeToString, response.FromString)(request(**fields), timeout=PATIENCE_S)


@pytest.mark.slow
def test_a_client_that_has_only_the_contract(service):
    """Labels, injected requests, another pace, and the same answers after the end, as the summary has them."""
    service.start()
    theirs = Contract(service.address)
    with pytest.raises(grpc.RpcError) as caught:
        theirs.call("SimulationService", "Launch", scenario={"yaml": "cluster: {replicas: 0}"}, options={"speed": -1})
    [wrong] = details_of(caught.value, error_details_pb2.BadRequest)
    assert [each.field for each in wrong.field_violations] == ["options.speed", "scenario.yaml: cluster.replicas"]
    document = {"yaml": "workload: {num_requests: 200}\nslo: {ttft_s: 1}\nrun: {warmup_s: 2}"}
    run = theirs.call(
        "SimulationService", "Launch", scenario=document, options={"speed": 1, "paused": True}, labels={"team": "chips"}
    ).run
    until(lambda: theirs.call("SimulationService", "Get", run_id=run.id).run.state == 3)  # paused
    injected = [
        theirs.call(
            "SchedulerService", "InjectRequests", run_id=run.id, input_tokens=[tokens], output_tokens=[2], delay_s=delay
        ).first_request
        for tokens, delay in ((11, 20), (12, 10), (13, 0))
    ]
    assert injected == [200, 201, 202]
    theirs.call("SimulationService", "ChangeSpeed", run_id=run.id, speed=0)
    theirs.call("SimulationService", "Resume", run_id=run.id)
    *_, last = theirs.call("SimulationService", "Watch", run_id=run.id)
    assert last.run.state == 4, last.run.error  # finished
    [listed] = theirs.call("SimulationService", "List", labels={"team": "chips"}, states=[4]).runs
    assert listed.id == run.id
    summary = theirs.call("SimulationService", "GetSummary", run_id=run.id).summary
    assert summary.requests.total_requests == 203
    for number, tokens in zip(injected, (11, 12, 13), strict=True):
        life = theirs.call("SchedulerService", "DescribeRequest", run_id=run.id, request=number)
        assert (life.input_tokens, life.state) == (tokens, 5)
    told = theirs.call("SchedulerService", "GetLatencies", run_id=run.id)
    assert (told.slo.attainment, told.measured_from_s) == (summary.slo.attainment, 2)
    for latency in told.latencies:
        exact = getattr(summary.latency_s, latency.name)
        assert [percentile.value_s for percentile in latency.percentiles] == [exact.p50_s, exact.p90_s, exact.p99_s]
    for request, code in ((203, grpc.StatusCode.NOT_FOUND), (-1, grpc.StatusCode.INVALID_ARGUMENT)):
        with pytest.raises(grpc.RpcError) as caught:
            theirs.call("SchedulerService", "DescribeRequest", run_id=run.id, request=request)
        assert caught.value.code() is code
    theirs.channel.close()
