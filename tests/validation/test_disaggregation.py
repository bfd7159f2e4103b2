"""Published figures of attention-FFN disaggregation, one test each, and the formulas on other inputs."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pimserve.cluster.validation.disaggregation_limits import (
    ExpertNodeHit,
    FfnIntensity,
    GainOverSharedDevices,
    HfuBound,
    ImbalancePenalty,
    SharedImbalancePenalty,
    StageBudget,
    StageMargin,
)
from pimserve.cluster.validation.disaggregation_pipeline import (
    AttentionNodes,
    LeastMicroBatches,
    MicroBatchGain,
    StepTime,
    TransferTime,
)
from pimserve.cluster.validation.disaggregation_prices import (
    Accelerator,
    AttentionFlop,
    AttentionPrice,
    DecodedModel,
    FfnFlop,
    FfnPrice,
    KvBytes,
    LinearFlop,
    MinimumSparsity,
    TokenPrice,
)
from pimserve.cluster.validation.disaggregation_ratio import BestRatio, SearchedRatio
from pimserve.cluster.validation.disaggregation_speedup import FastAfdSpeedup, LargestAttentionGroup, OffloadSpeedup
from pimserve.cluster.validation.validate_disaggregation import judge_disaggregation, published_disaggregation
from pimserve.device_models.catalogue import load_model
from tests.device_models.naive_schedule import naive_schedule

CASES = {case.target.id: case for case in published_disaggregation()}


@pytest.mark.parametrize("name", CASES)
def test_published_figure(name: str) -> None:
    found = judge_disaggregation(CASES[name])
    assert found.passed, f"{found.case}: published {found.published}, ours {found.ours}; {found.note}"
    assert CASES[name].target.provenance


def test_tolerances_are_those_that_were_promised() -> None:
    most = {"fastafd_speedup": 0.03, "micro_batch_gain": 0.05, "searched_ratio": 0.1}
    for case in CASES.values():
        target = case.target
        if target.tolerance_kind == "rel":
            assert target.tolerance <= most.get(target.quantity, 0.02), target.id
        elif target.tolerance_kind == "abs":
            # Prices and sparsities are printed to three decimals.
            assert target.tolerance <= 0.0005, target.id
    gains = [case.target for name, case in CASES.items() if name.startswith("gain-3-2")]
    assert [(target.published, target.tolerance) for target in gains] == [(1.10, 0.01), (1.28, 0.01), (1.38, 0.01)]
    counts = Counter(case.target.quantity for case in CASES.values())
    assert counts["attention_usd_per_m_tokens"] == 24
    assert counts["ffn_usd_per_m_tokens"] == 12
    assert counts["usd_per_flop"] == counts["usd_per_byte"] == counts["minimum_sparsity"] == 4


def step(attention: int, experts: int, transfer: int, layers: int, micro_batches: int) -> StepTime:
    return StepTime(
        attention_us=attention, experts_us=experts, transfer_us=transfer, layers=layers, micro_batches=micro_batches
    )


def scheduled(formula: StepTime) -> int:
    """The same, event by event."""
    shape = formula.layers, formula.micro_batches
    times = formula.attention_us, formula.transfer_us, formula.experts_us, formula.transfer_us
    return naive_schedule(*(np.full(shape, int(time)) for time in times))


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(0, 40),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_step_time_is_that_of_the_schedule(attention: int, experts: int, transfer: int, layers: int, m: int) -> None:
    formula = step(attention, experts, transfer, layers, m)
    assert formula.value() == scheduled(formula)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 40), st.integers(2, 6), st.integers(1, 6))
def test_the_papers_form_holds_under_its_condition(
    attention: int, experts: int, transfer: int, layers: int, m: int
) -> None:
    slower = max(attention, experts)
    formula = step(attention, experts, transfer, layers, m)
    if transfer < slower and m * slower >= 2 * (slower + transfer):
        assert formula.paper_us() == scheduled(formula)
    else:
        # Balanced stations need the condition; unlike ones may do with less.
        assert formula.paper_us() <= scheduled(formula)
        if attention == experts and transfer < slower:
            assert formula.paper_us() < scheduled(formula)
    assert (formula.note() == "") == (formula.paper_us() == scheduled(formula))


@given(st.integers(1, 40), st.integers(0, 40))
def test_least_micro_batches_hide_transfers_and_one_less_does_not(station: int, transfer: int) -> None:
    assume(transfer < station)
    least = LeastMicroBatches(transfer_share=transfer / station).value()
    assert least == (2 if transfer == 0 else 3 if 2 * transfer <= station else 4)
    for m in (least - 1, least):
        busy = station * (2 + 3 * m - 1) + 2 * transfer  # of a station that never waits in 3 layers
        assert (scheduled(step(station, station, transfer, 3, m)) == busy) == (m == least)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.28, 0.38, 0.45, 0.5, 0.7, 0.95])
def test_the_gain_of_a_third_micro_batch_in_many_layers(share: float) -> None:
    gain = MicroBatchGain(transfer_share=share, layers=100_000, micro_batches=3, baseline_micro_batches=2).value()
    assert gain == pytest.approx(min(1 + share, 1.5), rel=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.28, 0.38])
@pytest.mark.parametrize("layers", [48, 56, 61, 94])
def test_a_second_micro_batch_nearly_doubles_throughput(share: float, layers: int) -> None:
    gain = MicroBatchGain(transfer_share=share, layers=layers, micro_batches=2, baseline_micro_batches=1).value()
    assert 1.98 <= gain <= 1.995


def test_more_micro_batches_than_hide_the_transfers_gain_nothing() -> None:
    gain = MicroBatchGain(transfer_share=0.3, layers=10**6, micro_batches=6, baseline_micro_batches=3).value()
    assert gain == pytest.approx(1, rel=1e-5)


def transfer_us(**changes: Any) -> float:
    inputs = {
        "attention_tokens": 100,
        "expert_tokens": 50,
        "hidden": 4096,
        "top_k": 2,
        "attention_devices": 8,
        "expert_devices": 1,
        "attention_gb_per_s": 25,
        "expert_gb_per_s": 50,
    }
    return TransferTime.model_validate({**inputs, **changes}).value()


def test_a_transfer_takes_as_long_as_its_slower_side() -> None:
    # Sent: 100 x 2 x 8192 B / 8 over 25 GB/s is 8.192 us; received: 50 x 8192 B over 50 GB/s as well.
    assert transfer_us() == pytest.approx(8.192)
    assert transfer_us(attention_gb_per_s=5) == pytest.approx(40.96)
    assert transfer_us(expert_utilisation=0.5) == pytest.approx(16.384)
    assert transfer_us(attention_gb_per_s=5, bytes_per_element=1) == pytest.approx(20.48)


def test_attention_nodes_follow_the_slopes() -> None:
    inputs = {"attention_us_per_token": 3, "expert_us_per_token": 4, "experts": 8, "top_k": 2}
    assert AttentionNodes.model_validate(inputs).value() == 3


POSITIVE = st.floats(0.01, 100)


@given(
    attention=st.floats(1e-4, 1),
    fixed=st.floats(0, 100),
    transfer=st.floats(0, 1000),
    ffn=st.floats(0.01, 10),
    ffn_fixed=POSITIVE,
    requests=st.integers(1, 512),
    context=st.floats(1, 1e4),
)
def test_the_best_ratio_is_what_a_search_finds(
    attention: float, fixed: float, transfer: float, ffn: float, ffn_fixed: float, requests: int, context: float
) -> None:
    inputs = {
        "attention_us_per_token": attention,
        "attention_us": fixed,
        "transfer_us": transfer,
        "ffn_us_per_request": ffn,
        "ffn_us": ffn_fixed,
        "requests": requests,
        "context_tokens": context,
    }
    formula = BestRatio.model_validate(inputs).value()
    assume(1e-3 < formula < 1e5)  # far from the ends of what is searched
    assert SearchedRatio.model_validate(inputs).value() == pytest.approx(formula, rel=0.01)


def test_the_best_ratio_is_near_that_of_a_simulation_with_random_lengths() -> None:
    """Attention waits for the instance with most context; outputs are geometric, so contexts are prompt + geometric."""
    rng = np.random.default_rng(7)
    requests, prompt, output = 256, 1000, 500
    inputs = {"attention_us_per_token": 0.002, "attention_us": 50, "ffn_us_per_request": 0.4, "ffn_us": 100}
    formula = BestRatio.model_validate(
        {**inputs, "requests": requests, "context_tokens": float(prompt + output)}
    ).value()
    contexts = prompt + rng.geometric(1 / output, size=(200, 40, requests)).sum(axis=2, dtype=float) / requests
    assert contexts.mean() == pytest.approx(prompt + output, rel=0.01)

    def throughput(instances: int) -> float:
        attention_us = 0.002 * requests * contexts[:, :instances].max(axis=1) + 50
        stage_us = np.maximum(attention_us, 0.4 * instances * requests + 100)
        return instances * requests / ((instances + 1) * stage_us.mean())

    best = max(range(1, 41), key=throughput)
    assert best == pytest.approx(formula, abs=max(0.5, 0.1 * formula))


DSV3 = DecodedModel(shapes=load_model("deepseek-v3"))
H800 = Accelerator(usd_per_hour=2, bf16_tflop_per_s=989, fp8_tflop_per_s=1980, gb_per_s=3350)


@pytest.mark.parametrize("name", ["deepseek-v3", "mixtral-8x7b", "qwen3-235b-a22b", "llama-3.1-70b", "qwen3-30b-a3b"])
def test_flops_are_those_of_the_model(name: str) -> None:
    """All that the model counts but the head and the router, and the product with the rotary part of the latent."""
    shapes = load_model(name)
    model, context = DecodedModel(shapes=shapes), 8192
    ours = AttentionFlop(model=model, context_tokens=context).value()
    if shapes.attention.kind == "mla":
        rotary = shapes.attention.qk_rope_head_dim
        ours -= 2 * shapes.layers * context * shapes.attention.heads * rotary
    router = shapes.moe_layers * shapes.hidden * shapes.moe.experts if shapes.moe else 0
    ours += LinearFlop(model=model).value() + FfnFlop(model=model).value()
    ours += 2 * (shapes.vocab * shapes.hidden + router)
    assert ours == pytest.approx(shapes.flops_per_token(context), rel=1e-3)
    cache = shapes.kv_bytes_per_token * context
    assert KvBytes(model=model, context_tokens=context, bytes_per_element=2).value() == pytest.approx(cache)


def test_a_window_limits_what_is_read() -> None:
    shapes = load_model("gpt-oss-120b")
    model = DecodedModel(shapes=shapes)
    short, long = (KvBytes(model=model, context_tokens=tokens).value() for tokens in (10_000, 20_000))
    full = shapes.layers - shapes.windowed_layers
    assert long - short == 10_000 * full * shapes.attention.kv_elements
    assert short < 10_000 * shapes.layers * shapes.attention.kv_elements


def test_a_low_rank_query_has_fewer_weights() -> None:
    shapes = load_model("llama-3.1-70b")
    whole = LinearFlop(model=DecodedModel(shapes=shapes)).value()
    factored = LinearFlop(model=DecodedModel(shapes=shapes, query_rank=1024)).value()
    # 8192 x 8192 against 1024 x (8192 + 8192), in 80 layers.
    assert whole - factored == 2 * 80 * (8192**2 - 1024 * 2 * 8192)


def test_attention_costs_the_dearer_of_bytes_and_flops() -> None:
    slow = H800.model_copy(update={"gb_per_s": 335.0})
    weak = H800.model_copy(update={"fp8_tflop_per_s": None})
    prices = [AttentionPrice(model=DSV3, context_tokens=8192, accelerator=one).value() for one in (H800, slow, weak)]
    linear = 1e6 * DSV3.linear_flop * H800.usd_per_flop
    assert prices[1] - linear == pytest.approx(10 * (prices[0] - linear))  # both bound by bytes
    flop = AttentionFlop(model=DSV3, context_tokens=8192).value() + DSV3.linear_flop
    assert prices[2] == pytest.approx(1e6 * flop * weak.usd_per_flop)  # bound by FLOPs
    assert weak.usd_per_flop == pytest.approx(H800.usd_per_flop * 1980 / 989)


def test_a_token_costs_both_parts() -> None:
    both = TokenPrice(model=DSV3, context_tokens=8192, attention_accelerator=H800, ffn_accelerator=H800).value()
    attention = AttentionPrice(model=DSV3, context_tokens=8192, accelerator=H800).value()
    assert both == attention + FfnPrice(model=DSV3, accelerator=H800).value()


def test_a_faster_network_allows_more_sparsity() -> None:
    inputs = {"accelerator": H800, "hidden": 7168, "layers": 61, "network_gbit_per_s": 3200}
    slow, fast, patient = (
        MinimumSparsity.model_validate({**inputs, **change}).value()
        for change in ({}, {"network_gbit_per_s": 6400}, {"tpot_ms": 100})
    )
    assert fast == pytest.approx(slow / 2)
    assert patient == pytest.approx(slow / 2)


FASTAFD = {"baseline_requests": 64, "requests": 96, "attention_nodes": 7, "ffn_nodes": 1}


def test_speed_up_without_anything_gained_is_a_loss() -> None:
    """Nothing but attention in the step, and half as many requests more that take half as long more."""
    loss = FastAfdSpeedup.model_validate({**FASTAFD, "attention_share": 1.0, "dense_share": 0.0}).value()
    assert loss == pytest.approx(7 / 8)


def test_projections_follow_the_share_that_is_moved() -> None:
    assert OffloadSpeedup(offloaded_share=0).value() == 1
    assert OffloadSpeedup(offloaded_share=0.75).value() == 4


@given(st.floats(1, 1000), st.floats(0, 500), st.floats(0.5, 100))
def test_the_largest_attention_group_does_not_wait_for_its_experts(attention: float, fixed: float, per: float) -> None:
    nodes = LargestAttentionGroup(attention_us=attention, ffn_us=fixed, ffn_us_per_node=per).value()
    assert nodes == int(nodes) >= 0
    assert nodes == 0 or fixed + per * nodes <= attention * (1 + 1e-6)
    assert fixed + per * (nodes + 1) > attention * (1 - 1e-6)


def test_the_budget_of_a_stage() -> None:
    # 50 ms x 1.7 accepted tokens less 15 ms, over 61 layers of 3 stages.
    assert StageBudget(tpot_ms=50, layers=61).value() == pytest.approx(70_000 / 183)
    assert StageBudget(tpot_ms=8, layers=61).value() == 0


@pytest.mark.parametrize(
    ("times", "margin"),
    [
        ((100, 100, 50, 200), 4 / 3),
        ((100, 100, 50, 80), 0.8),
        ((40, 100, 50, 200), 80 / 150),
        ((100, 40, 50, 200), 80 / 150),
        ((100, 100, 120, 200), 200 / 220),
    ],
)
def test_stages_hold_their_conditions_with_a_margin(times: tuple[int, ...], margin: float) -> None:
    keys = ("attention_us", "ffn_us", "transfer_us", "budget_us")
    assert StageMargin.model_validate(dict(zip(keys, times, strict=True))).value() == pytest.approx(margin)


def intensity(ffn_nodes: int) -> float:
    """256 experts, 8 of them per token, on nodes of 8 devices."""
    return FfnIntensity(
        scale_out_tokens=500, scale_up_tokens=3000, top_k=8, experts=256, ffn_nodes=ffn_nodes, devices_per_node=8
    ).value()


def test_more_ffn_nodes_do_not_help_while_the_network_shares_out_its_copies() -> None:
    """The dead zone: from 2 nodes to top-k of them, twice the nodes have half the experts and half the tokens each."""
    assert intensity(1) == 2 * 3000 / 32  # bound by the links inside the node
    assert intensity(2) == intensity(4) == intensity(8) == 2 * 500 / 4
    assert intensity(16) == 2 * 500 / 2


def test_links_bound_what_is_computed_with_what_they_bring() -> None:
    """Vectors of 7168 elements in 3 bytes each, for 2048 x 3 x 7168 weights of 2 FLOPs, at 160 GB/s and 1 PFLOP/s."""
    vectors_per_s = 160e9 / (3 * 7168)
    busy = vectors_per_s * 2 * 3 * 7168 * 2048 / 1e15
    assert HfuBound(scale_up_gb_per_s=160, expert_width=2048, tflop_per_s=1000).value() == pytest.approx(busy)
    assert HfuBound(scale_up_gb_per_s=1600, expert_width=2048, tflop_per_s=1000).value() == 1


@given(st.floats(1, 10), st.floats(0.1, 32))
def test_imbalance_costs_more_where_experts_are_alone(imbalance: float, attention_per_ffn: float) -> None:
    alone = ImbalancePenalty(imbalance=imbalance).value()
    shared = SharedImbalancePenalty(imbalance=imbalance, attention_per_ffn=attention_per_ffn).value()
    assert 1 <= shared <= alone * (1 + 1e-12)
    gain = GainOverSharedDevices(
        hfu_bound=0.5, shared_hfu=0.5, attention_per_ffn=attention_per_ffn, imbalance=imbalance
    ).value()
    assert gain == pytest.approx(shared / alone)
    assert gain <= 1 + 1e-12


@given(
    attention=st.integers(1, 40),
    experts=st.integers(1, 40),
    transfer=st.integers(0, 20),
    layers=st.integers(1, 5),
    m=st.integers(1, 5),
    nodes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_disaggregation_does_not_win_where_work_divides_freely(
    attention: int, experts: int, transfer: int, layers: int, m: int, nodes: tuple[int, int]
) -> None:
    """Work that is proportional to tokens over devices, on any of them alike: all devices doing all of it are best.

    What disaggregation can gain is the rest: weights that are fetched once, larger batches, devices that differ.
    """
    on_attention, on_experts = nodes
    everywhere = on_attention + on_experts
    unit = math.lcm(on_attention, on_experts, everywhere) * m
    shape = layers, m
    parts = [
        np.full(shape, work * unit // (m * devices))
        for work, devices in ((attention, on_attention), (transfer, 1), (experts, on_experts), (transfer, 1))
    ]
    shared = layers * (attention + experts) * unit // everywhere
    assert naive_schedule(*parts) >= shared


@pytest.mark.medium
@pytest.mark.parametrize(("experts", "top_k", "nodes"), [(8, 2, 4), (8, 2, 8), (256, 8, 32), (128, 8, 4), (4, 4, 2)])
def test_an_expert_node_is_hit_as_often_as_draws_say(experts: int, top_k: int, nodes: int) -> None:
    rng = np.random.default_rng(3)
    picks = rng.random((20_000, experts)).argsort(axis=1)[:, :top_k]
    share = (picks < experts // nodes).any(axis=1).mean()
    assert ExpertNodeHit(experts=experts, top_k=top_k, expert_nodes=nodes).value() == pytest.approx(share, abs=0.015)
