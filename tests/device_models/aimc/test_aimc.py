"""3D AIMC chips as a device: physical bounds over models and presets, and figures that can be had by hand."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pimserve.arrays import FloatArray
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.aimc.aimc import Aimc
from pimserve.device_models.aimc.mapped_model import map_model
from pimserve.device_models.aimc.network import network_of
from pimserve.device_models.catalogue import device_names, load_model
from pimserve.device_models.device import Demand, Fitted, Precision
from pimserve.device_models.kv_groups import KvGroups
from pimserve.device_models.operators import ALL_PARTS, Parallelism
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError
from tests.cluster.documents import serve
from tests.device_models.aimc.fitted_plans import aimc, decode_attention_pj, decode_s, fitted, realistic

PRESETS = [name for name in device_names() if isinstance(load_device(name), Aimc)]
STRATEGIES = ("greedy_in_order", "greedy_util", "moe_separated", "greedy_random", "greedy_top2")
IN_ORDER = {"strategy": "greedy_in_order"}
# Chips that hold a model on every preset, and its mapping: 128 experts do not fit one tile of 64 tiers.
MODELS: dict[str, tuple[int, Mapping[str, Any]]] = {
    "mixtral-8x7b": (6, {}),
    "llama-3.1-8b": (1, {}),
    "llama-3-70b": (9, {}),
    "opt-66b": (8, {}),
    "gpt2-large": (1, {}),
    "megatron-1.2b": (1, {}),
    "gpt-oss-120b": (16, IN_ORDER),
    "switch-like-2b": (1, IN_ORDER),
    "switch-like-7b": (2, IN_ORDER),
}
# All models on one preset and two models on all presets; the other pairs of them are slow.
PAIRS = [
    pytest.param(
        model,
        preset,
        marks=[] if preset == "aimc-realistic" or model in {"mixtral-8x7b", "megatron-1.2b"} else [pytest.mark.deep],
    )
    for model in MODELS
    for preset in PRESETS
]
ROUNDING = 1 - 1e-6


def mvms_of_tiles(device: Aimc, model: str, chips: int) -> FloatArray:
    """MVMs of one decoded token on each tile, experts alike, embeddings left out: a lower bound counted by chunks."""
    placed = map_model(device.spec, device.spec.chips(chips), load_model(model), ALL_PARTS)
    network, chip = placed.network, placed.chip
    top_k = {layer: (block.top_k, len(block.experts)) for layer, block in enumerate(network.blocks) if block.experts}
    found = np.zeros(chip.all_tiles)
    for matrix, tiles in zip(network.matrices, placed.tiles, strict=True):
        if matrix.role in {"token_embedding", "position_embedding"}:
            continue
        picked = top_k[matrix.layer][0] / top_k[matrix.layer][1] if matrix.role == "expert" else 1.0
        np.add.at(found, tiles, picked * matrix.reads(chip.tier_cols))
    return found


@pytest.mark.medium
@pytest.mark.parametrize(("model_name", "preset"), PAIRS)
def test_no_decode_step_is_faster_than_physics_allows(model_name: str, preset: str) -> None:
    chips, mapping = MODELS[model_name]
    device = aimc(preset, mapping=mapping)
    model, spec = load_model(model_name), device.spec
    plan = fitted(device, model_name, chips).plan
    network = network_of(model, spec.kv_bits)
    mvm_s = spec.chips(1).mvm.ps * 1e-12
    busiest = mvms_of_tiles(device, model_name, chips).max()
    # Some chip has a chips-th of the layers that see everything; windowed ones are left out.
    layers = -(-sum(block.attention.window_tokens is None for block in network.blocks) // chips)
    kv_bytes = layers * max(block.attention.kv_bytes for block in network.blocks)
    # Embedding, all stages of a layer with the router, up and down projection, and the head.
    series = 2 + sum(len(b.before) + len(b.after) + (2 if b.dense else 3) for b in network.blocks)
    for requests, context in ((1, 1), (1, 2048), (4, 700), (32, 2048), (256, 64)):
        step = decode_s(plan, requests, context)
        assert step >= series * mvm_s * ROUNDING
        assert step >= requests * busiest * mvm_s * ROUNDING
        if spec.costs.model != "placeholder":  # there attention takes 2 ns whatever it reads
            assert step >= requests * context * kv_bytes / (spec.dram.gb_per_s * 1e9) * ROUNDING


def test_mvms_of_a_mixtral_token_by_hand() -> None:
    # Blocks of 512 x 512: queries and output 8 x 8, keys and values 8 x 2, two of eight experts of 3 times 8 x 28, a
    # router of 8 x 1, in 32 layers; the head is 8 x 63.
    token = 32 * (2 * 64 + 2 * 16 + 2 * 3 * 8 * 28 + 8) + 8 * 63
    assert mvms_of_tiles(aimc(), "mixtral-8x7b", 6).sum() == pytest.approx(token)


@pytest.mark.parametrize("preset", ["aimc-realistic", "aimc-nand", "aimc-paper-table"])
def test_energy_is_not_below_passive_power_and_mvms(preset: str) -> None:
    spec = aimc(preset).spec
    overrides = [f"cluster.device={preset}", "cluster.devices_per_node=6", "workload.num_requests=15"]
    summary = serve(prepare(load_scenario(None, overrides)))[0]
    assert summary["requests"]["finished"] == 15
    energy = summary["energy"]
    passive = 6 * spec.passive_w * summary["end_s"]
    assert energy["passive_joules"] == pytest.approx(passive, rel=1e-6)
    layers_mvms, head_mvms = 48_384, 504
    prompt, output = summary["tokens"]["prompt"], summary["tokens"]["output"]
    passes = prompt + output - 15  # the first output of a request comes with its prompt
    least = (passes * layers_mvms + output * head_mvms) * spec.chips(1).mvm.nj * 1e-9
    assert energy["active_joules"] >= least
    by_category = sum(sum(parts.values()) for parts in energy["joules_by_category"].values())
    assert energy["active_joules"] == pytest.approx(by_category)


def test_a_run_says_what_it_hangs_on() -> None:
    overrides = ["cluster.device=aimc-realistic", "cluster.devices_per_node=6", "workload.num_requests=15"]
    summary, _ = serve(prepare(load_scenario(None, overrides)))
    assert summary["device_facts"]["preset"] == "aimc-realistic"
    assert summary["device_facts"]["noise"]["affects"] == "neither time nor energy"
    assert summary["silicon_mm2"] == pytest.approx(4305, abs=1)
    assert summary["parallelism"] == {"spread": "layers"}
    said = " ".join(summary["warnings"])
    assert "64 tiers per tile are assumed; stacks of up to 8 were built" in said
    assert "passive power is assumed: 7 mW per tile" in said
    assert summary["energy"]["passive_power"] == "counted"
    few = "cluster.device={preset: aimc-realistic, tiers: 8, tiles: 4096, mapping: {strategy: greedy_in_order}}"
    assert "tiers per tile" not in " ".join(serve(prepare(load_scenario(None, [*overrides, few])))[0]["warnings"])


def test_what_it_holds_is_not_what_the_model_says() -> None:
    assert realistic().precision == Precision("5-bit", "5-bit", "8-bit")
    dense = fitted(aimc(kv_bits=4, noise=None), model="gpt2-medium", chips=1)
    assert dense.precision == Precision("analog", None, "4-bit")


def test_noise_affects_neither_time_nor_energy() -> None:
    noisy = {"weight_noise": 0.5, "drift_exponent": 0.1, "drift_s": 1e6, "weight_bits": 2, "input_output_bits": 4}
    assert fitted(aimc(noise=noisy)).plan.digest() == realistic().plan.digest()


def test_kv_capacity_of_mixtral_by_hand() -> None:
    # Six chips for 32 layers: one has 6. A layer keeps 2 x 8 heads x 128 elements of 8 bit.
    assert realistic().kv_capacity_tokens == int(512e9 * 0.9 / (6 * 2 * 8 * 128))
    assert fitted(aimc(), memory_utilization=0.45).kv_capacity_tokens == int(512e9 * 0.45 / (6 * 2 * 8 * 128))


def test_precision_of_the_kv_cache_scales_capacity_time_and_energy() -> None:
    by_bits = {bits: fitted(aimc(kv_bits=bits)) for bits in (4, 8, 16)}
    for bits, found in by_bits.items():
        assert found.kv_capacity_tokens == pytest.approx(realistic().kv_capacity_tokens * 8 / bits, abs=1)
        energy = decode_attention_pj(found.plan)
        assert energy == pytest.approx(decode_attention_pj(realistic().plan) * bits / 8, rel=1e-6)

        def growth(plan: CostPlan) -> float:
            return decode_s(plan, 1, 6000) - decode_s(plan, 1, 5000)

        assert growth(found.plan) == pytest.approx(growth(realistic().plan) * bits / 8, rel=1e-3)


@pytest.mark.medium
def test_windowed_layers_take_blocks_as_requests_come() -> None:
    device = aimc(mapping=IN_ORDER)
    none, many = (fitted(device, "gpt-oss-120b", 16, max_num_seqs=seqs) for seqs in (0, 2**40))
    # 36 layers on 16 chips: the fullest has two of one group, each of 2 x 8 heads x 64 elements.
    layer, usable = 2 * 8 * 64, 512e9 * 0.9
    assert none.kv_capacity_tokens == many.kv_capacity_tokens == int(usable / (2 * layer))
    assert none.kv_groups == KvGroups(full=1, windowed=1, window_tokens=128)


def test_area_and_passive_power_by_hand() -> None:
    # 512 tiles of 1 mm2 and 64 tiers of 0.002, 32 units of 1.25, 8 of 5, and 60 for the rest.
    assert aimc().area_mm2 == pytest.approx(512 * 1.128 + 40 + 40 + 60)
    assert aimc().area_mm2 == pytest.approx(718, abs=0.5)
    assert 6 * aimc().area_mm2 == pytest.approx(4305, abs=0.5)
    # 512 tiles of 7 mW, 32 units of 0.1 W, 8 of 0.3 W, 10 W for the rest, and the memory's 4 or 5 W.
    assert aimc().spec.passive_w == pytest.approx(3.584 + 3.2 + 2.4 + 10 + 4)
    assert aimc().spec.passive_w == pytest.approx(23.2, abs=0.05)
    assert aimc("aimc-realistic-hbm3e").spec.passive_w == pytest.approx(24.2, abs=0.05)
    assert realistic().facts["passive_w"] == pytest.approx(6 * aimc().spec.passive_w)


def test_key_figures() -> None:
    figures = aimc("aimc-realistic-hbm3e").key_figures
    assert (figures["memory_gb"], figures["memory_gb_per_s"]) == (36, 1200)
    assert figures["weight_capacity"] == 512 * 64 * 512**2
    assert figures["passive_w"] == pytest.approx(24.2, abs=0.05)


def test_programming_mixtral_by_hand() -> None:
    programming = realistic().facts["programming"]
    # 512 x 512 weights of 2 devices x 20 pulses of 2 us, 64 at once, 64 tiers of a tile one after the other.
    assert programming["time_s"] == pytest.approx(512 * 512 * 2 * 20 * 2e-6 / 64 * 64)
    assert programming["time_s"] == pytest.approx(21, abs=0.1)
    assert programming["joules"] == pytest.approx(46.7e9 * 4e-9, rel=1e-3)
    assert programming["joules"] == pytest.approx(187, abs=0.5)
    assert programming["programmings_endured"] == 1e8 / 20
    assert fitted(aimc(programming=None)).facts["programming"] is None


def test_gating_lowers_the_energy_of_a_run() -> None:
    def joules(gating: float) -> float:
        overrides = ["cluster.device=aimc-realistic", "cluster.devices_per_node=6", "workload.num_requests=15"]
        summary = serve(prepare(load_scenario(None, [*overrides, f"cluster.device.power.idle_gating={gating}"])))[0]
        return float(summary["energy"]["passive_joules"])

    whole, gated, off = (joules(gating) for gating in (1, 0.25, 0))
    assert 0 < off < gated < whole
    assert gated == pytest.approx(off + 0.25 * (whole - off))


def test_twice_the_tiers_change_area_only() -> None:
    plan = fitted(aimc(tiers=128)).plan
    for requests, context in ((1, 1), (1, 2048), (128, 2048), (256, 16)):
        assert decode_s(plan, requests, context) == pytest.approx(
            decode_s(realistic().plan, requests, context), rel=0.01
        )
    assert plan.rows == realistic().plan.rows
    assert plan.passive == realistic().plan.passive
    assert aimc(tiers=128).area_mm2 == pytest.approx(aimc().area_mm2 + 512 * 64 * 0.002)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("model", "chips", "changes", "needed"),
    [
        ("mixtral-8x7b", 1, {}, 6),
        ("mixtral-8x7b", 5, {}, 6),
        ("mixtral-8x7b", 6, {"spread": "experts"}, 8),
        ("mixtral-8x7b", 2, {"tiers": 256, "tiles": 256}, 3),
        ("llama-3-70b", 4, {}, 9),
        ("switch-like-7b", 1, {"mapping": IN_ORDER}, 2),
    ],
)
def test_what_does_not_fit_says_how_many_chips_it_takes(
    model: str, chips: int, changes: Mapping[str, Any], needed: int
) -> None:
    with pytest.raises(InputError) as refused:
        fitted(aimc(**changes), model, chips)
    assert refused.value.where == "cluster.devices_per_node"
    assert re.search(rf"does not fit: .*use {needed} such chips", refused.value.message)
    assert fitted(aimc(**changes), model, needed).kv_capacity_tokens > 0


def test_more_experts_than_tiers_do_not_go_on_one_tile() -> None:
    with pytest.raises(InputError, match="no number of such chips will do, but more than 128 tiers per tile"):
        fitted(aimc(spread="layers"), "switch-like-2b", 4)
    # Where the spread is left open, each chip has a share of them.
    assert fitted(aimc(), "switch-like-2b", 4).plan == fitted(aimc(spread="experts"), "switch-like-2b", 4).plan


@pytest.mark.parametrize("tensor", [1, 2, 3])
def test_tensor_parallelism_is_refused(tensor: int) -> None:
    with pytest.raises(InputError, match=r"cluster\.tensor_parallel: .* whole layers or whole experts .*leave it out"):
        aimc().fit(Demand(load_model("mixtral-8x7b"), Parallelism(1, 6, tensor)))


def test_sizes_beyond_reason_are_refused() -> None:
    with pytest.raises(InputError, match=r"cluster\.device\.tiles: all chips of a replica may have 4,194,304"):
        aimc(tiles=2**16).fit(Demand(load_model("mixtral-8x7b"), Parallelism(1, 100, 100)))
    for changes, place in (
        ({"tiles": 2**17}, "tiles"),
        ({"costs": {"mvm_ns": 1e-9}}, "costs.mvm_ns"),
        ({"costs": {"mvm_nj": 1e13}}, "costs.mvm_nj"),
        ({"dram": {"gb": 1e300}}, "dram.gb"),
    ):
        with pytest.raises(InputError, match=rf"{re.escape(place)}\b.*than or equal to"):
            aimc(**changes)


def test_the_warning_of_passive_power_has_the_figures_of_the_run() -> None:
    fitted = aimc(power={"tile_mw": 30}).fit(Demand(load_model("mixtral-8x7b"), Parallelism(1, 6, 6)))
    assert any("30 mW per tile" in warning for warning in fitted.warnings)
    assert any("8 bits per element, where the model says bf16" in warning for warning in fitted.warnings)


def test_prompts_do_not_pay_for_what_decoding_does() -> None:
    # With a first access of 10 us, a prompt of many tokens must not keep the memory busy for each of them.
    changes = ["model=gpt2-medium", "cluster.devices_per_node=1", "workload.num_requests=20", "output.steps=false"]
    changes += ["cluster.device={preset: aimc-realistic, dram: {first_access_ns: 10000}}"]
    changes += ["workload.lengths.input={kind: fixed, tokens: 200}", "workload.lengths.output={kind: fixed, tokens: 1}"]
    changes += ["workload.arrival={process: poisson, rate_per_s: 1000}"]
    summary, _ = serve(prepare(load_scenario(None, changes)))
    assert all(share <= 1 for share in summary["unit_busy_share"].values())
    assert summary["unit_busy_share"]["dram"] < 0.1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_mapping_strategy_serves(strategy: str) -> None:
    found = fitted(aimc(mapping={"strategy": strategy}))
    assert found.facts["mapping"] == strategy
    assert found.facts["tiers_used"] == 178_416
    assert decode_s(found.plan, 1, 2048) == pytest.approx(decode_s(realistic().plan, 1, 2048), rel=0.1)


@pytest.mark.medium
def test_the_plan_is_the_same_every_time() -> None:
    for strategy in ("moe_separated", "greedy_random", "greedy_top2"):
        one = fitted(aimc(mapping={"strategy": strategy}))
        map_model.cache_clear()  # the other is mapped anew
        other = fitted(aimc(mapping={"strategy": strategy}))
        assert replace(one, point_to_point=None) == replace(other, point_to_point=None)
        assert one.plan.digest() == other.plan.digest()
    seeds = [fitted(aimc(mapping={"strategy": "greedy_random", "seed": seed})).plan.digest() for seed in (0, 1)]
    assert seeds[0] != seeds[1]


@pytest.mark.medium
def test_popular_experts_slow_a_step_unless_they_share_tiles_with_all_others() -> None:
    def step(popularity: tuple[float, ...], chips: int, **changes: Any) -> float:
        return decode_s(fitted(aimc(**changes), chips=chips, expert_weights=(popularity,)).plan, 256, 1)

    even, skewed = (1.0,) * 8, (64.0, *(1.0,) * 7)
    assert step(skewed, 6) == pytest.approx(step(even, 6))
    # One expert of each layer on each of eight chips: one of them gets nearly every token, not one in four.
    alone: dict[str, Any] = {"mapping": IN_ORDER, "spread": "experts"}
    assert step(skewed, 8, **alone) > 2 * step(even, 8, **alone)


def test_the_product_with_the_vocabulary_can_be_left_out() -> None:
    def output_pj(found: Fitted) -> int:
        return sum(row.energy.compute_per_row for row in found.plan.rows if row.rows == "outputs")

    without = fitted(aimc(), lm_head=False)
    assert output_pj(realistic()) - output_pj(without) >= 504 * 20_000  # MVMs of 20 nJ
    assert decode_s(without.plan, 1, 64) < decode_s(realistic().plan, 1, 64)


@pytest.mark.medium
def test_latent_attention_of_many_experts() -> None:
    """DeepSeek-V3: 256 routed experts of which 8 are chosen, one shared, absorbed latent attention; 9 of 61 layers."""
    model = load_model("deepseek-v3").model_copy(update={"layers": 9})
    found = aimc(mapping=IN_ORDER).fit(Demand(model, Parallelism(1, 9, 9)))
    # One latent vector of 512 and a key of 64 elements a layer and token; its four lowest layers are on one chip.
    assert found.kv_capacity_tokens == int(512e9 * 0.9 / (4 * 576))
    network = network_of(model, 8)
    series = 2 + sum(len(b.before) + len(b.after) + (2 if b.dense else 3) for b in network.blocks)
    assert decode_s(found.plan, 1, 1) >= series * 150e-9
    assert decode_s(found.plan, 64, 4096) >= 64 * 4096 * 576 / 614e9  # of a layer
