"""Finished runs over time whose requests wait for steps of prompts alone: those that decode run on, between tokens."""

from pathlib import Path

import numpy as np
import pytest

from pimserve.cluster.metrics.replay import replay
from pimserve.cluster.run.history import History
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from tests.cluster.documents import run

from .agreement import latencies_are_those_of

BATCHING = Path(__file__).parents[3] / "examples" / "batching.yaml"


def finished(tmp_path, *overrides):
    changes = ["workload.num_requests=150", "scheduler.batching=prefill_first", *overrides]
    summary = run(prepare(load_scenario(BATCHING, changes)), tmp_path / "r")
    return summary, History.load(tmp_path / "r")


CASES = {
    "whole run": ["run.warmup_s=0"],
    "window": ["run.warmup_s=2"],
    "cut prompts": ["scheduler.max_num_batched_tokens=256"],
    "two replicas": ["cluster.devices_per_node=2", "cluster.replicas=2", "workload.arrival.rate_per_s=40"],
    "single tokens": ["workload.lengths.output={kind: uniform, low: 1, high: 4}"],
}


@pytest.mark.parametrize("case", CASES)
def test_gaps_between_tokens_are_those_of_the_summary(case, tmp_path):
    summary, history = finished(tmp_path, *CASES[case])
    *_, last = replay(history, "r", [*np.arange(0, history.end_s, 1).tolist(), history.end_s])
    assert summary["latency_s"]["itl"]["n"] > 0
    latencies_are_those_of(summary, last)


@pytest.mark.medium
@pytest.mark.parametrize("case", ["whole run", "cut prompts", "two replicas"])
def test_requests_that_wait_for_prompts_decode_and_run(case, tmp_path):
    _, history = finished(tmp_path, *CASES[case])
    table, waited = history.requests, 0
    times = np.arange(0.001, history.end_s, 0.05).tolist()
    for time_s, moment in zip(times, replay(history, "r", [*times, history.end_s]), strict=False):
        now = round(time_s * 1e12)
        under_way = table["finish_ps"] > now
        decoding = (table["first_token_ps"] <= now) & under_way
        assert moment.values["pimserve_requests_decoding"].sum() == decoding.sum()
        computed = moment.values["pimserve_requests_running"].sum() - decoding.sum()
        assert computed == ((table["first_scheduled_ps"] <= now) & under_way & ~decoding).sum()
        waited += np.isnan(moment.values["pimserve_context_tokens"]).sum()
    assert waited > 0


def test_gaps_of_preempted_requests_alone_are_left_out(tmp_path):
    _, history = finished(tmp_path, "scheduler.kv_blocks=1200", "run.warmup_s=0")
    assert (requests := history.summary.requests).preemptions > 0
    *_, last = replay(history, "r", [history.end_s])
    n = last.counts["pimserve_inter_token_latency_seconds"].sum()
    assert 0 <= history.summary.latency_s.itl.n - n <= requests.preemptions
