"""Hosts are started, found, replaced and stopped: the same for plain processes and for Ray actors."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from pimserve.cluster.base.rpc.channels import host_channel
from pimserve.cluster.base.supervisor import Patience
from pimserve.cluster.distributed.hosts.host_supervisor import HostLostError
from pimserve.cluster.distributed.hosts.hosting import HostSpec
from pimserve.cluster.distributed.hosts.process_supervisor import ProcessSupervisor
from pimserve.cluster.distributed.hosts.ray_supervisor import RaySupervisor
from pimserve.errors import InputError, PimserveError

# Where what is tried is the same code for either kind: a process of Ray takes seconds to start.
ON_RAY_DEEP = pytest.mark.parametrize(
    "supervise", ["process", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.deep])], indirect=True
)


def spec(name="d0", resources=None, bundle=None, **arguments):
    return HostSpec(name, "echo_host:EchoHost", arguments, resources or {}, bundle)


def say(address, what=b"hello", timeout=10.0):
    with grpc.insecure_channel(address) as channel:
        return channel.unary_unary("/echo.Echo/Say")(what, timeout=timeout)


def running(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def eventually(condition, limit_s=15.0):
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_hosts_are_found_by_name(supervise):
    specs = [spec(f"d{k}", {"duplex": 1}, k // 2, greeting=f"{k}:") for k in range(3)]
    with supervise(specs) as hosts:
        found = hosts.endpoints()
        assert list(found) == ["d0", "d1", "d2"]
        assert [say(found[f"d{k}"].address) for k in range(3)] == [b"0:hello", b"1:hello", b"2:hello"]
        assert len({each.pid for each in found.values()} | {os.getpid()}) == 4
        assert {each.generation for each in found.values()} == {0}
        assert all(each.address.startswith("127.0.0.1:") for each in found.values())
        assert hosts.ended() == {}
    assert eventually(lambda: not any(running(each.pid) for each in found.values()))


def test_a_dead_host_is_replaced(supervise):
    with supervise([spec("a", greeting="a:"), spec("b", greeting="b:")]) as hosts:
        before = hosts.endpoints()
        os.kill(before["a"].pid, signal.SIGKILL)
        assert eventually(lambda: list(hosts.ended()) == ["a"])
        now = hosts.replace("a", 0)
        assert hosts.endpoints() == {"a": now, "b": before["b"]}
        assert (now.generation, say(now.address)) == (1, b"a:hello")
        assert now.address != before["a"].address
        assert now.pid != before["a"].pid
        assert hosts.ended() == {}
        [(name, seconds)] = hosts.recoveries
        assert name == "a"
        assert 0 < seconds < 60
        time.sleep(0.2)  # it is told what the old one knew
        hosts.caught_up("a")
        [(name, whole)] = hosts.recoveries
        assert name == "a"
        assert seconds + 0.2 <= whole < 60


@ON_RAY_DEEP
def test_who_comes_late_gets_the_replacement_that_is_there(supervise):
    with supervise([spec()]) as hosts:
        old = hosts.endpoint("d0").pid
        found = []
        threads = [threading.Thread(target=lambda: found.append(hosts.replace("d0", 0))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [each.generation for each in found] == [1] * 4
        assert len(set(found)) == len(hosts.recoveries) == 1
        assert eventually(lambda: not running(old)), "the replaced host is ended, even if it still lived"


def test_a_host_that_dies_at_its_start_is_started_again(supervise, tmp_path):
    with supervise([spec(misbehave="die_once", marker=str(tmp_path / "died"))]) as hosts:
        assert hosts.endpoint("d0").generation == 1
        assert say(hosts.endpoint("d0").address) == b"hello"


@ON_RAY_DEEP
def test_a_host_that_is_stopped_at_its_start_is_replaced(supervise, tmp_path):
    stops = spec(misbehave="stop_once", marker=str(tmp_path / "stopped"))
    with supervise([stops], Patience(silence_s=1.0)) as hosts:
        assert hosts.endpoint("d0").generation == 1
        assert say(hosts.endpoint("d0").address) == b"hello"


@ON_RAY_DEEP
def test_a_host_that_is_stopped_is_found_out_and_a_busy_one_is_not(supervise):
    with supervise([spec()]) as hosts:
        place = hosts.endpoint("d0")
        with host_channel(place.address, 1.5) as channel:
            call = channel.unary_unary("/echo.Echo/Say")
            assert call(b"keeps the interpreter", timeout=60) == b"keeps the interpreter"
            os.kill(place.pid, signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(grpc.RpcError) as raised:
                call(b"hello", timeout=60)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert time.monotonic() - began < 6.0
        os.kill(place.pid, signal.SIGCONT)  # so that it ends at once; tests/e2e has hosts that stay stopped


@ON_RAY_DEEP
def test_a_host_that_dies_again_and_again_fails_the_run(supervise):
    with supervise([spec()], Patience(deaths=1)) as hosts:
        hosts.replace("d0", 0)
        with pytest.raises(HostLostError, match=r"d0 died 2 times within 60 s; the last time: it stopped answering"):
            hosts.replace("d0", 1)


@ON_RAY_DEEP
def test_deaths_long_ago_do_not_count(supervise):
    with supervise([spec()], Patience(deaths=1, span_s=0.0)) as hosts:
        for generation in range(3):
            assert hosts.replace("d0", generation).generation == generation + 1


@ON_RAY_DEEP
def test_a_host_that_always_dies_at_its_start_fails_the_run(supervise):
    with pytest.raises(HostLostError, match="d0 died 2 times"), supervise([spec(misbehave="die")], Patience(deaths=1)):
        pass


def test_a_bug_of_a_host_is_told(supervise):
    with (
        pytest.raises(HostLostError, match="ZeroDivisionError: a bug of the host"),
        supervise([spec(misbehave="bug")], Patience(deaths=0)),
    ):
        pass


def test_what_a_host_says_to_the_user_arrives_and_nothing_is_left(supervise, tmp_path):
    marker = tmp_path / "first"
    specs = [spec("first", marker=str(marker)), spec("second", misbehave="refuse")]
    with pytest.raises(PimserveError, match=r"^greeting: is rude$"), supervise(specs):
        pass
    assert eventually(lambda: marker.exists() and marker.read_text() == "stopped with 0.0")


@ON_RAY_DEEP
def test_a_host_that_hangs_at_its_start_fails_the_run_in_time(supervise):
    asked = time.monotonic()
    with (
        pytest.raises(HostLostError, match="d0 did not start in time"),
        supervise([spec(misbehave="hang")], Patience(start_s=2.0, each_s=0.0)),
    ):
        pass
    assert time.monotonic() - asked < 20


def test_calls_under_way_end_before_the_host(supervise, tmp_path):
    marker, answers = tmp_path / "stopped", []
    with supervise([spec(marker=str(marker))]) as hosts:
        address, pid = hosts.endpoint("d0").address, hosts.endpoint("d0").pid
        caller = threading.Thread(target=lambda: answers.append(say(address, b"slow")))
        caller.start()
        time.sleep(0.2)
    caller.join()
    assert answers == [b"slow"]
    assert marker.read_text() == "stopped with 5.0"
    assert eventually(lambda: not running(pid))


@ON_RAY_DEEP
def test_a_host_that_computes_for_ever_is_ended(supervise):
    with supervise([spec()], Patience(stop_s=0.2)) as hosts:
        address, pid = hosts.endpoint("d0").address, hosts.endpoint("d0").pid
        with pytest.raises(grpc.RpcError, match="Deadline Exceeded"):
            say(address, b"busy", timeout=0.3)
    assert eventually(lambda: not running(pid))


@ON_RAY_DEEP
def test_a_host_that_computes_for_ever_is_replaced(supervise):
    with supervise([spec()]) as hosts:
        address, pid = hosts.endpoint("d0").address, hosts.endpoint("d0").pid
        with pytest.raises(grpc.RpcError, match="Deadline Exceeded"):
            say(address, b"busy", timeout=0.3)
        assert say(hosts.replace("d0", 0).address) == b"hello"
        assert eventually(lambda: not running(pid))


@ON_RAY_DEEP
def test_nothing_is_started_after_the_end(supervise):
    with supervise([spec()]) as hosts:
        pass
    with pytest.raises(PimserveError, match="the run has ended"):
        hosts.replace("d0", 0)


def test_hosts_end_with_a_driver_that_is_killed(python):
    driver = python("""
