"""Scenarios are checked in other processes, which are ended when they take too much."""

import json
import os
import subprocess
import threading
import time

import grpc
import pytest

from pimserve.cluster.base.rpc.statuses import RefusedError, violations
from pimserve.cluster.client import Client
from pimserve.cluster.service.checker_pool import CHECKER, CheckerPool
from pimserve.cluster.service.launch_options import USUAL_PLACES
from pimserve.cluster.service.limits import CheckLimits
from pimserve.errors import InputError
from pimserve.v1 import simulation_pb2 as pb
from tests.cluster.service.harness import PATIENCE_S, refused, server_and_client, until

pytestmark = pytest.mark.server
# Of the largest that can be mapped: about 10 s and 1.7 GB.
LARGE = """
model:
  {preset: llama-3.1-8b, layers: 13000, hidden: 512, ffn: {intermediate: 512}, attention: {head_dim: 16, kv_heads: 32}}
cluster: {device: aimc-realistic, devices_per_node: 16}
"""


class Call:
    """The context of a call that goes on until it is told not to."""

    def __init__(self):
        self.over = threading.Event()

    def is_active(self):
        return not self.over.is_set()


@pytest.fixture
def pool(request):
    limits = getattr(request, "param", CheckLimits())
    checkers = CheckerPool(None, USUAL_PLACES, limits)
    yield checkers
    checkers.close()


def check(pool, text, options=None, call=None):
    return pool.check(pb.ScenarioDocument(yaml=text), options, call or Call())


def test_what_is_good_is_told_and_what_is_not_is_named(pool):
    checked = check(pool, "name: mine\ncluster: {replicas: 2}")
    assert (checked["name"], checked["replicas"], checked["devices"]) == ("mine", 2, 8)
    with pytest.raises(
        InputError, match=r"^scenario.yaml: cluster.replicas: must be greater than 0 \(got 0\)$"
    ) as caught:
        check(pool, "cluster: {replicas: 0}")
    assert violations(caught.value) == (("scenario.yaml: cluster.replicas", "must be greater than 0 (got 0)"),)
    with pytest.raises(InputError, match="this server allows no others") as caught:
        check(pool, "", pb.LaunchOptions(on="ray"))
    assert [field for field, _ in violations(caught.value)] == ["options.on"]
    options = pb.LaunchOptions(on="ray", devices_per_actor=2, resource=["duplex=1"])
    with pytest.raises(InputError) as caught:  # all that is wrong, of options and scenario
        check(pool, "cluster: {replicas: 0}\nnow: 1", options)
    named = [field for field, _ in violations(caught.value)]
    assert named == ["options.on", "options.resource", "scenario.yaml: cluster.replicas", "scenario.yaml: now"]
    launched = check(pool, "name: mine", pb.LaunchOptions(on="processes"))
    assert launched["place"] == {"on": "processes"}
    assert "name: mine" in launched["scenario"]


@pytest.mark.parametrize("pool", [CheckLimits(memory_bytes=10**8, processes=1)], indirect=True)
def test_memory_is_limited(pool):
    with pytest.raises(RefusedError, match="needs more than 100 MB of memory") as caught:
        check(pool, "cluster: {nodes: 4096, devices_per_node: 4096, tensor_parallel: 1}")
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert check(pool, "name: next")["name"] == "next"


@pytest.mark.parametrize("pool", [CheckLimits(time_s=0.5, processes=1)], indirect=True)
def test_time_is_limited(pool):
    with pytest.raises(RefusedError, match=r"takes longer than 0.5 s") as caught:
        check(pool, LARGE)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert check(pool, "name: next")["name"] == "next"


def processes_of(pool):
    return [checker._process for checker in pool._all]


@pytest.mark.parametrize("pool", [CheckLimits(processes=1)], indirect=True)
def test_work_ends_with_the_call(pool):
    check(pool, "")
    (process,) = processes_of(pool)
    call = Call()
    threading.Timer(0.3, call.over.set).start()
    began = time.monotonic()
    with pytest.raises(RefusedError):
        check(pool, LARGE, call=call)
    assert time.monotonic() - began < 2
    assert process.returncode == -9
    assert check(pool, "name: next")["name"] == "next"


@pytest.mark.parametrize("pool", [CheckLimits(processes=1, calls=1)], indirect=True)
def test_more_calls_than_may_wait_are_refused_at_once(pool):
    check(pool, "")
    call, refusals = Call(), []

    def long_check():
        with pytest.raises(RefusedError) as caught:
            check(pool, LARGE, call=call)
        refusals.append(str(caught.value))

    thread = threading.Thread(target=long_check)
    thread.start()
    until(pool._free.empty)
    with pytest.raises(RefusedError, match="other scenarios are being checked") as caught:
        check(pool, "")
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    call.over.set()
    thread.join()
    assert len(refusals) == 1
    assert check(pool, "name: next")["name"] == "next"


@pytest.mark.parametrize("pool", [CheckLimits(processes=1)], indirect=True)
def test_a_process_that_dies_says_how_and_is_replaced(pool):
    check(pool, "")
    (process,) = processes_of(pool)
    threading.Timer(0.3, process.kill).start()
    with pytest.raises(RefusedError, match=r"ended the process that did it \(signal 9\)"):
        check(pool, LARGE)
    until(lambda: [other for other in processes_of(pool) if other is not process])
    check(pool, "")
    processes_of(pool)[0].kill()  # while it has nothing to do
    processes_of(pool)[0].wait()
    assert check(pool, "name: next")["name"] == "next"


@pytest.mark.e2e
def test_a_process_whose_server_is_gone_ends_quietly():
    settings = {"traces": None, "places": {"on": [], "most_hosts": 1}, "memory_bytes": 10**9, "time_s": 1}
    nobody, answers = os.pipe()
    os.close(nobody)
    checker = subprocess.run(
        [*CHECKER, json.dumps(settings)],
        stdin=subprocess.DEVNULL,
        stdout=answers,
        stderr=subprocess.PIPE,
        timeout=PATIENCE_S,
        check=False,
    )
    os.close(answers)
    assert (checker.returncode, checker.stderr) == (os.EX_IOERR, b"")


def test_a_deadline_ends_the_work_and_the_server_goes_on(tmp_path):
    with server_and_client(tmp_path, check=CheckLimits(processes=1)) as client:
        began = time.monotonic()
        with Client(client.address, timeout_s=1.0) as hasty:
            assert refused(hasty.validate, LARGE)[0] == "DEADLINE_EXCEEDED"
        assert client.validate("name: next").name == "next"
        assert time.monotonic() - began < 8
        assert refused(client.validate, "model: {preset: mixtral-8x7b, moe: {experts: 100000000}}") == (
            "INVALID_ARGUMENT",
            "model.moe.experts: must be less than or equal to 205000 (got 100000000)",
        )
