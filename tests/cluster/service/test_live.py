"""A worker, its endpoint and a real run in this process."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import grpc
import pytest
from google.rpc import error_details_pb2

from pimserve.cluster.base.figures import share
from pimserve.cluster.base.files import read_json
from pimserve.cluster.base.processes import LOCKED, TO_BE_CONTINUED
from pimserve.cluster.base.rpc.statuses import details_of
from pimserve.cluster.cli.replica_tables import replica_table
from pimserve.cluster.client import answers
from pimserve.cluster.run.reproduce import read_recorded_run
from pimserve.cluster.run.run import run
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.service.data_folder import DataFolder
from pimserve.cluster.service.ended_runs import answer
from pimserve.cluster.service.worker import work
from pimserve.errors import InputError
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import simulation_pb2 as sim
from pimserve.v1 import worker_pb2
from tests.cluster.cli.test_render import printed
from tests.cluster.documents import serve
from tests.cluster.service.harness import prepared, until
from tests.cluster.service.replica_sums import replicas_are_those_of

ID = {"run_id": "abcd"}
SMALL = ("workload.num_requests=60",)
OF_SOME_RUNS = ("prefix_cache", "kv_tiers", "preemptions_by_cause", "spec_decode")
LONG = ("workload.num_requests=100000", "output.steps=false")


def in_a_thread(folder, runner):
    """The exit code of a worker that is not alone in its process."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, folder, runner=runner).result(30)


def refused(worker, method, request):
    with pytest.raises(grpc.RpcError) as caught:
        worker.call(method, request)
    return caught.value.code(), caught.value.details()


def started(worker):
    """Wait for the first window of a run that is held."""
    while True:
        try:
            return worker.call("GetReplicas", sched.GetReplicasRequest(**ID))
        except grpc.RpcError as error:
            if error.details() != "the run is starting; try again":
                raise


def test_watching_and_asking_change_no_bit_of_the_results(worker):
    each = worker(*SMALL)
    started(each)
    each.call("Resume", sim.ResumeRequest(**ID))
    follow = worker_pb2.FollowRequest(**ID, interval_s=0.05)
    for news in each.follower.Follow(follow, metadata=each.metadata):
        assert news.progress.simulated_s == news.replicas.simulated_s == news.latencies.simulated_s
    outcome = each.outcome()
    assert (outcome["state"], each.code) == ("finished", 0)
    summary, _ = serve(prepare(load_scenario(each.folder.scenario)))
    theirs = json.loads((each.folder.results / "summary.json").read_text())
    assert theirs["digest"] == summary["digest"]
    assert outcome["progress"]["finished"] == 60
    assert outcome["progress"]["steps"] == summary["batch"]["steps"]
    assert not each.folder.worker.exists()
    assert not each.folder.checkpoints.exists()


def test_replicas_and_placement(worker):
    each = worker(*LONG, "cluster.replicas=3")
    found = started(each)
    assert [replica.replica for replica in found.replicas] == [0, 1, 2]
    assert all(replica.up and replica.kv_blocks > 0 for replica in found.replicas)
    assert not any(replica.HasField(name) for replica in found.replicas for name in OF_SOME_RUNS)
    placement = each.call("GetPlacement", sched.GetPlacementRequest(**ID))
    assert (placement.model, placement.device) == ("mixtral-8x7b", "duplex")
    assert [replica.first_device for replica in placement.replicas] == [0, 4, 8]
    assert placement.replicas[0].devices == 4
    assert placement.replicas[0].parallelism["tensor"] == "4"
    assert not placement.replicas[0].groups


