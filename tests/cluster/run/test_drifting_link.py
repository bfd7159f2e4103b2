"""The link between attention and experts while popularities drift: times and bytes are those of a step's interval."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pimserve.cluster.distributed.devices.compile import compile_pool
from pimserve.cluster.run.history import History
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.cluster.scenario.two_groups import link_between
from pimserve.device_models.mixed_plan import plan_at
from pimserve.device_models.plan import FS_PER_S, CostPlan
from pimserve.device_models.rebalancing import placed_at
from pimserve.device_models.slowdown import slow_plan
from tests.cluster.documents import run, serve

DRIFTS = "routing={popularity: zipf, zipf_exponent: 1.0, drift: {interval_s: 0.5, sigma: 0.6}}"
STAYS = "routing={popularity: zipf, zipf_exponent: 1.0}"
REBALANCED = "cluster.expert_placement={order: popularity, redundant_experts: 4, rebalance: {interval_s: 0.5}}"
MIXED = [
    "cluster.devices_per_node=1",
    "cluster.placement={experts: {device: h100, devices_per_node: 4}, link: {experts_gb_per_s: 5}, micro_batches: 2}",
    "workload.num_requests=20",
    "workload.arrival={process: constant, rate_per_s: 8}",
]
DIRECTIONS = ("dispatch", "combine")


def prepared(*overrides: str) -> Prepared:
    return prepare(load_scenario(None, [*MIXED, *overrides]))


def slopes(plan: CostPlan) -> list[int]:
    """Of a token, fs: of dispatch and combine in MoE layers."""
    rows = {row.name: row for row in plan.rows}
    return [rows[f"{direction}, moe layers"].pieces[0][1] for direction in DIRECTIONS]


def plans(found: Prepared, epochs: range) -> Iterator[CostPlan]:
    """At the beginning of each interval, by a scenario that begins with its popularities and places."""
    pool, seed = found.pools[0], found.scenario.run.seed
    for epoch in epochs:
        weights = found.routing.expert_weights(8, seed, epoch).tolist()
        slots = placed_at(pool.plan.experts, found.routing, seed, epoch).slots
        yield plan_at(pool.plan, weights, slots)


@pytest.mark.parametrize("more", [[], [REBALANCED], ["cluster.placement.link.copies=per_pick"]])
def test_times_are_those_of_the_interval_in_which_a_step_begins(more: list[str]) -> None:
    found = prepared(DRIFTS, *more)
    costs = found.pools[0].costs(found.routing, found.scenario.run.seed)
    expected = list(plans(found, range(6)))
    assert expected[0] == costs.plan == found.pools[0].plan
    seen = [slopes(costs.at(epoch * FS_PER_S // 2 + FS_PER_S // 4).plan) for epoch in range(6)]
    assert seen == list(map(slopes, expected))
    assert len({tuple(each) for each in seen}) == 6
    for epoch in (3, 0, 5):  # whatever was asked for before
        again = costs.at(epoch * FS_PER_S // 2)
        assert again.plan == expected[epoch]
        assert again.at(0).plan == expected[0]
    slow = costs.slowed(1500)
    assert [slow.at(epoch * FS_PER_S // 2).plan for epoch in range(6)] == [slow_plan(each, 1500) for each in expected]


def test_a_step_takes_what_a_scenario_with_these_popularities_takes() -> None:
    found = prepared(DRIFTS)
    weights = found.routing.expert_weights(8, found.scenario.run.seed, 4).tolist()
    there = prepared(f"routing={{popularity: given, weights: {weights}}}")
    later = found.pools[0].costs(found.routing, 0).at(2 * FS_PER_S)
    alone = there.pools[0].costs(there.routing, 0)
    for requests in (1, 7, 64):
        spans = [costs.decode_span(0, requests, requests * 300, 20) for costs in (later, alone)]
        assert spans[0].duration_fs(20) == spans[1].duration_fs(20)


def test_layouts_that_follow_keep_the_busiest_device_less_busy() -> None:
    walk = "routing={popularity: zipf, zipf_exponent: 1.0, drift: {interval_s: 0.5, sigma: 0.15}}"
    placed = "cluster.expert_placement={order: popularity, redundant_experts: 4}"
    means = [
        np.mean([slopes(plan)[0] for plan in plans(prepared(walk, placing), range(2, 80))])
        for placing in (placed, REBALANCED)
    ]
    assert means[1] < 0.95 * means[0]


@pytest.mark.medium
@pytest.mark.parametrize("more", [[], [REBALANCED]])
def test_bytes_and_tokens_add_up_over_the_intervals(more: list[str], tmp_path: Path) -> None:
    found = prepared(DRIFTS, *more)
    summary = run(found, tmp_path / "run")
    history, pool = History.load(tmp_path / "run"), found.pools[0]
    spans = history.spans[0]
    tokens = (spans["decodes"] + spans["prefill_tokens"]) * spans["steps"]
    epochs = spans["begin_ps"] // (10**12 // 2)
    of_all: dict[Any, float] = dict.fromkeys(DIRECTIONS, 0.0)
    vectors = dict(of_all)
    for epoch in np.unique(epochs).tolist():
        link = link_between(found.scenario, found.model, found.routing, *pool.groups, epoch)
        for part in link.traffic():
            here = int(tokens[epochs == epoch].sum())
            of_all[part.operator] += part.bytes_per_row * here
            vectors[part.operator] += part.vectors_per_row * here
    shown = summary["groups"]["link"]
    for direction in DIRECTIONS:
        assert shown[direction]["bytes"] == pytest.approx(of_all[direction], rel=1e-9)
        assert shown[direction]["tokens"] == pytest.approx(vectors[direction], rel=1e-9)
    first = link_between(found.scenario, found.model, found.routing, *pool.groups).traffic()[0]
    assert abs(shown["dispatch"]["bytes"] / (first.bytes_per_row * int(tokens.sum())) - 1) > 1e-3
    # Devices that send each other tokens have the same sizes, in whole bytes.
    device_pool = compile_pool(found, "")
    for epoch in (0, 3):
        flows = device_pool.traffic_by_epoch[epoch].flows
        sent = sum(float(flow.bytes_per_row) for flow in flows if flow.sender == 0 and not flow.of_outputs)
        link = link_between(found.scenario, found.model, found.routing, *pool.groups, epoch)
        assert sent == pytest.approx(link.traffic()[0].bytes_per_row, rel=1e-6)


def test_without_a_drift_nothing_is_added() -> None:
    served = serve(prepared(STAYS))[1]
    assert not any(served.logs[0].link_more.values())
