"""Terms of a cost plan against counting by hand."""

import math
from collections import Counter
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pimserve.device_models.catalogue import device_names, load_model, model_names
from pimserve.device_models.duplex import decided_as_in_the_paper
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.experts import ExpertTerm
from pimserve.device_models.gpu import Gpu
from pimserve.device_models.operators import CATEGORIES, Category, Parallelism, PrefillAttention, RowKind, operators_of
from pimserve.device_models.plan import (
    FS_PER_S,
    HOST,
    Chunk,
    CostPlan,
    Energy,
    PrefillAttentionTerm,
    RowTerm,
)
from pimserve.device_models.registry import load_device
from pimserve.device_models.routing import POOL_SIZE, ExpertPools, Routing
from pimserve.device_models.step import LINK, busiest_counts, row_counts
from pimserve.errors import InputError

OPERATOR_DEVICES = {name: device for name in device_names() if isinstance(device := load_device(name), Gpu)}


def test_categories_are_all_there() -> None:
    assert get_args(Category) == CATEGORIES


def test_a_row_term_takes_its_slowest_piece_of_its_fastest_algorithm() -> None:
    one_shot, ring = ((10, 5),), ((40, 1), (0, 3))
    term = RowTerm("all-reduce", "communication", LINK, "tokens", one_shot, alternatives=(ring, ((200, 0),)))
    assert [term.time_fs(rows) for rows in (1, 7, 8, 20, 66, 67)] == [15, 45, 48, 60, 198, 200]
    # Nothing runs for nothing, whatever a launch takes.
    assert term.time_fs(0) == 0


def test_row_terms_count_what_they_say() -> None:
    counts = row_counts(1000, 30, 20, 7)
    each = {"tokens": 1000, "outputs": 30, "decodes": 20, "prompts": 7, "requests": 27}
    assert counts == {**each, "all_tokens": 1000, "all_decodes": 20}
    assert tuple(counts) == get_args(RowKind)
    rows = tuple(RowTerm(each, "step", HOST, each, ((0, 10**k),)) for k, each in enumerate(get_args(RowKind)))
    plan = CostPlan(1, 1, ("xpu",), rows, (), (), None)
    assert plan.rows_fs(1000, 30, 20, 7) == 1000 + 300 + 2000 + 7000 + 270_000 + 10**5 * 1000 + 10**6 * 20
    # 20 requests and 7 prompts over 3 groups: 7 and 3 in the busiest one, whose tokens depend on the prompts' lengths.
    busiest = {"tokens": 500, "outputs": 10, "decodes": 7, "prompts": 3, "requests": 10}
    assert busiest_counts(counts, 500, 3) == {**busiest, "all_tokens": 500, "all_decodes": 7}


def test_what_groups_share_counts_all_of_them_once() -> None:
    """Three groups, of which the slowest has 500 tokens and 7 of 20 decoding requests, with 3 tokens to verify each."""
    energy = Energy(1, 10**2, 0)
    rows = tuple(RowTerm(rows, "moe", "xpu", rows, ((1, 10),), energy) for rows in ("all_tokens", "all_decodes"))
    plan = CostPlan(3, 3, ("xpu",), rows, (), (), None, verify_tokens=3)
    step = shape_of(plan, 20, 0, [(900, 0), (40, 0)])._replace(busiest_tokens=500, paced_decodes=21)
    costs = evaluate(plan, step)
    assert plan.rows_fs(500, 0, 7, 2) == 0
    assert costs.duration_fs == plan.shared_rows_fs(1000, 20) == 10 * 1000 + 1 + 10 * 20 + 1
    spent = Counter[int]()
    for (category, _), coefficient, times in costs.energy:
        spent[category] += coefficient * times
    assert spent["moe"] == 1 + 10**2 * 1000 + 1 + 10**2 * 20


def test_a_term_of_prompts_or_decodes_takes_no_time_without_any() -> None:
    launches = tuple(RowTerm("launch", "step", HOST, rows, ((5, 0),)) for rows in ("decodes", "prompts", "requests"))
    plan = CostPlan(1, 1, ("xpu",), launches, (), (), None)
    times = {(d, p): plan.rows_fs(d + 9 * p, d + p, d, p) for d in (0, 2) for p in (0, 2)}
    assert times == {(0, 0): 0, (0, 2): 10, (2, 0): 10, (2, 2): 15}


@given(q=st.integers(1, 60), context=st.integers(0, 60), window=st.none() | st.integers(1, 40), causal=st.booleans())
def test_pairs_of_a_chunk_are_counted_one_by_one(q: int, context: int, window: int | None, causal: bool) -> None:
    term = PrefillAttentionTerm("xpu", window, causal, ((0, 0, 1),), (0, 0, 0), 0)
    most = window if window is not None else context + q
    seen = [min(context + i + 1 if causal else context + q, most) for i in range(q)]
    assert term.extent(Chunk(q, context)) == (q, min(context, most) + q, sum(seen))


