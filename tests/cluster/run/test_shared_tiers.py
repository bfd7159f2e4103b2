"""Runs whose replicas share a tier: with what else a scenario has, wherever windows end, the same bits."""

from typing import Any

import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.scheduler.control import ChangeScheduler
from pimserve.scheduler.simulation import Deployment
from tests.cluster.documents import serve
from tests.scheduler.test_windows import FS_PER_MS, Windows

BASE = [
    "model=llama-3.1-8b",
    "cluster={device: h100, devices_per_node: 1, replicas: 3}",
    "workload.num_requests=60",
    "scheduler={enable_prefix_caching: true, kv_blocks: 250, kv_tiers: [{name: host, capacity_gb: 0.3, gb_per_s: 20}, "
    "{name: store, capacity_gb: 2, gb_per_s: 5, latency_us: 50, shared: true, write: back}]}",
]
PREFIX = "workload.prefix={groups: 6, shared_tokens: 900}"
OPEN = [PREFIX, "workload.arrival.rate_per_s=40"]
SESSIONS = [
    "workload.num_requests=null",
    "workload.arrival.rate_per_s=20",
    "workload.sessions={turns: {kind: geometric, mean: 3}, num_sessions: 20, context: accumulate, think_time_s: 0.05}",
]
WITH = {
    "sessions": SESSIONS,
    "sessions, few at once": [*SESSIONS, "workload.sessions.max_active=4", "scheduler.router=least_tokens"],
    "users": [PREFIX, "workload.mode=closed", "workload.concurrency=9", "workload.think_time_s=0.02"],
    "clients of their own": [PREFIX, "workload.mode=closed", "workload.concurrency=9"],
    "a cap on requests in flight": [*OPEN, "workload.max_concurrency=8"],
    "load shedding": [*OPEN, "scheduler.max_queued_requests=3"],
    "fair share": [*OPEN, "workload.classes=[{name: a}, {name: b}]", "scheduler.policy=vtc"],
    "autoscaling": [
        *OPEN,
        "autoscaling.replicas={min_replicas: 1, metric: requests, target: 4, interval_s: 0.2, start_up_s: 0.1}",
    ],
    "a router by what caches say": [
        *OPEN,
        "scheduler.router={name: dynamo, prefixes: kv_events}",
        "scheduler.report_interval_s=0.05",
    ],
    "a router by what caches say now": [*OPEN, "scheduler.router={name: dynamo, prefixes: kv_events}"],
}


@pytest.mark.medium
@pytest.mark.parametrize("settings", WITH.values(), ids=WITH.keys())
def test_windows_change_no_bit(settings: list[str]) -> None:
    prepared = prepare(load_scenario(None, [*BASE, *settings]))
    whole, _ = serve(prepared)
    control = Windows([7 * FS_PER_MS, 50 * FS_PER_MS, 31 * FS_PER_MS, FS_PER_MS // 3])
    cut, _ = serve(prepared, deployment=Deployment(control=control))
    parts = ["digest", "kv_tiers", "prefix_cache"]
    assert [cut.get(part) for part in parts] == [whole.get(part) for part in parts]
    store: dict[str, Any] = whole["kv_tiers"]["tiers"][-1]
    assert store["hit_tokens"] > 0


THROUGH = "scheduler.kv_tiers=[{name: store, capacity_gb: 2, gb_per_s: 5, shared: true}]"


@pytest.mark.medium
@pytest.mark.parametrize("settings", WITH.values(), ids=WITH.keys())
def test_windows_cut_no_span_that_writes_nothing_to_the_store(settings: list[str]) -> None:
    # What hangs on where spans are cut: the mean of KV blocks in use, and which steps are a batch of `ci95`.
    prepared = prepare(load_scenario(None, [*BASE, THROUGH, *settings]))
    whole, _ = serve(prepared)
    cut, _ = serve(prepared, deployment=Deployment(control=Windows([7 * FS_PER_MS, 50 * FS_PER_MS, FS_PER_MS // 3])))
    parts = ["digest", "kv_tiers", "kv", "ci95"]
    assert [cut.get(part) for part in parts] == [whole.get(part) for part in parts]


def test_who_may_run_by_a_change_looks_nothing_up_that_has_passed() -> None:
    prepared = prepare(load_scenario(None, [*BASE, THROUGH, *OPEN, "scheduler.max_num_seqs=1"]))
    for window in (5, 15, 25):
        control = Windows([100 * FS_PER_MS], {window: ChangeScheduler(max_num_seqs=8)})
        changed, _ = serve(prepared, deployment=Deployment(control=control))
        assert not control.refused
        assert changed["requests"]["unfinished"] == 0