def test_replicas_tell_what_their_prefix_caches_found(worker):
    """Of 999 tokens that all prompts begin with, 62 blocks of 16 are found."""
    caches = "scheduler={enable_prefix_caching: true, kv_tiers: [{name: host, capacity_gb: 1}, {name: disk}]}"
    each = worker(*LONG, caches, "workload.prefix={shared_tokens: 999}", speed=50)
    assert started(each).replicas[0].prefix_cache.hit_tokens == 0
    each.call("Resume", sim.ResumeRequest(**ID))
    replicas = sched.GetReplicasRequest(**ID)
    cache = until(lambda: (told := each.call("GetReplicas", replicas).replicas[0].prefix_cache).hit_tokens and told)
    assert cache.hit_tokens % 992 == 0
    assert 0 < cache.hit_tokens < cache.queried_tokens
    assert cache.cached_blocks > 62
    told = answers.read(answers.Replicas, each.call("GetReplicas", replicas))
    (replica,) = told.replicas
    assert replica.prefix_cache is not None
    ratio = replica.prefix_cache.hit_ratio
    assert ratio == replica.prefix_cache.hit_tokens / replica.prefix_cache.queried_tokens
    assert share(ratio) in printed(replica_table(told))
    without = replace(told, replicas=(replace(replica, prefix_cache=None, kv_tiers=None),))
    assert "prefix hits" in printed(replica_table(told))
    assert "prefix hits" not in printed(replica_table(without))
    assert replica.kv_tiers is not None
    host, disk = replica.kv_tiers.tiers  # all is on the device still, and was written through to both
    assert (
        host.queried_tokens
        == disk.queried_tokens
        == replica.prefix_cache.queried_tokens - replica.prefix_cache.hit_tokens
    )
    assert (host.hit_ratio, host.read_bytes, replica.kv_tiers.load_waits) == (0, 0, 0)
    assert disk.kept_blocks >= host.kept_blocks > 0
    assert host.capacity_blocks > disk.evicted_blocks == 0
    assert disk.capacity_blocks is None
    assert "any number" in printed(replica_table(told))


def test_preemptions_drafts_and_the_routers_decisions_are_told_on_the_way_and_are_the_summarys(worker):
    drafts = "speculative: {method: ngram, num_speculative_tokens: 3, acceptance: 0.6}"
    each = worker(
        *("workload={num_requests: 300, arrival: {rate_per_s: 30}}", "cluster.replicas=2"),
        f"scheduler={{kv_blocks: 400, router: least_outstanding, {drafts}}}",
        speed=4,  # requests arrive for seconds, in which they are asked for
    )
    assert started(each).router.requests == 1  # who comes at once
    each.call("Resume", sim.ResumeRequest(**ID))
    replicas = sched.GetReplicasRequest(**ID)

    def preempting():
        told = each.call("GetReplicas", replicas)
        return any(replica.HasField("preemptions_by_cause") for replica in told.replicas) and told

    told = answers.read(answers.Replicas, until(preempting))
    routed = {each.replica: sum(each.by_reason_requests.values()) for each in told.router.replicas}
    assert sum(told.router.by_reason_requests.values()) == sum(routed.values()) == told.router.requests > 0
    assert all(routed[state.replica] >= state.running + state.waiting + state.left for state in told.replicas)
    assert all(0 < state.spec_decode.acceptance_rate < 1 for state in told.replicas)
    assert all(heading in printed(replica_table(told)) for heading in ("recompute", "accepted", "routed to"))
    each.call("ChangeSpeed", sim.ChangeSpeedRequest(**ID, speed=0))
    assert each.outcome()["state"] == "finished"
    ended = answer(each.folder, "GetReplicas", replicas)
    assert ended.router.requests == 300 > told.router.requests
    replicas_are_those_of(json.loads((each.folder.results / "summary.json").read_text()), ended)


def test_lives_of_requests_are_as_of_the_windows_end(worker):
    each = worker(*LONG, speed=50)
    started(each)
    zeroth = each.call("DescribeRequest", sched.DescribeRequestRequest(**ID, request=0))
    assert (zeroth.state, zeroth.arrival_s) == (sched.REQUEST_STATE_PREFILL, 0)  # the clock starts with it
    first = each.call("DescribeRequest", sched.DescribeRequestRequest(**ID, request=1))
    assert first.state == sched.REQUEST_STATE_EXPECTED
    assert first.HasField("arrival_s")
    assert not first.HasField("replica")
    last = each.call("DescribeRequest", sched.DescribeRequestRequest(**ID, request=99_999))
    assert last.state == sched.REQUEST_STATE_EXPECTED

    each.call("Resume", sim.ResumeRequest(**ID))
    states = set()
    while first.state != sched.REQUEST_STATE_FINISHED:
        first = each.call("DescribeRequest", sched.DescribeRequestRequest(**ID, request=1))
        states.add(first.state)
        times = [getattr(first, f"{name}_s") for name in ("arrival", "first_scheduled", "first_token", "finish")]
        happened = [time for time in times if time]
        assert happened == sorted(happened)
        assert all(time <= first.simulated_s for time in happened[1:])
    assert first.preemptions == 0
    assert refused(each, "DescribeRequest", sched.DescribeRequestRequest(**ID, request=100_000)) == (
        grpc.StatusCode.NOT_FOUND,
        "no request 100000: the run has 100,000, from 0",
    )


