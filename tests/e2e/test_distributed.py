"""`pimserve run --on ...` as a user types it: processes, Ray, and what happens when parts of them are killed."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from .chaos import PIMSERVE, command_for, disturbed, hosts_of, small_disk

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SMALL = ["--set", "workload.num_requests=200", "--set", "cluster.replicas=2", "--json"]
LONG = [
    *("--set", "workload.num_requests=1000", "--set", "cluster.replicas=2", "--set", "output.steps=false"),
    *("--set", "scheduler.router=least_outstanding", "--set", "scheduler.report_interval_s=1"),
    *("--shards", "2", "--devices-per-actor", "4"),
]


def pimserve(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(PIMSERVE), *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.ray
def test_on_ray_as_in_one_process(tmp_path: Path) -> None:
    here = json.loads(pimserve("run", *SMALL, cwd=tmp_path).stdout)
    done = pimserve("run", *SMALL, "--on", "ray", "--shards", "2", cwd=tmp_path)
    there = json.loads(done.stdout)
    assert there["digest"] == here["digest"]
    assert there["simulator"]["spread"]["hosts"] == 4
    assert there["simulator"]["spread"]["devices"] == "planned"
    # Nothing of Ray's own chatter reaches the user.
    ours = [line for line in done.stderr.splitlines() if not line.startswith("note: results/default is of an earlier")]
    assert ours == [f"results in {there['results']}"]


@pytest.mark.ray
@pytest.mark.deep
@pytest.mark.parametrize("mode", ["planned", "lockstep"])
def test_hot_experts_on_ray_as_in_one_process(tmp_path: Path, mode: str) -> None:
    settings = [
        "cluster.devices_per_node=2",
        "cluster.placement={hot_experts: {device: h100, devices_per_node: 1, count: 2}, "
        "experts: {device: {preset: aimc-realistic, spread: experts}}, micro_batches: 2}",
        *("routing={popularity: zipf, zipf_exponent: 1.0}", "workload.num_requests=6", "run.max_time_s=1"),
    ]
    mixed = ["--json", *(part for setting in settings for part in ("--set", setting))]
    here = json.loads(pimserve("run", *mixed, cwd=tmp_path).stdout)
    few = ["--devices", mode, "--devices-per-actor", "6"]
    there = json.loads(pimserve("run", *mixed, "--on", "ray", *few, cwd=tmp_path).stdout)
    assert there["digest"] == here["digest"]
    assert there["groups"] == here["groups"]
    devices = np.load(tmp_path / there["results"] / "devices.npy")
    assert devices["group"].tolist() == ["attention"] * 2 + ["hot_experts"] + ["experts"] * 6
    assert len(set(devices["actor"].tolist())) == 3


@pytest.mark.deep
def test_lockstep_as_in_one_process(tmp_path: Path) -> None:
    few = ["--set", "workload.num_requests=5", "--json"]
    here = json.loads(pimserve("run", *few, cwd=tmp_path).stdout)
    there = json.loads(pimserve("run", *few, "--on", "processes", "--devices", "lockstep", cwd=tmp_path).stdout)
    assert there["digest"] == here["digest"]


@pytest.mark.parametrize(
    "how",
    [
        ("--shards", "2"),
        pytest.param(("--devices", "lockstep", "--devices-per-actor", "2"), marks=pytest.mark.deep),
    ],
)
def test_pools_whose_replicas_fail_as_in_one_process(tmp_path: Path, how: tuple[str, ...]) -> None:
    settings = [
        *("workload.num_requests=8", "workload.arrival={process: poisson, rate_per_s: 40}", "run.max_time_s=1"),
        "cluster.pools={prefill: {device: h100, replicas: 2}, decode: {device: duplex, replicas: 2}}",
        *("cluster.pools.handover.gb_per_s=2", "faults.detection_s=0.02"),
        "faults.events=[{at_s: 0.1, replica: 0, kind: fail, for_s: 0.1}, {at_s: 0.15, replica: 2, kind: fail}]",
    ]
    failing = ["--json", *(part for setting in settings for part in ("--set", setting))]
    here = json.loads(pimserve("run", *failing, cwd=tmp_path).stdout)
    there = json.loads(pimserve("run", *failing, "--on", "processes", *how, cwd=tmp_path).stdout)
    assert there["digest"] == here["digest"]
    assert there["pools"] == here["pools"]
    assert there["faults"] == here["faults"]
    assert here["faults"]["requeued"] >= here["pools"]["handover"]["lost"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shards", "2"), "--shards: goes with --on: a local run is one process"),
        (("--devices", "lockstep"), "--devices: goes with --on"),
        (("--on", "processes", "--shards", "3"), "--shards: 3 shards for 1 replicas"),
        (("--on", "nowhere"), "--on nowhere: must be ray (one of our own on this machine), auto, HOST:PORT or ray://"),
        (("--on", "127.0.0.1:1"), "--on 127.0.0.1:1: no Ray there"),
        (("--on", "processes", "--resource", "duplex"), "--resource: goes with --on auto"),
        (
            ("--on", "auto", "--resource", "duplex"),
            "--resource: must be NAME=N with N above 0, such as duplex=1 (got 'duplex')",
        ),
        (("--on", "processes", "--devices", "none", "--devices-per-actor", "2"), "has no effect with --devices none"),
        (("--speed", "fast"), "--speed: must be a factor of"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = pimserve("run", *arguments, cwd=tmp_path, code=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_replicas_that_are_looked_at_exactly_stay_in_one_shard(tmp_path: Path) -> None:
    router = ["--set", "scheduler.router=least_outstanding", "--set", "cluster.replicas=2"]
    done = pimserve("run", *router, "--on", "processes", "--shards", "2", cwd=tmp_path, code=2)
    assert "scheduler.report_interval_s: is 0, so router 'least_outstanding' looks at all replicas" in done.stderr


def test_replicas_that_share_a_tier_stay_in_one_shard(tmp_path: Path) -> None:
    """There, and with devices around it, they have the same bits."""
    tier = "{name: store, gb_per_s: 5, capacity_gb: 2, shared: true}"
    settings = [
        *("workload.num_requests=60", "workload.prefix={groups: 6, shared_tokens: 900}", "cluster.replicas=2"),
        f"scheduler={{enable_prefix_caching: true, kv_blocks: 700, kv_tiers: [{tier}]}}",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    here = json.loads(pimserve("run", "--json", *options, cwd=tmp_path).stdout)
    assert here["kv_tiers"]["tiers"][0]["hit_tokens"]
    away = ["--on", "processes", "--shards"]
    there = json.loads(pimserve("run", "--json", *options, *away, "1", cwd=tmp_path).stdout)
    for part in ("digest", "kv_tiers", "prefix_cache"):
        assert there[part] == here[part]
    done = pimserve("run", *options, *away, "2", cwd=tmp_path, code=2)
    assert "scheduler.kv_tiers: store is shared by replicas" in done.stderr


def test_tiers_and_a_router_by_what_caches_say_as_in_one_process(tmp_path: Path) -> None:
    """A host of two shards is killed."""
    tiers = "[{name: host, capacity_gb: 0.5, gb_per_s: 5, write: back}, {name: disk, gb_per_s: 1, write: back}]"
    settings = [
        *("workload.num_requests=400", "workload.prefix={groups: 20, shared_tokens: 900}", "cluster.replicas=2"),
        "scheduler={enable_prefix_caching: true, kv_blocks: 700, report_interval_s: 0.5, router: {name: dynamo}, "
        f"kv_tiers: {tiers}}}",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    here = json.loads(pimserve("run", "--json", *options, cwd=tmp_path).stdout)
    command = command_for(tmp_path / "run", "processes", [*options, "--shards", "2", "--speed", "20x"])
    outcome = disturbed(command, random.Random(1), ["host"], 1.0)
    assert (outcome.digest, outcome.faults) == (here["digest"], ["host"])
    there = json.loads((tmp_path / "run" / "out" / "summary.json").read_text(encoding="utf-8"))
    assert [there[part] for part in ("kv_tiers", "prefix_cache", "router")] == [
        here[part] for part in ("kv_tiers", "prefix_cache", "router")
    ]
    assert all(tier["hit_tokens"] for tier in here["kv_tiers"]["tiers"])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the run that is disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return str(json.loads(pimserve("run", "--json", *LONG[:-4], cwd=folder).stdout)["digest"])


@pytest.mark.parametrize(
    ("on", "faults"),
    [
        ("processes", ["host", "coordinator"]),
        pytest.param("processes", ["host stopped", "command"], marks=pytest.mark.deep),
        pytest.param("ray", ["host", "gcs"], marks=[pytest.mark.ray, pytest.mark.deep]),
    ],
)
def test_faults_change_no_bit_and_leave_nothing(tmp_path: Path, expected: str, on: str, faults: list[str]) -> None:
    command = command_for(tmp_path / "run", on, [*LONG, "--speed", "40x"])
    outcome = disturbed(command, random.Random(1), faults, 1.0)
    assert outcome.digest == expected
    assert outcome.faults == faults


def test_a_full_disk_ends_a_run_which_goes_on_when_there_is_room(tmp_path: Path, expected: str) -> None:
    with small_disk(tmp_path / "disk") as why_not:
        if why_not is not None:
            pytest.skip(why_not)
        command = command_for(tmp_path / "disk" / "run", "local", [*LONG[:-4], "--speed", "40x"])
        outcome = disturbed(command, random.Random(2), ["disk"], 1.0)
    assert (outcome.digest, outcome.faults) == (expected, ["disk"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [str(PIMSERVE), "run", *LONG, "--on", "processes"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while not (hosts := hosts_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in {130, 128 + number}
    assert b"Traceback" not in errors
    assert not list(tmp_path.rglob("*"))
    assert hosts
    assert not [pid for pid in hosts if b"hosting" in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
