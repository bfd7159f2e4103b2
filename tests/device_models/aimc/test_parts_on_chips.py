"""Parts of a model on 3D AIMC chips: which chips hold them, and that parts make up the whole."""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pytest

from pimserve.device_models.aimc.network import network_of
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.device import Demand, Fitted
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import ALL_PARTS, Parallelism, Part
from pimserve.device_models.plan import HOST, CostPlan
from pimserve.device_models.routing import ExpertPools, Routing
from pimserve.errors import DoesNotFitError, InputError
from tests.device_models.aimc.fitted_plans import aimc, fitted

ROUTED: frozenset[Part] = frozenset({"routed_experts"})
REST = ALL_PARTS - ROUTED
IN_ORDER = {"strategy": "greedy_in_order"}
STRATEGIES = ("greedy_in_order", "greedy_util", "moe_separated", "greedy_random", "greedy_top2")
LATENT = {
    "kind": "mla",
    "heads": 8,
    "q_lora_rank": 384,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
}


def small() -> ModelSpec:
    """One dense layer, and two of four experts with one that is shared."""
    moe = {"experts": 4, "top_k": 2, "intermediate": 512, "shared_intermediate": 1024, "first_layer": 1}
    shape = {"layers": 3, "hidden": 768, "vocab": 3000, "max_model_len_tokens": 512, "attention": LATENT}
    return ModelSpec.model_validate({"name": "s", "title": "s", "ffn": {"intermediate": 2048}, "moe": moe, **shape})


def fit(model: ModelSpec, parts: frozenset[Part], chips: int = 1, **changes: Any) -> Fitted:
    return aimc(**changes).fit(Demand(model, Parallelism(1, chips, chips), parts=parts))