def test_latencies_and_ledgers_grow(worker):
    each = worker(*LONG, "slo.ttft_s=1")
    started(each)
    nothing = each.call("GetLatencies", sched.GetLatenciesRequest(**ID))
    assert [latency.name for latency in nothing.latencies] == ["ttft", "tpot", "e2e", "queue", "itl"]
    assert not nothing.latencies[0].HasField("mean_s")
    assert not nothing.slo.HasField("attainment")
    each.call("Resume", sim.ResumeRequest(**ID))
    found = nothing
    while not found.slo.left:
        found = each.call("GetLatencies", sched.GetLatenciesRequest(**ID, percentiles=[50, 99.9]))
    assert [percentile.percent for percentile in found.latencies[0].percentiles] == [50, 99.9]
    assert found.latencies[0].percentiles[0].value_s <= found.latencies[0].percentiles[1].value_s
    assert 0 < found.slo.attainment <= 1
    assert dict(found.slo.limits_s) == {"ttft_s": 1}
    ledgers = each.call("GetLedgers", sched.GetLedgersRequest(**ID))
    assert ledgers.ledgers[0].active_joules == ledgers.ledgers[0].dynamic_joules > 0
    assert ledgers.ledgers[0].passive_joules > 0
    assert ledgers.ledgers[0].output_tokens > 0
    assert sum(ledgers.ledgers[0].busy_s.values()) > 0


def test_changes_take_effect_and_say_when(worker):
    each = worker(*LONG, "cluster.replicas=2")
    started(each)
    changed = each.call("ChangeScheduler", sched.ChangeSchedulerRequest(**ID, router="least_outstanding"))
    assert changed.simulated_s == 1e-15
    before = each.call("DescribeRequest", sched.DescribeRequestRequest(**ID, request=99_999)).arrival_s
    assert each.call("ScaleRate", sched.ScaleRateRequest(**ID, factor=4)).simulated_s == 1e-15
    after = each.call("DescribeRequest", sched.DescribeRequestRequest(**ID, request=99_999)).arrival_s
    assert after == pytest.approx(before / 4)

    injected = each.call(
        "InjectRequests", sched.InjectRequestsRequest(**ID, input_tokens=[7, 8], output_tokens=[3, 4], delay_s=1)
    )
    for number, (inputs, outputs) in enumerate([(7, 3), (8, 4)], start=injected.first_request):
        found = each.call("DescribeRequest", sched.DescribeRequestRequest(**ID, request=number))
        assert (found.input_tokens, found.output_tokens) == (inputs, outputs)
        assert found.arrival_s == pytest.approx(1)
    earlier = each.call("InjectRequests", sched.InjectRequestsRequest(**ID, input_tokens=[9], output_tokens=[2]))
    assert (injected.first_request, earlier.first_request) == (100_000, 100_002)
    for number, inputs in ((100_000, 7), (100_001, 8), (100_002, 9)):
        found = each.call("DescribeRequest", sched.DescribeRequestRequest(**ID, request=number))
        assert (found.request, found.input_tokens) == (number, inputs)
    assert each.call("DescribeRequest", sched.DescribeRequestRequest(**ID, request=99_999)).arrival_s == after
    again = each.call("GetReplicas", sched.GetReplicasRequest(**ID))
    assert len(again.replicas) == 2


