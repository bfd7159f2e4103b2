"""Predictions of timed operators: the kernels' formulas through the cost plan, expert loads, and the physical bound."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.validation.gpu_operators import bound_us, operator_class, predicted_us
from pimserve.cluster.validation.gpu_routing import DRAWS, expert_loads
from pimserve.cluster.validation.gpu_rows import Moe, NotCovered
from pimserve.device_models.catalogue import kernel_names
from pimserve.device_models.kernels import load_kernels
from tests.validation.gpu_example import ALL_REDUCE, DECODE, GEMM, MOE, NCCL, OPERATORS, PREFILL, operators

H100_BYTES_PER_US = 3352e3
H100_FLOP_PER_US = 989.4e6


@pytest.fixture
def row(tmp_path):
    """A row of the file, with changes to it and to its shape."""

    def make(base, shape=None, **changes):
        return operators(tmp_path, {**base, **changes, "shape": {**base["shape"], **(shape or {})}})[0]

    return make


@pytest.fixture(scope="module")
def kernels():
    return load_kernels("h100", "vllm")


def test_decode_attention_is_launch_sequences_and_cache(row, kernels):
    kernel = kernels.decode_attention["bf16"]
    token = 2 * 8 * 128 * 2 / (H100_BYTES_PER_US * kernel.memory)
    for batch, context in ((1, 1024), (32, 4096)):
        by_hand = kernel.launch_us + batch * (context + kernel.sequence_tokens) * token
        assert predicted_us(row(DECODE, {"batch": batch, "context": context})) == pytest.approx(by_hand, rel=2e-3)


def test_a_kv_cache_in_fp8_has_a_kernel_of_its_own(row, kernels):
    kernel = kernels.decode_attention["fp8"]
    token = 2 * 8 * 128 / (H100_BYTES_PER_US * kernel.memory)
    found = predicted_us(row(DECODE, dtype="q:bfloat16 kv:fp8"))
    assert found == pytest.approx(kernel.launch_us + 32 * (4096 + kernel.sequence_tokens) * token, rel=2e-3)


def test_no_kv_heads_means_as_many_as_query_heads(row):
    assert predicted_us(row(DECODE, {"kv_heads": 0})) == predicted_us(row(DECODE, {"kv_heads": 32}))


def test_a_large_product_runs_at_the_share_of_the_peak(row, kernels):
    kernel = kernels.gemm["bf16"]
    found = predicted_us(row(GEMM, {"m": 8192}))
    by_hand = 2 * 8192**3 / (H100_FLOP_PER_US * kernel.compute) + kernel.launch_us
    assert found == pytest.approx(by_hand, rel=2e-3)


def test_prompts_add_up_behind_one_launch(row, kernels):
    launch = kernels.prefill_attention["bf16"].launch_us
    one, two = (predicted_us(row(PREFILL, {"batch": batch})) - launch for batch in (1, 2))
    assert two == pytest.approx(2 * one, rel=1e-6)


def test_half_precision_has_the_kernel_of_the_other_16_bit_type(row):
    assert predicted_us(row(GEMM, dtype="float16")) == predicted_us(row(GEMM))


def test_nccl_and_the_engines_own_all_reduce_are_told_apart(row, kernels):
    algorithms = kernels.collectives.all_reduce[8]
    for base, mine in (
        (ALL_REDUCE, [each for each in algorithms if not each.name.startswith("NCCL")]),
        (NCCL, [each for each in algorithms if each.name.startswith("NCCL")]),
    ):
        moved = (1 << 20) * 2 * 7 / 8
        by_hand = min(each.latency_us + moved / (each.bus_gb_per_s * 1e3) for each in mine)
        assert predicted_us(row(base)) == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("base", OPERATORS, ids=lambda base: f"{base['op']} {base['backend']}")
def test_no_prediction_is_below_the_bound(row, base):
    assert predicted_us(row(base)) >= bound_us(row(base)) > 0


def test_the_bound_is_bytes_or_flops(row):
    weights = 8192 * 8192 * 2
    assert bound_us(row(GEMM, {"m": 1})) == pytest.approx((weights + 4 * 8192) / H100_BYTES_PER_US, rel=1e-6)
    assert bound_us(row(GEMM, {"m": 8192})) == pytest.approx(2 * 8192**3 / H100_FLOP_PER_US, rel=1e-6)
    cache = 32 * 4096 * 2 * 8 * 128 * 2
    assert bound_us(row(DECODE)) == pytest.approx(cache / H100_BYTES_PER_US, rel=1e-6)
    experts = 8 * 3 * 4096 * 14336 / 2 * 2
    assert bound_us(row(MOE, {"tokens": 16})) == pytest.approx(experts / H100_BYTES_PER_US, rel=1e-6)


@pytest.mark.parametrize(
    ("base", "changes", "says"),
    [
        (GEMM, {"gpu": "MI300X-OAM"}, "GPU 'MI300X-OAM' is not in the catalogue (there are a100"),
        (GEMM, {"backend": "sglang"}, "backend 'sglang' was not measured (there are vllm, trtllm)"),
        (GEMM, {"dtype": "int4"}, "data type 'int4' is unknown (known: bfloat16"),
        (GEMM, {"dtype": "fp8_block"}, "no gemm kernel was measured in fp8_block with vllm"),
        (DECODE, {"dtype": "bfloat16"}, "data types 'bfloat16' are not of the form"),
        (DECODE, {"dtype": "q:fp8 kv:fp8"}, "queries in fp8"),
        (MOE, {"shape": {"routing": "zipf"}}, "routing 'zipf' is unknown"),
        (MOE, {"shape": {"routing": "power_law_x"}}, "routing 'power_law_x' is unknown"),
        (MOE, {"shape": {"topk": 9}}, "chooses 9 of only 8 experts"),
        (MOE, {"shape": {"ep": 4}}, "experts spread over 4 GPUs"),
        (ALL_REDUCE, {"shape": {"gpus": 1}}, "two GPUs or more"),
        (ALL_REDUCE, {"shape": {"gpus": 3}}, "over 3 GPUs was not measured"),
        (ALL_REDUCE, {"kernel": "vLLM_custom_eager"}, "outside a CUDA graph"),
    ],
)
def test_what_is_not_covered_says_why(row, base, changes, says):
    with pytest.raises(NotCovered, match=re.escape(says)):
        predicted_us(row(base, **changes))


@pytest.mark.parametrize("name", kernel_names())
def test_every_set_of_kernels_predicts_its_data_types(row, name):
    gpu, backend = name.split("-")
    kernels = load_kernels(gpu, backend)
    written = {"bf16": "bfloat16", "fp16": "half"}
    for dtype in kernels.gemm:
        found = row(GEMM, gpu=gpu.upper(), backend=backend, dtype=written.get(dtype, dtype))
        assert operator_class(found) == f"gemm {dtype}"
        assert predicted_us(found) >= bound_us(found)
    for dtype in kernels.decode_attention:
        found = row(DECODE, gpu=gpu, backend=backend, dtype=f"q:bfloat16 kv:{written.get(dtype, dtype)}")
        assert predicted_us(found) >= bound_us(found)


def moe(tokens, experts, top_k, routing):
    return Moe(tokens=tokens, hidden=8, inter=8, topk=top_k, experts=experts, routing=routing)


@given(st.integers(1, 5000), st.integers(1, 128), st.integers(1, 8), st.sampled_from(["balanced", "power_law_1.2"]))
def test_every_pair_finds_an_expert_and_none_twice(tokens, experts, top_k, routing):
    top_k = min(top_k, experts)
    loads = expert_loads(moe(tokens, experts, top_k, routing))
    assert (loads.sum(axis=1) == tokens * top_k).all()
    assert loads.min() >= 0
    assert loads.max() <= tokens


@given(st.integers(1, 5000), st.integers(1, 128), st.integers(1, 8))
def test_balanced_loads_differ_by_one_at_most(tokens, experts, top_k):
    loads = expert_loads(moe(tokens, experts, min(top_k, experts), "balanced"))
    assert loads.shape == (1, experts)
    assert np.ptp(loads) <= 1


def test_power_law_loads_are_skewed_and_repeatable():
    mild, steep = (expert_loads(moe(4096, 128, 8, f"power_law_{alpha}")) for alpha in (1.01, 1.2))
    assert mild.shape == (DRAWS, 128)
    busiest = [loads.max(axis=1).mean() for loads in (mild, steep)]
    assert 256 * 3 < busiest[0] < busiest[1]
    assert (expert_loads(moe(4096, 128, 8, "power_law_1.01")) == mild).all()
