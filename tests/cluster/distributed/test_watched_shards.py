"""What is told while a run goes on is that of its summary, also where shards live elsewhere."""

import pytest

from pimserve.cluster.distributed.run_spread import Spread
from pimserve.cluster.metrics.feed import MetricsFeed
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.run.live_control import LiveControl
from pimserve.cluster.run.running_latencies import RunningLatencies
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.cluster.service.messages import replicas_of
from tests.cluster.distributed.threads import run_there
from tests.cluster.metrics.agreement import (
    limits_at_percentiles_are_those_of,
    outcomes_are_those_of,
    prefix_caches_are_those_of,
    tiers_are_those_of,
)
from tests.cluster.metrics.watched import CASES
from tests.cluster.service.replica_sums import replicas_are_those_of

SLO = "slo={itl_max_s: 0.004, ttft_p99_s: 0.02, itl_p99.9_s: 1}"


@pytest.mark.parametrize("shards", [1, 2])
def test_longest_gaps_and_limits_at_percentiles(shards, tmp_path):
    scenario = load_scenario(None, ["workload.num_requests=80", "cluster.replicas=2", SLO])
    prepared = prepare(scenario)
    feed = MetricsFeed(metrics_of(prepared, "r"), prepared.objectives)
    control = LiveControl(RunningLatencies(prepared.objectives), observer=feed)
    summary = run_there(scenario, Spread(shards), tmp_path / "r", control)
    assert 0 < summary["slo"]["attainment"] < 1
    outcomes_are_those_of(summary, feed.latest())
    limits_at_percentiles_are_those_of(summary, feed.latest())
    found = control.latencies.so_far()
    assert found.good / found.left == summary["slo"]["attainment"]


def test_what_tiers_found_and_hold(tmp_path):
    scenario = load_scenario(None, [*CASES["tiers"][1], "workload.num_requests=80"])
    prepared = prepare(scenario)
    feed = MetricsFeed(metrics_of(prepared, "r"), prepared.objectives)
    control = LiveControl(RunningLatencies(prepared.objectives), observer=feed)
    summary = run_there(scenario, Spread(2), tmp_path / "r", control)
    assert all(tier["written_bytes"] > 0 for tier in summary["kv_tiers"]["tiers"])
    tiers_are_those_of(summary, feed.latest())
    prefix_caches_are_those_of(summary, feed.latest())


@pytest.mark.parametrize("shards", [1, 2])
def test_preemptions_drafts_and_decisions_of_the_router(shards, tmp_path):
    settings = [
        *("workload={num_requests: 120, arrival: {rate_per_s: 30}}", "cluster.replicas=2"),
        "scheduler={kv_blocks: 400, router: least_tokens, report_interval_s: 0.2, "
        "speculative: {method: ngram, num_speculative_tokens: 3, acceptance: 0.6}}",
    ]
    scenario = load_scenario(None, settings)
    control = LiveControl(RunningLatencies(prepare(scenario).objectives))
    summary = run_there(scenario, Spread(shards), tmp_path / "r", control)
    assert summary["requests"]["preemptions"] > 0
    assert summary["spec_decode"]["accepted_tokens"] > 0
    assert summary["router"]["requests"] >= 120
    replicas_are_those_of(summary, replicas_of(control.snapshot))