@given(st.integers(1, 500), st.integers(1, 499), st.none() | st.integers(1, 300))
def test_chunks_of_a_causal_prompt_add_up(length: int, cut: int, window: int | None) -> None:
    """However a prompt is cut, the same (query, key) pairs are computed."""
    term = PrefillAttentionTerm("xpu", window, True, ((0, 0, 1),), (0, 0, 0), 0)
    cut = min(cut, length)
    parts = [term.extent(chunk)[2] for chunk in (Chunk(cut, 0), Chunk(length - cut, cut)) if chunk.tokens]
    assert sum(parts) == term.extent(Chunk(length, 0))[2]


@pytest.mark.parametrize("device", OPERATOR_DEVICES)
@pytest.mark.parametrize("model", model_names())
def test_every_attention_term_respects_its_own_bounds(model: str, device: str) -> None:
    """Each prefill operator by itself takes at least its FLOPs over the peak and its bytes over the bandwidth."""
    split = Parallelism(1, 8, 8)
    try:
        operators = operators_of(load_model(model), split)
    except InputError:
        pytest.skip("does not divide over 8 devices")
    found = OPERATOR_DEVICES[device]
    spec = found.spec
    plan = found.compile(operators, split)
    prefills = [op for op in operators if isinstance(op, PrefillAttention)]
    assert len(prefills) == len(plan.prefill)
    peak = max(spec.peak_tflop_per_s.values()) * 1e12
    for op, term in zip(prefills, plan.prefill, strict=True):
        for q, context in ((1, 0), (100, 0), (2048, 0), (512, 4096), (2048, 2048)):
            most = op.window_tokens or context + q
            pairs = sum(min(context + i + 1, most) for i in range(q))
            flops = 2 * op.layers * op.heads * (op.qk_dim + op.v_dim) * pairs
            kv = min(context + q, most) * op.layers * op.kv_heads * (op.qk_dim + op.v_dim) * op.kv_bytes_per_element
            seconds = term.cost(Chunk(q, context))[0] / FS_PER_S
            assert seconds >= flops / peak * (1 - 1e-4)
            assert seconds >= kv / (spec.memory_gb_per_s * 1e9) * (1 - 1e-4)


def outcomes_fs(term: ExpertTerm | None, tokens: int) -> NDArray[np.int64]:
    assert term is not None
    pools = ExpertPools(term, Routing(), 0)
    return pools.features(np.full(POOL_SIZE, tokens), np.arange(POOL_SIZE))[:, 0]


@pytest.mark.medium
@pytest.mark.parametrize("experts", ["ep", "tp"])
@pytest.mark.parametrize("tokens", [1, 16, 64, 256, 2048])
@pytest.mark.parametrize("model", [name for name in model_names() if load_model(name).moe])
def test_co_processing_is_not_slower_than_one_unit(model: str, tokens: int, experts: str) -> None:
    """By times, outcome by outcome. The paper's table is crude, but fits the weights' data type: it loses little."""
    times = {}
    spec = load_model(model)
    devices = math.gcd(8, spec.attention.heads)
    for selection in ("per_layer", "co_processing"):
        device = load_device({"preset": "duplex", "processor_selection": selection})
        assert isinstance(device, Gpu)
        split = Parallelism(1, devices, devices, experts)
        plan = device.compile(operators_of(spec, split), split)
        assert plan.experts is not None
        times[selection] = outcomes_fs(plan.experts, tokens)
    assert (times["co_processing"] <= times["per_layer"]).all()
    by_table = outcomes_fs(decided_as_in_the_paper(plan).experts, tokens)
    assert times["co_processing"].mean() <= by_table.mean()
    assert by_table.mean() <= 1.15 * times["per_layer"].mean()


def test_rounding_is_small() -> None:
    """Half a femtosecond is below 1e-4 of every coefficient on 8 devices, and 1e-3 for models below 7 G weights."""
    half_fs = 0.5
    large, small = [], []
    for device in OPERATOR_DEVICES.values():
        for model in model_names():
            try:
                plan = device.compile(operators_of(load_model(model), split := Parallelism(1, 8, 8)), split)
            except InputError:
                continue
            found = large if load_model(model).parameters >= 7e9 else small
            found += [term.slope for term in plan.decode]
            found += [c for term in plan.prefill for piece in term.pieces for c in piece if c]
    assert half_fs / min(large) < 1e-4
    assert half_fs / min(small) < 1e-3