import time
from pimserve.cluster.distributed.hosts.hosting import HostSpec
from pimserve.cluster.distributed.hosts.process_supervisor import ProcessSupervisor
from pimserve.cluster.distributed.hosts.ray_supervisor import RaySupervisor
with ProcessSupervisor([HostSpec(f"d{k}", "echo_host:EchoHost") for k in range(2)]) as hosts:
    print(*(each.pid for each in hosts.endpoints().values()), flush=True)
    time.sleep(60)
""")
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(running, pids))
    os.kill(pids[0], signal.SIGSTOP)  # nor does one stay that is stopped
    threads = [thread / "stat" for thread in Path(f"/proc/{pids[0]}/task").iterdir()]
    assert eventually(lambda: {stat.read_text().rpartition(")")[2].split()[0] for stat in threads} == {"T"})
    driver.kill()
    assert eventually(lambda: not any(map(running, pids)))


def test_the_last_words_of_a_process_are_told():
    hosts = ProcessSupervisor([HostSpec("d0", "no_such_module:Host")], Patience(deaths=0))
    with pytest.raises(HostLostError, match=r"exit code 1.*No module named 'no_such_module'"), hosts:
        pass


@pytest.mark.ray
class TestPlacement:
    """Ray alone knows of resources."""

    @pytest.mark.parametrize(
        "placement",
        [pytest.param("pack", marks=pytest.mark.deep), "strict_pack", pytest.param("spread", marks=pytest.mark.deep)],
    )
    def test_bundles_hold_resources(self, own_ray, placement):
        specs = [spec("a0", {"duplex": 1}, 0), spec("a1", {"duplex": 1}, 0), spec("b0", {"duplex": 2}, 1), spec("c")]
        with RaySupervisor(own_ray, "placed", specs, placement) as hosts:
            assert eventually(lambda: own_ray.free().get("duplex", 0) == 0)
            os.kill(hosts.endpoint("a1").pid, signal.SIGKILL)
            assert say(hosts.replace("a1", 0).address) == b"hello"
        assert eventually(lambda: own_ray.free().get("duplex", 0) == 4)

    @pytest.mark.parametrize("bundle", [0, pytest.param(None, marks=pytest.mark.deep)])
    def test_more_than_there_is(self, own_ray, bundle):
        specs = [spec("a", {"duplex": 3}, bundle), spec("b", {"duplex": 2, "aimc": 1}, bundle)]
        with RaySupervisor(own_ray, "first", [spec(resources={"duplex": 1})]):
            assert eventually(lambda: own_ray.free().get("duplex") == 3)
            began = time.monotonic()
            message = r"^--on: .* need duplex 5, aimc 1; the Ray there has duplex 3 free of 4, aimc 0 free of 0$"
            with pytest.raises(InputError, match=message):
                RaySupervisor(own_ray, "large", specs).__enter__()
            assert time.monotonic() - began < 2.0

    @pytest.mark.parametrize("bundle", [0, pytest.param(None, marks=pytest.mark.deep)])
    def test_what_another_run_holds_is_waited_for_and_missed(self, own_ray, bundle):
        short = Patience(start_s=1.0, each_s=0.0)
        with RaySupervisor(own_ray, "first", [spec(resources={"duplex": 3})]):
            second = RaySupervisor(own_ray, "second", [spec(resources={"duplex": 2}, bundle=bundle)], patience=short)
            with pytest.raises(PimserveError, match=r"need duplex 2; the Ray there has duplex 1 free of 4"):
                second.__enter__()
        time.sleep(0.5)  # in which a reservation that was left behind would be granted
        assert eventually(lambda: own_ray.free().get("duplex") == 4)

    def test_two_runs_of_one_name_live_side_by_side(self, own_ray):
        with RaySupervisor(own_ray, "same", [spec()]) as one, RaySupervisor(own_ray, "same", [spec()]) as other:
            assert one.endpoint("d0").pid != other.endpoint("d0").pid
