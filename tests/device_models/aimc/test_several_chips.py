"""3D AIMC: how a model is spread over chips, and what they send each other."""

from collections import Counter

import pytest

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.aimc.mapping import map_network
from pimserve.device_models.aimc.network import network_of
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.aimc.walk import Walker
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.device import Demand
from pimserve.device_models.operators import Parallelism
from pimserve.device_models.pipeline import Load
from pimserve.device_models.plan import FS_PER_S, PJ_PER_J, CostPlan
from pimserve.errors import InputError
from tests.cluster.documents import serve
from tests.device_models.aimc.fitted_plans import aimc, decode_attention_pj, decode_s, fitted, realistic


def passive_j_per_token(plan: CostPlan) -> float:
    """Passive energy of a token at batch 1 and 2048 context."""
    assert plan.passive is not None
    step = round(decode_s(plan, 1, 2048) * FS_PER_S)
    return plan.passive.energy_pj(0, step, step) / PJ_PER_J


def test_gating_of_idle_chips_saves_passive_energy_at_batch_1() -> None:
    # By hand, without the mapping: 57 mJ, and 21 with five of six chips at a quarter of their power.
    plan, gated = realistic().plan, fitted(aimc(power={"idle_gating": 0.25})).plan
    assert passive_j_per_token(plan) == pytest.approx(0.057, rel=0.1)
    assert passive_j_per_token(gated) == pytest.approx(0.021, rel=0.1)
    assert decode_s(gated, 1, 2048) == decode_s(plan, 1, 2048)
    assert plan.passive is not None
    assert gated.passive is not None
    assert gated.passive.idle_uw == pytest.approx(plan.passive.idle_uw * 0.25)


def test_twice_the_chips() -> None:
    six, twelve = realistic(), fitted(aimc(), chips=12)
    assert twelve.kv_capacity_tokens == six.kv_capacity_tokens * 2  # 3 layers a chip in place of 6
    assert twelve.facts["passive_w"] == pytest.approx(2 * six.facts["passive_w"])
    assert twelve.facts["tiers_used"] == six.facts["tiers_used"]
    assert decode_attention_pj(twelve.plan) == decode_attention_pj(six.plan)
    assert decode_s(twelve.plan, 1, 2048) == pytest.approx(decode_s(six.plan, 1, 2048), rel=0.01)
    # Memories work side by side; the chain of one token is on top.
    assert decode_s(twelve.plan, 128, 2048) == pytest.approx(decode_s(six.plan, 128, 2048) / 2, rel=0.1)


def test_a_model_without_experts_has_none_to_spread() -> None:
    with pytest.raises(InputError, match=r"cluster\.device\.spread: llama-3\.1-8b has no routed experts"):
        aimc(spread="experts").fit(Demand(load_model("llama-3.1-8b"), Parallelism(1, 4, 4)))


@pytest.mark.medium
def test_experts_spread_over_chips_leave_none_to_rest() -> None:
    power = {"power": {"idle_gating": 0.25}}
    demand = Demand(load_model("mixtral-8x7b"), Parallelism(1, 8, 8))
    layers, experts = (aimc(spread=spread, **power).fit(demand).plan.passive for spread in ("layers", "experts"))
    assert layers is not None
    assert experts is not None
    assert layers.chain_uw == round(layers.step_uw * 0.75 * 7 / 8)
    assert experts.chain_uw == 0
    assert layers.idle_uw == experts.idle_uw == round(layers.step_uw * 0.25)


