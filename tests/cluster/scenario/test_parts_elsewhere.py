"""Parts of a model beside the routed experts on the experts' devices, and what has no effect there."""

import numpy as np
import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.expert_picks import draw_counts, pick_probabilities
from pimserve.errors import InputError

MODEL = "model={preset: deepseek-v3, layers: 5}"
ATTENTION = ["cluster.device=b200", "cluster.devices_per_node=8"]
ELSEWHERE = "dense_ffn: experts, shared_experts: experts, lm_head: experts, micro_batches: 1"


def placed(experts: str, more: str = ELSEWHERE, *overrides: str) -> PlacedPool:
    placement = f"cluster.placement={{experts: {experts}, {more}}}"
    return prepare(load_scenario(None, [MODEL, *ATTENTION, placement, *overrides])).pools[0]


def vectors(pool: PlacedPool, rows: str) -> float:
    """That go to the experts' devices for each row."""
    (dispatch,) = (part for part in pool.replica.traffic if (part.operator, part.rows) == ("dispatch", rows))
    return dispatch.vectors_per_row


def test_slices_of_an_ffn_go_back_without_a_sum_on_the_way() -> None:
    pool = placed("{device: h200, devices_per_node: 8}")
    assert not [row.name for row in pool.plan.rows if row.stage == "experts" and row.category == "communication"]
    assert vectors(pool, "outputs") == 8
    assert vectors(pool, "tokens") == 3 * 8 + 2 * 8  # dense layers, and MoE layers with their shared experts


def test_data_parallel_devices_of_experts_take_turns() -> None:
    one, two = (placed(f"{{device: h200, devices_per_node: 4, nodes: {nodes}}}") for nodes in (1, 2))
    costs = [{row.name: row for row in pool.plan.rows if row.stage == "experts"} for pool in (one, two)]
    for name in ("shared up", "ffn up", "lm head"):
        (slope, half) = (rows[name].pieces[0][1] for rows in costs)
        assert half == pytest.approx(slope / 2, rel=1e-6)
        assert costs[1][name].energy.dram_const == 2 * costs[0][name].energy.dram_const  # both nodes read the weights
        assert costs[1][name].energy.compute_per_row == costs[0][name].energy.compute_per_row
    assert vectors(two, "outputs") == 4
    measured = ["costs.setting=measured", "cluster.device=h100"]
    sorting = [
        next(row for row in pool.plan.rows if row.name == "experts, launch and sorting")
        for pool in (
            placed(f"{{device: h100, devices_per_node: {16 // nodes}, nodes: {nodes}}}", "micro_batches: 1", *measured)
            for nodes in (1, 2)
        )
    ]
    assert sorting[0].pieces[0][1] == pytest.approx(sorting[1].pieces[0][1], rel=1e-6)


@pytest.mark.medium
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("copies", ["per_device", "per_pick"])
def test_vectors_for_shared_experts_are_those_of_many_draws(nodes: int, copies: str) -> None:
    per_node = 16 // nodes
    more = f"shared_experts: experts, micro_batches: 1, link: {{copies: {copies}, latency_us: 0, gb_per_s: 1000, "
    more += "experts_gb_per_s: 1}"  # so that the busiest device counts
    pool = placed(f"{{device: h200, devices_per_node: {per_node}, nodes: {nodes}}}", more)
    one = draw_counts(np.random.default_rng(1), pick_probabilities(np.ones(256), 8), 1, 20_000)
    needed = one.reshape(-1, 16, 16).sum(axis=2).astype(float)  # (draws, devices)
    turn = np.arange(20_000)[:, None] % nodes == np.arange(16) // per_node
    needed = needed + turn if copies == "per_pick" else (needed > 0) | turn
    assert vectors(pool, "tokens") == pytest.approx(2 * needed.sum(axis=1).mean(), rel=0.01)
    assert vectors(pool, "tokens") == 2 * pool.replica.facts["placement"]["link"]["copies_per_token"]
    (row,) = (row for row in pool.plan.rows if row.stage == "combine")
    busiest = row.pieces[0][1] / (2 * 7168 * 2 * 10**6)  # fs of two layers' vectors of 2 bytes at 1 GB/s
    assert busiest == pytest.approx(needed.mean(axis=0).max(), rel=0.02)


def test_a_chip_that_holds_a_shared_expert_alone_gets_one_vector() -> None:
    chips = "{device: {preset: aimc-realistic, spread: experts}, devices_per_node: 8}"
    routed, all_there = placed(chips, "micro_batches: 1"), placed(chips)
    hit = vectors(routed, "tokens") / 2
    assert vectors(all_there, "tokens") == pytest.approx(3 + 2 * (hit + 1 - hit / 8))
    assert vectors(all_there, "outputs") == 1


