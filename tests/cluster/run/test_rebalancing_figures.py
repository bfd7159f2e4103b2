"""Runs whose experts are rebalanced: what moved, what that took, and what it gained."""

from pathlib import Path
from typing import Any

import pytest

from pimserve.cluster.run.history import History
from pimserve.cluster.run.replica_progress import ReplicaProgress
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.device_models.experts import ExpertTerm
from pimserve.device_models.rebalancing import placed_at
from pimserve.errors import InputError
from tests.cluster.documents import run, serve

SMALL = ["workload.num_requests=60", "workload.arrival={process: constant, rate_per_s: 6}", "cluster.device=h100"]
SLOWLY = "routing={popularity: uniform, drift: {interval_s: 0.5, sigma: 0.4}}"
REBALANCED = "cluster.expert_placement={order: popularity, redundant_experts: 4, rebalance: {interval_s: 1}}"


def served(*overrides: str) -> tuple[Prepared, dict[str, Any]]:
    prepared = prepare(load_scenario(None, [*SMALL, *overrides]))
    return prepared, serve(prepared)[0]


@pytest.mark.medium
def test_every_expert_that_comes_to_a_group_is_counted() -> None:
    prepared, summary = served(SLOWLY, REBALANCED)
    facts = summary["device_facts"]["expert_rebalancing"]
    term = prepared.pools[0].plan.experts
    assert isinstance(term, ExpertTerm)
    moved = times = 0
    while (times + 2) * 1.0 < summary["end_s"]:
        before, after = (
            [set(row[at : at + 3]) for row in placed_at(term, prepared.routing, 0, epoch).slots for at in (0, 3, 6, 9)]
            for epoch in (2 * (times + 2) - 1, 2 * (times + 2))
        )
        moved += 32 * sum(len(new - old) for old, new in zip(before, after, strict=True))
        times += 1
    assert times > 5
    assert (facts["times"], facts["experts_moved"]) == (times, moved)
    expert_bytes = 3 * 4096 * 14336 * 2
    assert facts["gb_moved"] == pytest.approx(moved * expert_bytes / 1e9)
    assert facts["joules"] == pytest.approx(2 * moved * term.units[0].weight_pj / 1e12)
    assert summary["energy"]["joules_by_category"]["expert_rebalancing"] == {"dram": facts["joules"], "compute": 0}
    assert 0 < facts["longest_transfer_s"] <= moved * expert_bytes / 450e9
    assert any("rebalancing experts moved" in warning for warning in summary["warnings"])
    assert not any("takes up to" in warning for warning in summary["warnings"])


@pytest.mark.medium
def test_following_a_drift_keeps_the_load_more_even_than_staying() -> None:
    # Popularities walk far: the first layout soon is no better than any.
    walk = ["workload.num_requests=240", "routing={popularity: uniform, drift: {interval_s: 0.5, sigma: 0.15}}"]
    facts = served(*walk, REBALANCED)[1]["device_facts"]["expert_rebalancing"]
    assert facts["imbalance_after"] < facts["imbalance_before"]


@pytest.mark.medium
def test_slow_links_are_told_of() -> None:
    _, summary = served(SLOWLY, REBALANCED, "cluster.device={preset: h100, link_gb_per_s: 1}")
    told = [warning for warning in summary["warnings"] if "a new layout of experts takes up to" in warning]
    assert len(told) == 1
    assert "longer than cluster.expert_placement.rebalance.interval_s, 1 s" in told[0]


@pytest.mark.medium
def test_a_run_that_ends_before_the_first_layout_moves_nothing() -> None:
    _, summary = served(SLOWLY, "cluster.expert_placement={order: popularity, rebalance: {interval_s: 1000}}")
    assert summary["device_facts"]["expert_rebalancing"] == {"interval_s": 1000.0, "times": 0}
    assert summary["energy"]["joules_by_category"]["expert_rebalancing"] == {"dram": 0, "compute": 0}
    without = served(SLOWLY)[1]
    assert "expert_rebalancing" not in without["device_facts"]
    assert "expert_rebalancing" not in without["energy"]["joules_by_category"]


@pytest.mark.medium
def test_moves_are_all_that_rebalancing_adds_to_energy_of_the_same_layouts() -> None:
    """Of popularities that do not move, layouts stay as they are but for the first change: from those of experts in
    order to what their loads make of them."""
    popular = "routing={popularity: zipf, zipf_exponent: 1, drift: {interval_s: 0.5, sigma: 1e-9}}"
    placed = "cluster.expert_placement={order: popularity, redundant_experts: 4"
    staying, following = (served(popular, f"{placed}{more}}}")[1] for more in ("", ", rebalance: {interval_s: 1}"))
    facts = following["device_facts"]["expert_rebalancing"]
    assert facts["times"] > 5
    assert facts["experts_moved"] == 0
    assert following["energy"]["joules"] == staying["energy"]["joules"]