@pytest.mark.medium
def test_the_busiest_chip_is_told_from_the_mean() -> None:
    # 9 layers on 16 chips: tokens are on one chip after the other, so that each unit rests nearly all of the time.
    changes = ["model={preset: deepseek-v3, layers: 9}", "cluster.devices_per_node=16", "output.steps=false"]
    changes += ["cluster.device={preset: aimc-realistic, spread: experts}"]
    changes += ["workload.num_requests=60", "workload.arrival.rate_per_s=100"]
    summary, _ = serve(prepare(load_scenario(None, changes)))
    mean, most = summary["unit_busy_share"], summary["unit_busy_share_of_busiest_device"]
    assert summary["busy_share"] > 0.9
    assert mean.keys() == most.keys()
    assert all(most[unit] >= mean[unit] for unit in mean)
    assert all(share <= 1 for share in most.values())
    # Attention of a layer lies on one chip, alike in all layers: the chip with most of them has so much more than all.
    device = aimc(spread="experts")
    network = network_of(load_model("deepseek-v3").model_copy(update={"layers": 9}))
    mapping = map_network(network, device.spec.chips(16), device.spec.mapping, spread="experts")
    layers = Counter(mapping.tiles[block.after[0][0]][0] // device.spec.tiles for block in network.blocks)
    assert most["attention"] / mean["attention"] == pytest.approx(16 * max(layers.values()) / 9, rel=1e-6)
    assert most["dram"] / mean["dram"] == pytest.approx(16 * max(layers.values()) / 9, rel=1e-4)
    # One chip does not differ from the mean.
    changes = ["model=gpt2-medium", "cluster.devices_per_node=1", "workload.num_requests=20", "output.steps=false"]
    alone, _ = serve(prepare(load_scenario(None, [*changes, "cluster.device=aimc-realistic"])))
    assert alone["unit_busy_share_of_busiest_device"] == pytest.approx(alone["unit_busy_share"], rel=1e-6)


@pytest.mark.parametrize("spread", ["layers", "experts"])
def test_loads_of_chips_are_the_work_that_a_token_leaves_there(spread: str) -> None:
    device, model, chips = aimc(spread=spread), load_model("mixtral-8x7b"), 8
    network, chip = network_of(model), device.spec.chips(chips)
    mapping = map_network(network, chip, device.spec.mapping, spread=device.spec.spread)
    walk = Walker(PlacedNetwork(network, chip, mapping), ((1.0,) * 8,)).walk()
    tiles = sum(part.tiles for part in walk.segments).reshape(chips, -1).mean(axis=1)
    digital = sum(part.digital for part in walk.segments) / chip.digital_units
    layers = Counter(each.chip for each in walk.attention)
    pipeline = device.fit(Demand(model, Parallelism(1, chips, chips))).plan.pipeline
    assert pipeline is not None

    def most(unit: str) -> list[Load]:
        return [load for load in pipeline.device_loads if load.unit == unit]

    assert max(load.per_token for load in most("tiles")) == pytest.approx(tiles.max() * 1e3, rel=1e-9)
    assert max(load.per_token for load in most("digital")) == pytest.approx(digital.max() * 1e3, rel=1e-9)
    assert max(load.prefill[0] / load.prefill[1] for load in most("attention")) == max(layers.values()) / model.layers
    (attention,) = [load for load in pipeline.loads if load.unit == "attention"]
    assert attention.prefill == (1, chips)
    per_layer = attention.per_context[0] * chips / model.layers
    assert max(load.per_context[0] for load in most("attention")) == pytest.approx(
        max(layers.values()) * per_layer, rel=1e-4
    )


def test_other_ways_to_share_a_model_are_refused() -> None:
    with pytest.raises(InputError, match=r"cluster\.experts: .*leave it out"):
        aimc().fit(Demand(load_model("mixtral-8x7b"), Parallelism(1, 6, 6, "tp")))
    with pytest.raises(InputError, match=r"cluster\.nodes: .*devices_per_node"):
        aimc().fit(Demand(load_model("mixtral-8x7b"), Parallelism(2, 3, 3)))


def test_experts_spread_over_chips() -> None:
    layers, experts = (fitted(aimc(spread=spread), chips=8) for spread in ("layers", "experts"))
    assert layers.parallelism is not None
    assert experts.parallelism is not None
    assert (layers.parallelism["spread"], experts.parallelism["spread"]) == ("layers", "experts")
    assert layers.facts["tiers_used"] == experts.facts["tiers_used"]
    assert layers.plan.digest() != experts.plan.digest()
    transfers = [
        sum(row.energy.compute_per_row for row in found.plan.rows if row.category == "communication")
        for found in (layers, experts)
    ]
    assert transfers[1] > transfers[0]  # most experts are on other chips than their layer


@pytest.mark.parametrize("spread", ["layers", "experts"])
def test_bytes_between_chips_are_those_that_the_links_energy_is_of(spread: str) -> None:
    """One picojoule per bit, so that the energy that a link adds counts its bytes."""
    free = fitted(aimc(spread=spread, link_pj_per_bit=0.0), chips=8)
    paid = fitted(aimc(spread=spread, link_pj_per_bit=1.0), chips=8)
    assert [each.operator for each in free.traffic] == ["chip to chip"] * 2
    for traffic in free.traffic:
        both = [
            sum(term.energy.compute_per_row for term in each.plan.rows if term.rows == traffic.rows)
            for each in (free, paid)
        ]
        assert traffic.bytes_per_row == pytest.approx((both[1] - both[0]) / 8, abs=1)
    assert free.traffic[0].bytes_per_row > 0
    assert free.traffic == paid.traffic


def test_one_chip_has_no_traffic() -> None:
    assert fitted(aimc(), "llama-3.1-8b", 1).traffic == ()