def test_a_changed_run_is_replayed_from_its_results_to_the_same_bits(worker, tmp_path):
    each = worker(*SMALL, "cluster.replicas=2")
    started(each)
    each.call("ChangeScheduler", sched.ChangeSchedulerRequest(**ID, router="least_outstanding", max_num_seqs=3))
    each.call("ScaleRate", sched.ScaleRateRequest(**ID, factor=2))
    inject = sched.InjectRequestsRequest(**ID, input_tokens=[700, 8], output_tokens=[30, 4], delay_s=1)
    each.call("InjectRequests", inject)
    each.call("Resume", sim.ResumeRequest(**ID))
    with suppress(grpc.RpcError):  # it may have ended by then
        each.call("InjectRequests", inject)
    assert each.outcome()["state"] == "finished"
    recorded = read_recorded_run(each.folder.results)
    assert [command["command"] for _, command in recorded.commands][:3] == ["change_scheduler", "scale_rate", "inject"]
    recorded.compare(run(recorded.prepared, tmp_path / "again", commands=recorded.commands))
    for name in ("requests.npy", "steps.npy", "request_numbers.npy", "commands.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (each.folder.results / name).read_bytes(), name


@pytest.mark.parametrize(
    ("method", "request_", "message"),
    [
        ("ChangeScheduler", sched.ChangeSchedulerRequest(**ID), "nothing to change"),
        (
            "ChangeScheduler",
            sched.ChangeSchedulerRequest(**ID, router="nope"),
            "router: unknown router 'nope'",
        ),
        (
            "ChangeScheduler",
            sched.ChangeSchedulerRequest(**ID, max_num_seqs=10**6),
            "max_num_seqs: must be at most 2048, or max_num_batched_tokens, which is 2048, be changed to at least",
        ),
        (
            "InjectRequests",
            sched.InjectRequestsRequest(**ID, input_tokens=[1], output_tokens=[1, 2]),
            "output_tokens: has 2",
        ),
        ("GetDevices", sched.GetDevicesRequest(**ID), "the devices of this run are no actors; launch it on processes"),
        ("GetReplicas", sched.GetReplicasRequest(run_id="ffff"), "this is the process of run 'abcd'"),
    ],
)
def test_what_cannot_be(worker, method, request_, message):
    each = worker(*LONG)
    started(each)
    assert message in refused(each, method, request_)[1]
    each.call("GetReplicas", sched.GetReplicasRequest(**ID))  # the run goes on


def test_a_running_run_takes_another_pace(worker):
    each = worker(*LONG, speed=1e-3)
    started(each)
    each.call("Resume", sim.ResumeRequest(**ID))
    crawling = each.call("GetReplicas", sched.GetReplicasRequest(**ID)).simulated_s
    changed = each.call("ChangeSpeed", sim.ChangeSpeedRequest(**ID, speed=1000))
    assert crawling <= changed.simulated_s < 0.1
    until(lambda: each.call("GetReplicas", sched.GetReplicasRequest(**ID)).simulated_s > 100)  # a day at the first pace
    since = each.call("ChangeSpeed", sim.ChangeSpeedRequest(**ID, speed=1e-3)).simulated_s
    time.sleep(0.3)
    assert each.call("GetReplicas", sched.GetReplicasRequest(**ID)).simulated_s < since + 1
    each.call("ChangeSpeed", sim.ChangeSpeedRequest(**ID, speed=0))  # as fast as possible
    until(lambda: each.call("GetReplicas", sched.GetReplicasRequest(**ID)).simulated_s > since + 100)


def test_gaps_between_tokens_are_of_the_answer_when_a_run_is_held(worker):
    each = worker(*LONG, "run.warmup_s=1")
    started(each)
    each.call("Resume", sim.ResumeRequest(**ID))
    until(lambda: each.call("GetReplicas", sched.GetReplicasRequest(**ID)).simulated_s > 5)
    each.call("Pause", sim.PauseRequest(**ID))
    ledgers = each.call("GetLedgers", sched.GetLedgersRequest(**ID))
    told = until(lambda: _of_now(each.call("GetLatencies", sched.GetLatenciesRequest(**ID))))
    assert told.simulated_s == ledgers.simulated_s
    assert {latency.counted_from_s for latency in told.latencies} == {1}
    assert told.latencies[-1].count > 0


def _of_now(told):
    return told if all(latency.as_of_s == told.simulated_s for latency in told.latencies) else None


def test_what_is_wrong_with_a_change_is_named_by_the_requests_fields(worker):
    each = worker(*LONG)
    started(each)
    for change, fields in (
        ({}, ["router", "max_num_seqs", "max_num_batched_tokens"]),
        ({"router": "nope"}, ["router"]),
        ({"max_num_seqs": 10**6}, ["max_num_seqs"]),
        ({"max_num_seqs": 10**6, "max_num_batched_tokens": 10**5}, ["max_num_batched_tokens"]),
        ({"max_num_batched_tokens": 1}, ["max_num_batched_tokens"]),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            each.call("ChangeScheduler", sched.ChangeSchedulerRequest(**ID, **change))
        [wrong] = details_of(caught.value, error_details_pb2.BadRequest)
        assert [violation.field for violation in wrong.field_violations] == fields


def test_a_closed_loop_takes_no_more_requests(worker):
    each = worker("workload={mode: closed, concurrency: 4, num_requests: 40}")
    started(each)
    more = sched.InjectRequestsRequest(**ID, input_tokens=[5], output_tokens=[5])
    for method, request in (("InjectRequests", more), ("ScaleRate", sched.ScaleRateRequest(**ID, factor=2))):
        assert refused(each, method, request)[0] is grpc.StatusCode.FAILED_PRECONDITION


def test_a_worker_talks_only_to_who_has_its_token(worker):
    each = worker(*LONG)
    started(each)
    for metadata in ((), (("authorization", "Bearer wrong"),)):
        with pytest.raises(grpc.RpcError) as caught:
            each.scheduler.GetReplicas(sched.GetReplicasRequest(**ID), metadata=metadata, timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_cancelled_run_leaves_nothing(worker):
    each = worker(*LONG)
    started(each)
    each.call("Cancel", sim.CancelRequest(**ID))
    assert each.outcome()["state"] == "cancelled"
    assert not each.folder.results.exists()
    assert not each.folder.checkpoints.exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("run.seed", "is bad"), "run.seed: is bad"),
        (MemoryError(), "out of memory: a smaller workload needs less"),
        (ZeroDivisionError("oops"), "internal error: ZeroDivisionError: oops; the run's worker.log has more"),
    ],
)
def test_a_run_that_fails_says_why(tmp_path, error, message):
    def fails(*_, **__):
        raise error

    folder = prepared(DataFolder(tmp_path), *SMALL)
    assert in_a_thread(folder, fails) == 0
    assert read_json(folder.outcome) == {"state": "failed", "error": message, "progress": {}}


