"""Queries of a run that has finished: the figures of its summary, the lives of its requests, its devices."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest

from pimserve.cluster.base.rpc.statuses import RefusedError
from pimserve.cluster.service.data_folder import DataFolder
from pimserve.cluster.service.ended_runs import answer, summary_of
from pimserve.cluster.service.worker import work
from pimserve.scheduler.latencies import LATENCIES
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import simulation_pb2 as sim
from tests.cluster.service.harness import prepared, until
from tests.cluster.service.replica_sums import replicas_are_those_of

RUNS = {
    "whole": ["workload.num_requests=60", "slo={ttft_s: 0.02, tpot_s: 0.0043}"],
    "warm": [
        "workload.num_requests=300",
        "run.warmup_s=5",
        "run.cooldown_s=5",
        "slo={e2e_s: 0.5}",
        "cluster.replicas=2",
    ],
    "closed": ["workload={mode: closed, concurrency: 8, num_requests: 80}", "run.warmup_s=2"],
    "limits": [
        "workload.num_requests=200",
        "slo={itl_max_s: 0.012, ttft_p99_s: 0.02, itl_p50_s: 1, tpot_p90_s: 0.004}",
    ],
    "swap": [
        "workload.num_requests=150",
        "cluster.replicas=2",
        "scheduler={kv_blocks: 250, preemption: swap, swap_gb_per_s: 50, swap_space_gb: 0.02}",
    ],
    "cut": ["workload.num_requests=300", "run.max_time_s=6", "slo={ttft_s: 1}"],
}


LIMITED = ["ttft_p99_s", "itl_p50_s", "tpot_p90_s"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    def finished(name):
        folder = prepared(DataFolder(tmp_path_factory.mktemp(name)), *RUNS[name])
        with ThreadPoolExecutor(1) as pool:  # a worker that is not alone in its process
            assert pool.submit(work, folder).result(60) == 0
        return folder

    return {name: finished(name) for name in RUNS}


def ask(folder, method, **fields):
    return answer(folder, method, getattr(sched, f"{method}Request")(run_id="abcd", **fields))


@pytest.mark.parametrize("run", RUNS)
def test_latencies_are_those_of_the_summary_to_the_bit(folders, run):
    summary = summary_of(folders[run])
    told = ask(folders[run], "GetLatencies")
    assert told.simulated_s == summary.end_s
    assert [latency.name for latency in told.latencies] == [*LATENCIES, "itl"]
    for latency in told.latencies:
        exact = getattr(summary.latency_s, latency.name)
        assert latency.count == exact.n_samples > 0
        assert latency.mean_s == exact.mean_s
        figures = {f"p{percentile.percent:g}_s": percentile.value_s for percentile in latency.percentiles}
        assert figures == {name: getattr(exact, name) for name in ("p50_s", "p90_s", "p99_s")}
        assert (latency.counted_from_s, latency.as_of_s) == (summary.window.start_s, summary.end_s)
    if summary.slo.limits_s:
        assert told.slo.attainment == summary.slo.attainment
        assert told.slo.censored == summary.slo.censored_requests["all"]
    assert [limit.name for limit in told.slo.at_percentiles] == ([] if run != "limits" else LIMITED)
    for limit in told.slo.at_percentiles:
        exact = summary.slo.at_percentiles[limit.name]
        assert (limit.limit_s, limit.measured_s, limit.passed) == (exact.limit_s, exact.measured_s, exact.passed)
        assert (limit.margin_s, limit.count) == (exact.margin_s, exact.n_samples)


def test_other_percentiles_lie_between_them(folders):
    [ttft, *_] = ask(folders["warm"], "GetLatencies", percentiles=[1, 75, 100]).latencies
    exact = summary_of(folders["warm"]).latency_s.ttft
    low, middle, most = (percentile.value_s for percentile in ttft.percentiles)
    assert low <= exact.p50_s <= middle <= exact.p90_s <= exact.p99_s <= most


@pytest.mark.parametrize("run", RUNS)
def test_replicas_ledgers_and_placement_are_those_of_the_summary(folders, run):
    summary = summary_of(folders[run])
    ledgers = ask(folders[run], "GetLedgers").ledgers
    assert sum(ledger.output_tokens for ledger in ledgers) == summary.tokens.output_tokens
    assert sum(ledger.steps for ledger in ledgers) == summary.batch.steps
    assert sum(ledger.active_joules for ledger in ledgers) == pytest.approx(summary.energy.active_joules, rel=1e-12)
    told = ask(folders[run], "GetReplicas")
    replicas = told.replicas
    gone = summary.requests.finished_requests + summary.requests.rejected_requests
    assert sum(replica.left for replica in replicas) == gone
    assert sum(replica.running + replica.waiting for replica in replicas) == summary.requests.unfinished_requests
    replicas_are_those_of(json.loads((folders[run].results / "summary.json").read_text()), told)
    placement = ask(folders[run], "GetPlacement")
    assert sum(replica.devices for replica in placement.replicas) == summary.devices


@pytest.mark.parametrize("run", RUNS)
def test_lives_of_requests_are_those_of_the_table(folders, run):
    summary = summary_of(folders[run])
    total = 80 if run == "closed" else summary.requests.total_requests
    states = [ask(folders[run], "DescribeRequest", request=number).state for number in range(total)]
    assert states.count(sched.REQUEST_STATE_FINISHED) == summary.requests.finished_requests
    with pytest.raises(RefusedError, match=f"no request {total}: the run has {total}, from 0") as caught:
        ask(folders[run], "DescribeRequest", request=total)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


def begun(worker):
    try:
        return worker.call("GetReplicas", sched.GetReplicasRequest(run_id="abcd")).replicas
    except grpc.RpcError:
        return None


def test_injected_requests_keep_their_numbers_after_the_end(worker):
    each = worker("workload.num_requests=40")
    until(lambda: begun(each))
    asked = [
        {"input_tokens": [7], "output_tokens": [3], "delay_s": 2},
        {"input_tokens": [8, 9], "output_tokens": [2, 2]},
    ]
    first = [
        each.call("InjectRequests", sched.InjectRequestsRequest(run_id="abcd", **more)).first_request for more in asked
    ]
    assert first == [40, 41]
    each.call("Resume", sim.ResumeRequest(run_id="abcd"))
    assert each.outcome()["state"] == "finished"
    told = [ask(each.folder, "DescribeRequest", request=number) for number in (40, 41, 42)]
    assert [life.input_tokens for life in told] == [7, 8, 9]
    assert all(life.state == sched.REQUEST_STATE_FINISHED for life in told)
    assert told[0].arrival_s >= 2 > told[1].arrival_s


def test_what_is_damaged_or_was_never_there_is_no_mistake_of_who_asks(folders, tmp_path):
    asked = SimpleNamespace(percentiles=(), request=0)
    folder = prepared(DataFolder(tmp_path))
    with pytest.raises(RefusedError, match="finished under an earlier version") as caught:
        answer(folder, "GetLatencies", asked)
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    whole = folders["whole"].ended.read_bytes()
    folder.ended.write_bytes(whole)
    for method, content in (("GetLatencies", whole), ("GetReplicas", whole[:-1])):
        folder.ended.write_bytes(content)
        with pytest.raises(RefusedError, match="the files of run abcd are damaged") as caught:
            answer(folder, method, asked)
        assert caught.value.code is grpc.StatusCode.DATA_LOSS


def test_what_is_left_for_queries_is_small(folders):
    assert folders["warm"].ended.stat().st_size < 100_000
    assert json.loads((folders["warm"].results / "summary.json").read_text())["requests"]["total"] == 300
