"""Replicas whose experts are cut over AIMC chips: how many chips that takes, and what passes between the groups."""

from typing import Any

import numpy as np
import pytest

from pimserve.cluster.run.run import serve
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.placement import PlacedPool
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.device_models.aimc.crossbar_experts import SlicedExperts
from pimserve.errors import InputError

# An expert of Mixtral takes 21,504 tiers, and chips with 32 tiers a tile have room for 15,872.
FEW_TIERS = "{preset: aimc-realistic, spread: experts, tiers: 32}"
MANY_TIERS = "{preset: aimc-realistic, spread: experts}"


def mixed(device: str, *changes: str, chips: int | str = "auto", keys: str = "") -> Prepared:
    experts = f"{{device: {device}, devices_per_node: {chips}}}"
    placed = f"cluster.placement={{experts: {experts}, micro_batches: 2{keys}}}"
    return prepare(load_scenario(None, ["cluster.devices_per_node=2", placed, "workload.num_requests=30", *changes]))


def passing(pool: PlacedPool) -> dict[str, tuple[float, float]]:
    """(bytes, vectors) of a token between groups, by direction."""
    return {
        traffic.operator: (traffic.bytes_per_row, traffic.vectors_per_row)
        for traffic in pool.replica.traffic
        if traffic.link == "between_groups"
    }


def links(pool: PlacedPool) -> dict[str, Any]:
    found: dict[str, Any] = pool.replica.facts["placement"]["link"]
    return found


@pytest.mark.medium
def test_auto_takes_the_fewest_chips_that_hold_slices() -> None:
    alone = load_scenario(None, [f"cluster.device={FEW_TIERS}", "cluster.devices_per_node=auto"]).cluster
    assert alone.devices_per_node == 12
    prepared = mixed(FEW_TIERS)
    (pool,) = prepared.pools
    # Two experts on three chips: 15,360 tiers each; with one on two there is more room left.
    assert [group.devices_per_replica for group in pool.groups] == [2, 12]
    assert pool.groups[1].replica.parallelism == {"spread": "experts", "chips_per_expert": 3}
    assert isinstance(pool.groups[1].plan.experts, SlicedExperts)
    assert any("each expert is cut over 3 chips" in warning for warning in pool.replica.warnings)
    summary, served = serve(prepared)
    assert summary.requests.finished == 30
    assert served.logs[0].stage_fs["experts"] > 0


def test_a_token_goes_to_all_chips_of_an_expert_and_one_vector_comes_back() -> None:
    (cut,), (whole,) = mixed(FEW_TIERS, chips=16).pools, mixed(MANY_TIERS).pools
    layers, hidden = 32, 4096
    assert passing(whole)["dispatch"] == (layers * 2 * hidden, layers * 2)
    assert passing(cut)["dispatch"] == pytest.approx((2 * layers * 2 * hidden, 2 * layers * 2))
    assert passing(cut)["combine"] == pytest.approx(passing(whole)["combine"])
    assert links(cut)["copies_per_token"] == pytest.approx(4)
    # A chip gets what it got with whole experts, and sends half of it back.
    assert links(cut)["copies_of_busiest_device"] == links(whole)["copies_of_busiest_device"] == pytest.approx(0.25)
    (dispatch, combine), (usual, back) = (
        [row for row in pool.plan.rows if row.stage in {"dispatch", "combine"}] for pool in (cut, whole)
    )
    fixed, slope = dispatch.pieces[0]
    # Two devices of attention send twice as much, which takes longer than what a chip receives.
    assert slope == pytest.approx(2 * usual.pieces[0][1], rel=1e-6)
    assert fixed == usual.pieces[0][0]
    assert combine.pieces[0][1] == pytest.approx(back.pieces[0][1], rel=1e-6)


@pytest.mark.parametrize("copies", ["per_device", "per_pick"])
def test_shared_experts_on_sliced_chips_send_whole_vectors(copies: str) -> None:
    model = "{name: m, title: m, layers: 2, hidden: 512, vocab: 512, max_model_len_tokens: 512, "
    model += "attention: {kind: gqa, heads: 4, kv_heads: 4, head_dim: 128}, "
    model += "moe: {experts: 4, top_k: 2, intermediate: 2048, shared_intermediate: 512}}"
    device = "{preset: aimc-realistic, spread: experts, tiles: 8, tiers: 3}"
    keys = f", shared_experts: experts, link: {{copies: {copies}}}"
    (pool,) = mixed(device, f"model={model}", keys=keys).pools
    (routed,) = mixed(device, f"model={model}", keys=f", link: {{copies: {copies}}}").pools
    experts = pool.groups[1]
    slices = experts.replica.parallelism["chips_per_expert"]
    assert slices > 1
    there, back = passing(pool)["dispatch"][1], passing(pool)["combine"][1]
    assert passing(routed)["dispatch"][1] == pytest.approx(2 * 2 * slices)
    assert passing(routed)["combine"][1] == pytest.approx(2 * 2)
    if copies == "per_pick":  # and one for the shared expert
        assert (there, back) == pytest.approx((2 * (2 * slices + 1), 2 * (2 + 1)))
        return
    hit = 0.5  # of a chip by a token that picks two of four
    assert there == pytest.approx(2 * (2 * slices + 1 - hit))
    assert back == pytest.approx(2 * (2 + 1 - hit / slices))


@pytest.mark.medium
def test_copies_and_orders_of_experts_go_with_slices() -> None:
    skewed = "routing={popularity: zipf, zipf_exponent: 1.0}"
    order = "cluster.expert_placement.order=popularity"
    plain = mixed(FEW_TIERS, skewed, order)
    copied = mixed(FEW_TIERS, skewed, order, "cluster.expert_placement.redundant_experts=2")
    experts = [each.pools[0].plan.experts for each in (plain, copied)]
    assert all(isinstance(term, SlicedExperts) for term in experts)
    assert [(term.groups, term.chips) for term in experts] == [(8, 2), (10, 2)]  # type: ignore[union-attr]
    assert links(copied.pools[0])["copies_of_busiest_device"] < links(plain.pools[0])["copies_of_busiest_device"]
    means = [float(np.mean(serve(each)[0].latency_s.tpot.mean)) for each in (plain, copied)]
    assert means[1] < means[0]


def test_hot_experts_elsewhere_leave_cold_ones_cut() -> None:
    hot = ", hot_experts: {device: h100, devices_per_node: 1, count: 2}"
    (pool,) = mixed(FEW_TIERS, "routing={popularity: zipf, zipf_exponent: 1.0}", keys=hot).pools
    cold = pool.members[-1]
    assert cold.devices_per_replica == 9
    assert cold.replica.parallelism == {"spread": "experts", "chips_per_expert": 3}


def test_what_no_number_of_chips_holds_is_said() -> None:
    with pytest.raises(InputError, match=r"^cluster\.placement\.experts\.devices_per_node: .*cut over up to 28 chips"):
        mixed("{preset: aimc-realistic, spread: experts, tiers: 2}")