def energies_pj(plan: CostPlan, tokens: int) -> int:
    """Of a step of `tokens` requests that attend to nothing, all experts alike."""
    shape = shape_of(plan, tokens, 0)
    total = sum(coefficient * times for _, coefficient, times in evaluate(plan, shape).energy)
    if plan.experts is not None:
        picked = np.full((plan.experts.layers, plan.experts.experts), tokens * plan.experts.top_k)
        total += int(plan.experts.layer_features(picked // plan.experts.experts)[:, 5:].sum())
    return total


@pytest.mark.parametrize("model", [small(), load_model("mixtral-8x7b"), load_model("gpt2-large")], ids=lambda m: m.name)
def test_every_matrix_belongs_to_one_part(model: ModelSpec) -> None:
    whole = network_of(model)
    by_part = {part: network_of(model, parts={part}) for part in get_args(Part)}
    names = sorted(matrix.name for network in by_part.values() for matrix in network.matrices)
    assert names == sorted(matrix.name for matrix in whole.matrices)
    assert sum(network.parameters for network in by_part.values()) == whole.parameters
    experts = by_part["routed_experts"].matrices
    assert all(matrix.role == "expert" for matrix in experts)
    assert sum(m.rows * m.cols for m in experts) == model.routed_parameters
    assert {matrix.name for matrix in by_part["lm_head"].matrices} == {"lm_head"}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("model", "parts", "changes", "chips"),
    [
        # 32 layers x 8 experts x 3 matrices of 8 x 28 tiers, 512 x 64 on a chip: 5.25 chips.
        ("mixtral-8x7b", ROUTED, {}, 6),
        ("mixtral-8x7b", ROUTED, {"mapping": IN_ORDER}, 6),
        ("mixtral-8x7b", ROUTED, {"spread": "experts"}, 8),  # one expert of every layer on each, or two on some
        ("mixtral-8x7b", ROUTED | {"lm_head"}, {}, 6),
        ("mixtral-8x7b", REST, {}, 1),
        ("mixtral-8x7b", ROUTED, {"tiers": 8, "mapping": IN_ORDER}, 43),
        ("gpt-oss-120b", ROUTED, {"mapping": IN_ORDER}, 16),  # 36 x 128 x 3 x 6 x 6 tiers: 15.2
        ("deepseek-v3", REST, {}, 3),
    ],
)
def test_the_fewest_chips_that_hold_a_part(
    model: str, parts: frozenset[Part], changes: Mapping[str, Any], chips: int
) -> None:
    device = aimc(**changes)
    if chips > 1:
        with pytest.raises(DoesNotFitError, match=r"does not fit: it needs .* tiers .*use \d+ such chips") as refused:
            fitted(device, model, 1, parts=parts)
        assert (refused.value.where, refused.value.least) == ("cluster.devices_per_node", chips)
    found = fitted(device, model, chips, parts=parts)
    assert (found.kv_capacity_tokens > 0) == ("attention" in parts)
    assert (found.plan.experts is not None) == ("routed_experts" in parts and "attention" not in parts)
    assert (found.plan.pipeline is not None) == ("attention" in parts)
    assert found.plan.devices == chips
    assert found.plan.passive is not None
    assert found.plan.passive.step_uw == pytest.approx(chips * device.spec.passive_w * 1e6, abs=1)
    assert found.plan.passive.chain_uw == 0


def test_one_chip_too_few_is_refused() -> None:
    with pytest.raises(DoesNotFitError, match="172,032 tiers of 512 x 512, and 5 x 512 tiles of 64 tiers have 163,840"):
        fitted(aimc(), "mixtral-8x7b", 5, parts=ROUTED)


@pytest.mark.medium
def test_more_experts_than_tiers_are_spread_over_chips() -> None:
    with pytest.raises(DoesNotFitError, match="no number of such chips will do") as refused:
        fitted(aimc(spread="layers"), "gpt-oss-120b", 32, parts=ROUTED)
    assert refused.value.least is None
    found = fitted(aimc(), "gpt-oss-120b", 32, parts=ROUTED)
    assert found.parallelism == {"spread": "experts"}
    assert found.plan.experts is not None
    assert found.plan.experts.groups == 32


@pytest.mark.parametrize("parts", [ROUTED, frozenset({"shared_experts"}), ROUTED | {"shared_experts"}])
def test_parts_that_a_model_does_not_have_are_refused(parts: frozenset[Part]) -> None:
    with pytest.raises(InputError, match=r"^model: llama-3.1-8b has no .* to put on aimc-realistic") as refused:
        fitted(aimc(), "llama-3.1-8b", 1, parts=parts)
    assert refused.value.where == "model"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_maps_experts_alone_and_all_but_them(strategy: str) -> None:
    experts, rest = (
        fitted(aimc(mapping={"strategy": strategy}), "mixtral-8x7b", chips, parts=parts)
        for chips, parts in ((6, ROUTED), (1, REST))
    )
    assert experts.facts["tiers_used"] + rest.facts["tiers_used"] == 178_416
    assert experts.facts["weights"] == 32 * 8 * 3 * 4096 * 14336
    again = fitted(aimc(mapping={"strategy": strategy}), "mixtral-8x7b", 6, parts=ROUTED)
    assert experts.plan.digest() == again.plan.digest()
    assert experts.plan.experts is not None
    times = ExpertPools(experts.plan.experts, Routing(), 0).times_fs(32)
    # A copy needs an MVM up and one down at least; and the fullest tile has to do a quarter of 64 copies' products.
    assert min(times) >= 32 * (2 + 672 * 64 / 512 / 2) * 150e6


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("partial_sums", ["tile", "pool"])
def test_energies_of_parts_add_up_to_the_whole(strategy: str, partial_sums: str) -> None:
    """On one chip nothing crosses a link, wherever a matrix lies."""
    changes: dict[str, Any] = {"mapping": {"strategy": strategy}, "partial_sums": partial_sums}
    model = small()
    whole = energies_pj(fit(model, ALL_PARTS, **changes).plan, 4)
    for apart in (ROUTED, ROUTED | {"shared_experts"}, ROUTED | {"shared_experts", "dense_ffn", "lm_head"}):
        both = [energies_pj(fit(model, parts, **changes).plan, 4) for parts in (apart, ALL_PARTS - apart)]
        assert sum(both) == pytest.approx(whole, abs=100)


def test_chains_of_parts_add_up_to_the_whole() -> None:
    """One token, experts on the same tiles: the chain of attention, and of each layer that of two of its experts."""
    model = load_model("mixtral-8x7b")
    whole, rest, routed = (fit(model, parts, chips).plan for chips, parts in ((6, ALL_PARTS), (1, REST), (6, ROUTED)))
    alone, attention = (evaluate(plan, shape_of(plan, 1, 1024)).duration_fs for plan in (whole, rest))
    assert routed.experts is not None
    experts = int(routed.experts.layer_features(np.array([[1, 1, 0, 0, 0, 0, 0, 0]]))[0, 0]) * routed.experts.layers
    # In the whole, vectors cross from chip to chip on their way; between groups that is the dispatch's.
    assert attention + experts == pytest.approx(alone, rel=0.03)


@pytest.mark.parametrize("requests", [1, 8, 64, 256])
@pytest.mark.parametrize(("model", "chips", "spread"), [("mixtral-8x7b", 6, "layers"), ("mixtral-8x7b", 8, "experts")])
def test_layer_by_layer_is_not_faster_than_tokens_one_behind_the_other(
    model: str, chips: int, spread: str, requests: int
) -> None:
    """Where experts are on other chips, a layer begins when the one before it has ended, for all tokens."""
    on = ((chips, ALL_PARTS), (1, REST), (chips, ROUTED))
    whole, rest, routed = (fit(load_model(model), parts, number, spread=spread).plan for number, parts in on)
    shape = (requests, requests * 64)
    pipeline, attention = (evaluate(plan, shape_of(plan, *shape)).duration_fs for plan in (whole, rest))
    assert routed.experts is not None
    experts = np.mean(ExpertPools(routed.experts, Routing(), 0).times_fs(requests))
    # What crosses between chips in the whole is dispatch and combine here, on top.
    assert attention + experts > 0.95 * pipeline


def test_other_parts_beside_the_experts_are_rows_where_they_run() -> None:
    plan = fit(small(), ALL_PARTS - {"attention"}).plan
    assert [(row.name, row.rows, row.runs, row.category) for row in plan.rows] == [
        ("ffn", "tokens", "dense_layers", "fc"),
        ("shared experts", "tokens", "moe_layers", "moe"),
        ("lm head", "outputs", "last", "fc"),
    ]
    assert plan.experts is not None
    assert (plan.experts.layers, plan.experts.experts, plan.experts.top_k) == (2, 4, 2)
    for row in plan.rows:
        ((const, slope),) = row.pieces
        assert slope >= 150e6  # an MVM for each token
        # Most of the chain of shared experts hides behind that of routed ones.
        assert (const > slope) == (row.name != "shared experts")
        assert [row.time_fs(rows) for rows in (0, 1, 5)] == [0, const + slope, const + 5 * slope]
    unsampled = aimc().fit(Demand(small(), Parallelism(), lm_head=False, parts=frozenset({"lm_head"}))).plan.rows[0]
    assert unsampled.pieces[0][0] + unsampled.pieces[0][1] < 150e6  # sampling alone


def test_plans_without_attention_have_no_decode_to_do() -> None:
    plan = fit(small(), ROUTED).plan
    shape = shape_of(plan, 8, 4000)
    assert evaluate(plan, shape).duration_fs == 0
    assert plan.timing.decode_span(8, 4000, 100) == (0, 0, 100)
    assert plan.weight_stationary
    assert plan.units == ("busiest_tile", "digital")
    assert plan.most_step_pj(8, 4000) == energies_pj(plan, 8)


@pytest.mark.parametrize(("chips", "groups"), [(1, 1), (2, 2), (3, 1), (4, 4)])
def test_chips_are_groups_where_they_share_experts_evenly(chips: int, groups: int) -> None:
    found = fit(small(), ROUTED, chips, spread="experts")
    experts = found.plan.experts
    assert experts is not None
    assert experts.groups == groups
    busy = experts.layer_features(np.array([[3, 3, 3, 3]]))[0, 2]
    one = fit(small(), ROUTED).plan.experts
    assert one is not None
    # The same products on more chips.
    assert busy == pytest.approx(one.layer_features(np.array([[3, 3, 3, 3]]))[0, 2] / chips, abs=2)
    assert sum(sent.bytes_per_row for sent in found.traffic) == 0


def test_the_chip_with_most_layers_is_told_from_the_mean() -> None:
    # 32 layers on six chips: the fullest has six of them.
    routed = fitted(aimc(), parts=ROUTED).plan.experts
    assert routed is not None
    time, tiles, digital, tiles_most, digital_most, *_ = routed.layer_features(np.full((1, 8), 4))[0].tolist()
    queued = 2 * 150_000_000  # of each of 32 copies, on the tiles of the layer that are used twice
    assert time == routed.least_fs(1) // 32 + 31 * queued
    assert tiles == 32 * queued // 6
    assert tiles_most == pytest.approx(32 * queued * 6 / 32, abs=2)
    assert digital_most == pytest.approx(digital * 6 * 6 / 32, abs=2)


@pytest.mark.parametrize("strategy", ["moe_separated", "greedy_in_order"])
def test_layers_count_as_the_one_in_the_middle(strategy: str) -> None:
    """Where experts share tiles, one is like all of them; else tiles are filled up further from layer to layer."""
    model, mapping = load_model("mixtral-8x7b"), {"strategy": strategy}
    one, all_ = (
        fit(model.model_copy(update={"layers": layers}), ROUTED, mapping=mapping).plan.experts for layers in (1, 4)
    )
    assert one is not None
    assert all_ is not None
    tokens = np.random.default_rng(0).multinomial(64, [1 / 8] * 8, size=20)
    assert all_.layer_features(tokens)[:, 0] == pytest.approx(one.layer_features(tokens)[:, 0], rel=0.1)
    assert all_.least_fs(1) == pytest.approx(4 * one.least_fs(1), rel=0.01)


@pytest.mark.parametrize(("spread", "chips"), [("layers", 6), ("experts", 8)])
def test_bytes_between_chips_are_those_that_the_links_energy_is_of(spread: str, chips: int) -> None:
    free, paid = (fitted(aimc(link_pj_per_bit=pj, spread=spread), chips=chips, parts=ROUTED) for pj in (0.0, 1.0))
    copies = []
    for found in (free, paid):
        assert found.plan.experts is not None
        copies.append(found.plan.experts.most_pj(1))
    assert free.traffic[0].bytes_per_row == pytest.approx((copies[1] - copies[0]) / 8, abs=32)
    assert (free.traffic[0].bytes_per_row > 0) == (spread == "layers")  # there, some experts lie on two chips
    assert free.point_to_point is not None
    sent = free.point_to_point()
    assert sum(sent.picks.values()) == pytest.approx(sent.picks_per_token) == 2 * 32
    assert sum(sent.dispatch.values()) + sum(sent.combine.values()) == pytest.approx(free.traffic[0].bytes_per_row)
    assert not sent.tokens
    assert not sent.outputs


def test_attention_without_experts_is_the_pipeline_without_their_tiles() -> None:
    whole, rest = (fit(small(), parts).plan.pipeline for parts in (ALL_PARTS, REST))
    assert whole is not None
    assert rest is not None
    assert rest.fixed_fs < whole.fixed_fs
    assert rest.chain_per_context == whole.chain_per_context
    loads = [next(load for load in each.loads if load.unit == "tiles") for each in (whole, rest)]
    tiles = [load.per_token + load.per_output for load in loads]
    # Two of four experts of 3 x 2 x 1 tiers in two layers, and each makes one product.
    assert tiles[0] - tiles[1] == pytest.approx(2 * 2 * 6 * 150e6 / 512, rel=1e-6)
    found = fit(small(), frozenset({"attention"}), spread="experts")
    assert found.parallelism == {"spread": "layers"}  # there are none to spread
    assert found.kv_capacity_tokens == fit(small(), ALL_PARTS).kv_capacity_tokens


@pytest.mark.parametrize("requests", [1, 2, 16, 64])
def test_without_experts_a_layer_begins_when_the_one_before_has_ended(requests: int) -> None:
    """Each layer of Mixtral is alike: 32 times what is left of one. More chips with other layers then do not help."""
    model = load_model("mixtral-8x7b")
    context = 2048

    def step_fs(chips: int, parts: frozenset[Part]) -> int:
        plan = fit(model, parts, chips).plan
        return evaluate(plan, shape_of(plan, requests, requests * context)).duration_fs

    few, many = step_fs(1, REST), step_fs(8, REST)
    assert many == pytest.approx(few, rel=0.02)
    spec = aimc().spec
    read_fs = 32 * context * 2 * 8 * 128 / (spec.dram.gb_per_s * spec.dram.efficiency) * 1e6
    assert few >= requests * read_fs
    assert few == pytest.approx(requests * read_fs, rel=0.3 if requests > 2 else 1)
    if requests > 2:  # the whole model keeps all memories busy
        assert step_fs(8, ALL_PARTS) < few / 2


def test_prompts_queue_in_the_layer_where_all_of_them_are() -> None:
    plan = fit(load_model("mixtral-8x7b"), REST).plan
    one, two, both = (
        evaluate(plan, shape_of(plan, 0, 0, chunks, len(chunks))).duration_fs
        for chunks in ([(64, 0)], [(64, 0)] * 2, [(128, 0)])
    )
    assert one < two < both  # attention of one prompt to the other is left out
    assert plan.pipeline is not None
    longest = max(station.per_token for station in plan.pipeline.stations)
    assert two - one >= 64 * longest


def test_the_host_of_the_engine_is_with_attention() -> None:
    experts, rest = (
        fitted(aimc(), "mixtral-8x7b", chips, parts=parts, backend="vllm") for chips, parts in ((6, ROUTED), (1, REST))
    )
    assert not [row for row in experts.plan.rows if row.unit == HOST]
    assert experts.costs == {"setting": "ideal"}
    assert [row.runs for row in rest.plan.rows if row.unit == HOST] == ["first", "first"]
    assert rest.costs["measured"] == "host"
    assert any("keeps its projected rates" in warning for warning in experts.warnings)
    assert not any("KV cache" in warning for warning in experts.warnings)