def test_attention_on_measured_gpus_goes_with_experts_on_chips() -> None:
    chips = "{device: {preset: aimc-realistic, spread: experts}, devices_per_node: 8}"
    measured, ideal = (
        placed(chips, "micro_batches: 1", f"costs.setting={setting}", "cluster.device=h100")
        for setting in ("measured", "ideal")
    )
    assert measured.replica.costs["setting"] == "measured"
    assert "aimc-realistic keeps its projected rates" in measured.replica.warnings
    assert measured.plan.experts == ideal.plan.experts
    assert [row.name for row in measured.plan.rows_once] == ["host, step", "host, prompts"]


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (["cluster.placement.dense_ffn=experts"], "placement.dense_ffn: no effect, mixtral-8x7b has no dense layers"),
        (["cluster.placement.shared_experts=experts"], "placement.shared_experts: no effect"),
        (["cluster.placement.experts.tensor_parallel=1"], "experts.tensor_parallel: no effect"),
        (["cluster.node_gb_per_s=20"], "cluster.node_gb_per_s: no effect"),
    ],
)
def test_what_has_no_effect_is_said(overrides: list[str], note: str) -> None:
    given = ["cluster.placement={experts: {device: h100}, micro_batches: 1}", *overrides]
    warnings = prepare(load_scenario(None, given)).pools[0].replica.warnings
    assert any(note in warning for warning in warnings)


def test_links_between_nodes_of_the_experts_devices_have_an_effect() -> None:
    experts = "{device: h100, devices_per_node: 2, nodes: 2}"
    given = [f"cluster.placement={{experts: {experts}, micro_batches: 1}}", "cluster.node_gb_per_s=20"]
    warnings = prepare(load_scenario(None, given)).pools[0].replica.warnings
    assert not any("node_gb_per_s" in warning for warning in warnings)


def test_a_number_that_attention_states_stands_in_place_of_the_clusters() -> None:
    placement = "{attention: {devices_per_node: 2}, experts: {device: h100}, micro_batches: 1}"
    given = ["cluster.devices_per_node=auto", f"cluster.placement={placement}", "cluster.node_gb_per_s=20"]
    assert prepare(load_scenario(None, given)).pools[0].devices_per_replica == 4


@pytest.mark.parametrize(
    "placement",
    [
        "{experts: attention, attention: {devices_per_node: 3}}",
        "{experts: attention, link: {gb_per_s: 3}}",
        "{experts: {device: h100}, attention: {experts: tp}}",
        "{experts: {device: h100}, link: {hot_experts_gb_per_s: 3}}",
    ],
)
def test_what_can_have_no_effect_is_refused(placement: str) -> None:
    with pytest.raises(InputError, match=r"cluster\.placement: .* has no effect"):
        load_scenario(None, [f"cluster.placement={placement}"])


def test_attention_goes_on_numbers_of_devices_that_do_not_divide_the_experts() -> None:
    placement = "{experts: {device: h100, devices_per_node: 4}, micro_batches: 1}"
    copies = "cluster.expert_placement.redundant_experts=4"  # 12 experts, on 4 devices
    for costs in ("ideal", "measured"):
        given = ["cluster.device=h100", "cluster.devices_per_node=3", "cluster.tensor_parallel=1"]
        given += [f"cluster.placement={placement}", copies, f"costs.setting={costs}"]
        assert prepare(load_scenario(None, given)).pools[0].devices_per_replica == 7


def test_what_a_backend_keeps_is_for_the_parts_that_are_there() -> None:
    together, apart = (
        prepare(load_scenario(None, ["cluster.device=h200", "costs.setting=measured", *more])).pools[0]
        for more in ([], ["cluster.placement={experts: {devices_per_node: 4}, micro_batches: 1}"])
    )
    kept = [pool.replica.reserved_bytes_per_device for pool in (together, *apart.groups)]
    scheduler = load_scenario(None).scheduler
    tokens, requests = scheduler.max_num_batched_tokens, scheduler.max_num_seqs
    copies = (
        2 * (2 * tokens) * (2 * 14336 + 14336)
    )  # 2 bytes, 2 experts of a token: gate, up, and into the last product
    vectors, sampler = 2 * 2 * 4096 * tokens, 2 * 4096 * tokens + 14 * 32000 * requests
    assert kept[0] - kept[1] == pytest.approx(copies)
    assert kept[1] - kept[2] == pytest.approx(sampler - copies - vectors)


def test_errors_of_expert_placement_name_its_key() -> None:
    chips = "{device: {preset: aimc-realistic, spread: layers}, devices_per_node: 16}"
    given = [f"cluster.placement={{experts: {chips}}}", "cluster.expert_placement.redundant_experts=8"]
    with pytest.raises(InputError, match=r"^cluster\.expert_placement: "):
        prepare(load_scenario(None, given))