def test_results_that_are_there_are_not_computed_again(tmp_path):
    folder = prepared(DataFolder(tmp_path), *SMALL)
    run(prepare(load_scenario(folder.scenario)), folder.results)
    assert in_a_thread(folder, None) == 0
    outcome = read_json(folder.outcome)
    assert (outcome["state"], outcome["progress"]["finished"]) == ("finished", 60)


def test_a_run_has_one_worker(worker):
    each = worker(*LONG)
    started(each)
    assert in_a_thread(each.folder, None) == LOCKED


@pytest.mark.parametrize("server", ["none", "gone", "there"])
def test_a_run_without_a_server_stops_after_a_while_to_be_continued(worker, monkeypatch, server):
    monkeypatch.setattr("pimserve.cluster.service.worker._LOOK_S", 0.01)
    monkeypatch.setattr("pimserve.cluster.service.worker._WITHOUT_SERVER_S", 0.2)
    monkeypatch.setattr("pimserve.cluster.service.worker._WINDOW_AT_MOST_S", 1e6)
    each = worker(*LONG, server=server)
    if server == "there":
        started(each)
        time.sleep(0.4)
        assert each.call("GetReplicas", sched.GetReplicasRequest(**ID)).replicas
    else:
        assert each.outcome() is None
        assert each.code == TO_BE_CONTINUED
        assert not each.folder.worker.exists()