@pytest.mark.medium
def test_energy_of_replicas_and_pools_is_all_of_their_parts() -> None:
    pools = (
        "cluster.pools={prefill: {device: h100, replicas: 2}, decode: {device: h200, replicas: 2, "
        "expert_placement: {order: popularity, redundant_experts: 4, rebalance: {interval_s: 1}}}}"
    )
    summary = served(SLOWLY, pools)[1]
    energy, (prefill, decode) = summary["energy"], (summary["pools"][name] for name in ("prefill", "decode"))
    parts = [part for kinds in energy["joules_by_category"].values() for part in kinds.values()]
    assert energy["active_joules"] == pytest.approx(sum(parts), rel=1e-12)
    assert energy["joules"] == pytest.approx(energy["active_joules"] + energy["passive_joules"], rel=1e-12)
    assert energy["joules"] == pytest.approx(prefill["joules"] + decode["joules"], rel=1e-12)
    assert energy["joules_per_output_token"] * summary["tokens"]["output"] == pytest.approx(energy["joules"])
    facts = decode["device_facts"]["expert_rebalancing"]
    of_all = energy["joules_by_category"]["expert_rebalancing"]["dram"]
    assert facts["joules"] < of_all <= 2 * facts["joules"] * (1 + 1e-12)  # the other may end a layout earlier
    assert "expert_rebalancing" not in prefill["device_facts"]


def test_a_replica_without_steps_moves_nothing() -> None:
    one, three = (
        served(SLOWLY, REBALANCED, "workload.num_requests=1", f"cluster.replicas={replicas}")[1] for replicas in (1, 3)
    )
    moved = one["energy"]["joules_by_category"]["expert_rebalancing"]
    assert three["energy"]["joules_by_category"]["expert_rebalancing"] == moved
    assert moved["dram"] > 0


@pytest.mark.medium
def test_layouts_of_a_rest_are_made_before_the_next_step() -> None:
    """What moves while a replica rests counts as if there had been steps all the time."""
    same = [SLOWLY, REBALANCED, "run.max_time_s=20.5"]
    busy = served(*same, "workload.num_requests=120")[1]["device_facts"]["expert_rebalancing"]
    rests = ["workload.arrival={process: constant, rate_per_s: 0.05}", "workload.num_requests=2"]
    resting = served(*same, *rests)[1]
    assert resting["busy_share"] < 0.5
    facts = resting["device_facts"]["expert_rebalancing"]
    assert facts["times"] == busy["times"] == 19
    assert resting["energy"]["joules_by_category"]["expert_rebalancing"]["dram"] == busy["joules"] > 0


@pytest.mark.medium
@pytest.mark.parametrize("mode", ["pooled", "exact"])
def test_results_are_read_with_the_layout_of_each_step(tmp_path: Path, mode: str) -> None:
    overrides = [*SMALL, SLOWLY, REBALANCED, f"routing.mode={mode}", "workload.num_requests=20"]
    run(prepare(load_scenario(None, overrides)), tmp_path / "run")
    history = History.load(tmp_path / "run")
    progress = ReplicaProgress(history, 0)
    progress.until(0, last=True)
    history.check_digest([progress.digest()])
    pools = [costs.pools for _, costs in history.stretches(0, 0, len(history.spans[0]), 0)]
    assert len({each.term.slots for each in pools if each is not None}) > 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["cluster.expert_placement={order: popularity, rebalance: {interval_s: 1}}"],
            r"^cluster\.expert_placement\.rebalance: popularities of experts do not change: give routing\.drift",
        ),
        (
            [SLOWLY, "cluster.expert_placement={order: popularity, rebalance: {interval_s: 0.7}}"],
            r"^cluster\.expert_placement\.rebalance\.interval_s: must be a multiple of routing\.drift\.interval_s",
        ),
        (
            [SLOWLY, "cluster.expert_placement={order: popularity, rebalance: {interval_s: 0.25}}"],
            r"must be a multiple of routing\.drift\.interval_s, 0\.5 s \(got 0\.25 s\)",
        ),
        (
            [SLOWLY, "cluster.expert_placement={order: round_robin, rebalance: {interval_s: 1}}"],
            r"^cluster\.expert_placement: rebalance goes with order: popularity",
        ),
        (
            [SLOWLY, REBALANCED, "cluster.device=aimc-realistic", "cluster.devices_per_node=12"],
            r"^cluster\.expert_placement: the plan of a whole model on aimc-realistic has expected loads",
        ),
    ],
)
def test_what_cannot_be_rebalanced_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(load_scenario(None, overrides))


@pytest.mark.medium
def test_experts_on_devices_of_their_own_move_among_these() -> None:
    """The same layouts, on as many devices, over the same links: attention's devices have no part in it."""
    both = (SLOWLY, REBALANCED, "run.max_time_s=8.5")
    plain = served(*both)[1]["device_facts"]["expert_rebalancing"]
    elsewhere = "cluster.placement={experts: {device: h100, devices_per_node: 4}, micro_batches: 1}"
    attention = ["cluster.device={preset: a100, link_gb_per_s: 10}", "cluster.devices_per_node=8"]
    mixed = served(*both, *attention, elsewhere)[1]
    assert mixed["groups"]["experts"]["device_facts"]["expert_rebalancing"] == plain
    assert "expert_rebalancing" not in mixed["device_facts"]
