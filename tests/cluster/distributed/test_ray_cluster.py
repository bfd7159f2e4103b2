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

from pimserve.cluster.distributed.hosts import ray_cluster
from pimserve.cluster.distributed.hosts.ray_cluster import connect_ray, ray_on
from pimserve.errors import InputError

BUSY_DRIVER = """
import time
from pimserve.cluster.distributed.hosts.ray_cluster import local_ray
with local_ray(1) as cluster:
    print(cluster.address, cluster.head._process.pid, flush=True)
    time.sleep(120)
"""


def session(leader):
    """Processes of a session, by state: the head leads the session of all Ray processes."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found[int(folder.name)] = fields[0]
    return found


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
    modules = "ray_cluster, ray_supervisor, process_supervisor, hosting"
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
    assert ray_cluster._reason(error).startswith(said)


def test_the_reason_below_an_error_is_told():
    error = ConnectionError("Failed to connect to Ray cluster at x")
    error.__cause__ = RuntimeError("Version mismatch")
    assert ray_cluster._reason(error) == "its versions are not ours: Version mismatch"


def test_a_listener_that_never_answers_is_given_up(python):
    # In a process of its own: Ray's thread is left behind.
    driver = python("""
import socket
from pimserve.cluster.distributed.hosts import ray_cluster
from pimserve.errors import InputError
ray_cluster._CONNECT_LIMIT_S = 1.0
with socket.create_server(("127.0.0.1", 0)) as silent:
    try:
        with ray_cluster.connect_ray(f"127.0.0.1:{silent.getsockname()[1]}"):
            pass
    except InputError as error:
        print(error.message, flush=True)
import os
os._exit(0)
""")
    out, _ = driver.communicate(timeout=60)
    assert out == "Ray did not take us in within 1 s\n"


def test_a_head_that_does_not_come_up_is_an_error(python):
    driver = python(
        """
from pimserve.cluster.distributed.hosts import ray_head
from pimserve.errors import InputError
started = []
popen = ray_head.subprocess.Popen
ray_head.subprocess.Popen = lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
try:
    ray_head.Head.start(1, {}, 1)
except InputError as error:
    print(error)
print(len(started), [each.poll() is None for each in started])
""",
        "slow",
    )
    out, _ = driver.communicate(timeout=60)
    assert out == "--on ray: Ray cannot be started on this machine: did not start within 1 s\n2 [False, False]\n"


@pytest.mark.ray
def test_all_of_ray_listens_on_loopback_only(own_ray):
    found = listening({*session(own_ray.head._process.pid), os.getpid()})
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert found
    assert found <= loopback


@pytest.mark.ray
def test_resources_are_told(own_ray):
    assert own_ray.total() == {"CPU": 2.0, "duplex": 4.0}
    assert eventually(lambda: own_ray.free() == own_ray.total()), "what earlier runs held is free again"


@pytest.mark.ray
def test_there_is_one_ray_at_a_time(own_ray):
    with pytest.raises(InputError, match="connected to a Ray already"), ray_on("ray"):
        pass
    with pytest.raises(InputError, match="another way before"), connect_ray(own_ray.address):
        pass


@pytest.mark.ray
def test_a_ray_that_ran_before_goes_on_and_nobody_reads_of_ray(own_ray, python):
    driver = python(
        """
import json, os, signal, sys
from pimserve.cluster.distributed.hosts.hosting import HostSpec
from pimserve.cluster.distributed.hosts.ray_cluster import connect_ray
from pimserve.cluster.distributed.hosts.ray_supervisor import RaySupervisor
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # as that of the Ray which it connects to
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
    own_ray.check()
    assert own_ray.total() == {"CPU": 2.0, "duplex": 4.0}


@pytest.mark.ray
@pytest.mark.slow
def test_ray_ends_with_a_driver_that_is_killed(python):
    driver = python(BUSY_DRIVER)
    head = int(driver.stdout.readline().split()[1])
    assert len(session(head)) > 3
    folder = Path("/proc") / str(head) / "cmdline"
    files = Path(json.loads(folder.read_text().split("\0")[3])["folder"])
    assert files.is_dir()
    driver.kill()
    assert eventually(lambda: not session(head))
    assert not files.exists()


@pytest.mark.ray
@pytest.mark.slow
def test_ray_ends_with_ctrl_c_and_leaves_nothing_at_home(python, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    driver = python(BUSY_DRIVER)
    head = int(driver.stdout.readline().split()[1])
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert not session(head)
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
@pytest.mark.slow
def test_a_head_that_is_killed_is_noticed_and_leaves_nothing(python):
    driver = python("""
import os, signal, time
from pimserve.cluster.distributed.hosts.hosting import HostSpec
from pimserve.cluster.distributed.hosts.ray_cluster import local_ray
from pimserve.cluster.distributed.hosts.ray_supervisor import RaySupervisor
from pimserve.errors import PimserveError
try:
    with local_ray(1) as cluster, RaySupervisor(cluster, "run", [HostSpec("d0", "echo_host:EchoHost")]) as hosts:
        print(cluster.head._process.pid, flush=True)
        os.kill(cluster.head._process.pid, signal.SIGKILL)
        time.sleep(0.5)
        hosts.replace("d0", 0)
except PimserveError as error:
    print(error, flush=True)
""")
    head = int(driver.stdout.readline())
    out, _ = driver.communicate(timeout=90)
    assert out == "Ray has ended under the run: its head was killed\n"
    assert eventually(lambda: not session(head))
