"""Ray is ours alone, stays on loopback, ends with us, and is silent; somebody else's is left as it was."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pimserve.cluster.base.processes import of_session
from pimserve.cluster.distributed.hosts import ray_driver, ray_process
from pimserve.cluster.distributed.hosts.ray_cluster import connect_ray, ray_on
from pimserve.cluster.distributed.hosts.ray_process import RayProcess
from pimserve.errors import InputError

BUSY_DRIVER = """
import time
from pimserve.cluster.distributed.hosts.ray_cluster import local_ray
with local_ray(1) as cluster:
    print(cluster.process.pid, cluster.process.folder, flush=True)
    time.sleep(120)
"""


def eventually(condition, limit_s=30.0):
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def listening(pids):
    """Addresses at which these processes listen, as /proc/net shows them: little-endian words in hex."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def test_importing_the_runtime_loads_neither_ray_nor_grpc():
    modules = "ray_cluster, ray_process, ray_supervisor, process_supervisor, hosting"
    report = "import sys; print(sorted({'ray', 'grpc', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"from pimserve.cluster.distributed.hosts import {modules}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "address",
    ["", "Ray", "local", "host", "host:", ":1", "ray://host", "http://host:1", "host:0", "host:65536", "a b:1"],
)
def test_what_is_no_address_is_refused(address):
    with (
        pytest.raises(InputError, match=r"^--on .*: must be ray .*, auto, HOST:PORT or ray://HOST:PORT$"),
        ray_on(address),
    ):
        pass


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_nobody_listens_there_is_no_ray(scheme):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"{scheme}127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError) as found, connect_ray(address):
        pass
    assert str(found.value) == f"--on {address}: no Ray there: Connection refused"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("Version mismatch: The cluster was started with:\n  Ray: 2.9"),
            "its versions are not ours: Version",
        ),
        (RuntimeError("Python minor versions differ between client and server"), "its versions are not ours: Python"),
        (ConnectionError("refused"), "cannot connect: refused"),
    ],
)
def test_why_ray_refuses(error, said):
    assert ray_driver._refusal(error).startswith(said)


def test_the_reason_below_an_error_is_told():
    error = ConnectionError("Failed to connect to Ray cluster at x")
    error.__cause__ = RuntimeError("Version mismatch")
    assert ray_driver._refusal(error) == "its versions are not ours: Version mismatch"


@pytest.mark.slow
def test_a_listener_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(InputError) as raised:
        RayProcess.connect(f"127.0.0.1:{silent.getsockname()[1]}", 1)
    assert raised.value.message == "Ray did not take us in within 1 s"


@pytest.mark.slow
def test_a_ray_that_does_not_come_up_is_an_error(monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(ray_process.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with pytest.raises(InputError) as raised:
        RayProcess.own(1, {}, 1)
    assert str(raised.value) == "--on ray: Ray cannot be started on this machine: did not start within 1 s"
    assert [each.poll() is None for each in started] == [False, False]


@pytest.mark.ray
def test_all_of_ray_listens_on_loopback_only(own_ray):
    found = listening({*of_session(own_ray.process.pid), os.getpid()})
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert found
    assert found <= loopback


@pytest.mark.ray
def test_resources_are_told(own_ray):
    assert own_ray.total() == {"CPU": 2.0, "duplex": 4.0}
    assert eventually(lambda: own_ray.free() == own_ray.total()), "what earlier runs held is free again"


@pytest.mark.ray
def test_a_ray_that_ran_before_goes_on_and_nobody_reads_of_ray(own_ray, python, monkeypatch):
    for name, value in own_ray.process.environment.items():
        monkeypatch.setenv(name, value)
    driver = python(
        """
import json, os, signal, sys
from pimserve.cluster.distributed.hosts.hosting import HostSpec
from pimserve.cluster.distributed.hosts.ray_cluster import connect_ray
from pimserve.cluster.distributed.hosts.ray_supervisor import RaySupervisor
specs = [HostSpec("d0", "echo_host:EchoHost")]
with connect_ray(sys.argv[1]) as cluster, RaySupervisor(cluster, "guest", specs) as hosts:
    os.kill(hosts.endpoint("d0").pid, signal.SIGKILL)
    print(json.dumps([cluster.total(), hosts.replace("d0", 0).generation]))
""",
        own_ray.address,
    )
    out, err = driver.communicate(timeout=120)
    assert err == ""
    assert json.loads(out) == [{"CPU": 2.0, "duplex": 4.0}, 1]
    assert own_ray.total() == {"CPU": 2.0, "duplex": 4.0}


@pytest.mark.ray
@pytest.mark.deep
def test_ray_ends_with_a_driver_that_is_killed(python):
    driver = python(BUSY_DRIVER)
    leader, files = driver.stdout.readline().split()
    assert len(of_session(int(leader))) > 3
    assert Path(files).is_dir()
    driver.kill()
    assert eventually(lambda: not of_session(int(leader)) and not Path(files).exists())


@pytest.mark.ray
@pytest.mark.deep
def test_ray_ends_with_ctrl_c_and_leaves_nothing_at_home(python, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    driver = python(BUSY_DRIVER)
    leader = int(driver.stdout.readline().split()[0])
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert not of_session(leader)
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
@pytest.mark.deep
def test_a_ray_that_is_killed_with_all_of_ours_leaves_nothing(python):
    driver = python(BUSY_DRIVER)
    leader, files = driver.stdout.readline().split()
    driver.kill()
    os.kill(int(leader), signal.SIGKILL)
    assert eventually(lambda: not of_session(int(leader)) and not Path(files).exists(), 10.0)


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_that_dies_is_followed_by_another(python):
    driver = python("""
import os, signal, time
from pathlib import Path
from pimserve.cluster.base.processes import of_session
from pimserve.cluster.distributed.hosts.hosting import HostSpec
from pimserve.cluster.distributed.hosts.ray_cluster import local_ray
from pimserve.cluster.distributed.hosts.ray_supervisor import RaySupervisor
with local_ray(1) as cluster, RaySupervisor(cluster, "run", [HostSpec("d0", "echo_host:EchoHost")]) as hosts:
    first = cluster.process
    [pid] = [pid for pid in of_session(first.pid) if "raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(pid, signal.SIGKILL)
    while first.alive():
        time.sleep(0.01)
    print(hosts.replace("d0", 0).generation, first.folder.exists(), of_session(first.pid), flush=True)
""")
    out, err = driver.communicate(timeout=120)
    assert out == "1 False []\n"
    assert err == "note: Ray ended under the run; it goes on with another one\n"
