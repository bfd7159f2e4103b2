"""Model shapes: hand-calculated figures, properties that hold for every spec, and specs that must be refused."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pimserve.device_models.model import (
    BYTES_PER_ELEMENT,
    DenseFfn,
    GroupedQueryAttention,
    MixtureOfExperts,
    ModelSpec,
    MultiHeadLatentAttention,
    compute_dtypes,
)
from pimserve.loadgen.workload import WorkloadSpec

# Small enough to count by hand: 4 layers of which 2 are MoE, hidden 8, vocabulary 10.
TINY: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "layers": 4,
    "hidden": 8,
    "vocab": 10,
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 3},
    "ffn": {"intermediate": 16},
    "moe": {"experts": 6, "top_k": 2, "intermediate": 5, "shared_intermediate": 7, "every": 2},
    "max_model_len_tokens": 64,
}


def tiny(**changes: Any) -> ModelSpec:
    return ModelSpec.model_validate(TINY | changes)


def test_parameters_counted_by_hand() -> None:
    spec = tiny()
    embedding = 2 * 10 * 8
    attention = 8 * 12 + 2 * 8 * 6 + 12 * 8  # query, key and value, output
    norms = 2 * 8
    dense_ffn = 3 * 8 * 16
    expert = 3 * 8 * 5
    always_on = 8 * 6 + 3 * 8 * 7
    rest = embedding + 4 * (attention + norms) + 8 + 2 * dense_ffn + 2 * always_on
    assert spec.parameters == rest + 2 * 6 * expert
    assert spec.active_parameters == rest + 2 * 2 * expert
    assert spec.routed_parameters == 2 * 6 * expert
    assert spec.embedding_parameters == embedding


def test_flops_counted_by_hand() -> None:
    spec = tiny()
    # Everything active except the input embedding is multiplied with; 4 FLOPs per head, element and context token.
    assert spec.flops_per_token(0) == 2 * (spec.active_parameters - 10 * 8)
    assert spec.flops_per_token(50) - spec.flops_per_token(0) == 4 * 4 * 3 * 50 * 4


def test_tied_embedding_counts_once_and_keeps_the_head_flops() -> None:
    assert tiny().parameters - tiny(tied_embeddings=True).parameters == 10 * 8
    assert tiny(tied_embeddings=True).flops_per_token(5) == tiny().flops_per_token(5)


def test_learned_positions_add_weights_without_flops() -> None:
    assert tiny(learned_positions=9).parameters - tiny().parameters == 9 * 8
    assert tiny(learned_positions=9).flops_per_token(5) == tiny().flops_per_token(5)


@pytest.mark.parametrize(
    ("first_layer", "every", "moe_layers"), [(0, 1, 4), (0, 2, 2), (1, 1, 3), (1, 2, 2), (3, 1, 1), (0, 3, 2)]
)
def test_moe_layers(first_layer: int, every: int, moe_layers: int) -> None:
    moe = {"experts": 2, "top_k": 1, "intermediate": 4, "first_layer": first_layer, "every": every}
    spec = tiny(moe=moe, ffn=None if moe_layers == 4 else TINY["ffn"])
    assert (spec.moe_layers, spec.dense_layers) == (moe_layers, 4 - moe_layers)


def test_biases_and_small_vectors() -> None:
    plain = GroupedQueryAttention(kind="gqa", heads=4, kv_heads=2, head_dim=3)
    full = GroupedQueryAttention(
        kind="gqa", heads=4, kv_heads=2, head_dim=3, qkv_bias=True, output_bias=True, qk_norm=True, sinks=True
    )
    assert full.parameters(8) - plain.parameters(8) == (4 + 2 * 2) * 3 + 8 + 2 * 3 + 4
    assert DenseFfn(intermediate=16, matrices=2, bias=True).parameters(8) == 2 * 8 * 16 + 16 + 8
    assert DenseFfn(intermediate=16, bias=True).parameters(8) == 3 * 8 * 16 + 2 * 16 + 8
    moe = MixtureOfExperts(experts=6, top_k=2, intermediate=5, bias=True, router_bias=True)
    assert moe.expert_parameters(8) == 3 * 8 * 5 + 2 * 5 + 8
    assert moe.always_on_parameters(8) == 8 * 6 + 6


def test_latent_attention_counted_by_hand() -> None:
    attention = MultiHeadLatentAttention(
        kind="mla", heads=4, q_lora_rank=6, kv_lora_rank=5, qk_nope_head_dim=3, qk_rope_head_dim=2, v_head_dim=7
    )
    query = 8 * 6 + 6 * 4 * (3 + 2)
    key_value = 8 * (5 + 2) + 5 * 4 * (3 + 7)
    assert attention.parameters(8) == query + key_value + 4 * 7 * 8 + 6 + 5
    assert attention.kv_elements == 5 + 2
    spec = tiny(attention=attention.model_dump())
    # Absorbed: every head meets the latent and rotary key (7 wide), and weighs the latent (5 wide).
    assert spec.flops_per_token(10) - spec.flops_per_token(0) == 2 * 4 * (7 + 5) * 10 * 4


def test_window_bounds_kv_and_flops() -> None:
    window = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 3, "window_tokens": 16, "window_every": 2}
    spec = tiny(attention=window)
    per_layer = 2 * 2 * 3 * 2
    assert tiny().kv_bytes_per_token == 4 * per_layer
    assert spec.kv_bytes_per_token == 2 * per_layer
    assert spec.kv_window_bytes_per_request == 2 * per_layer * 16
    assert tiny().kv_window_bytes_per_request == 0
    assert spec.flops_per_token(16) == tiny().flops_per_token(16)
    assert spec.flops_per_token(40) - spec.flops_per_token(0) == 4 * 4 * 3 * (2 * 40 + 2 * 16)


def test_weight_bytes_follow_each_data_type() -> None:
    spec = tiny(dense_dtype="bf16", expert_dtype="mxfp4")
    assert spec.weight_bytes == (spec.parameters - spec.routed_parameters) * 2 + spec.routed_parameters * 17 / 32
    assert tiny(dense_dtype="fp8").weight_bytes == tiny().parameters
    assert tiny(dense_dtype="fp8").routed_dtype == "fp8"


@pytest.mark.parametrize(
    ("dtype", "elements", "size"),
    [
        ("fp8_block", 128 * 128, 128 * 128 + 4),
        ("mxfp4", 32, 32 / 2 + 1),
        ("nvfp4", 16, 16 / 2 + 1),
    ],
)
def test_scales_of_a_block_count_as_bytes(dtype: str, elements: int, size: float) -> None:
    assert BYTES_PER_ELEMENT[dtype] * elements == size


@pytest.mark.parametrize("dtype", BYTES_PER_ELEMENT)
def test_a_data_type_computes_at_its_own_peak_first_and_at_those_of_its_width_only(dtype: str) -> None:
    names = compute_dtypes(dtype)
    assert names[0] == dtype
    assert len({round(BYTES_PER_ELEMENT[name] / 0.5) for name in names}) == 1


@pytest.mark.parametrize(
    ("dtype", "names"),
    [
        ("bf16", ("bf16",)),
        ("fp8", ("fp8",)),
        ("fp8_block", ("fp8_block", "fp8")),
        ("mxfp4", ("mxfp4", "nvfp4")),
        ("nvfp4", ("nvfp4", "mxfp4")),
    ],
)
def test_block_scaled_formats_share_the_multipliers_of_their_width(dtype: str, names: tuple[str, ...]) -> None:
    assert compute_dtypes(dtype) == names


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    layers = draw(st.integers(1, 12))
    kv_heads = draw(st.integers(1, 4))
    attention: dict[str, Any] = {
        "kind": "gqa",
        "heads": kv_heads * draw(st.integers(1, 8)),
        "kv_heads": kv_heads,
        "head_dim": draw(st.integers(1, 128)),
        "qkv_bias": draw(st.booleans()),
    }
    if draw(st.booleans()):
        attention |= {"window_tokens": draw(st.integers(1, 512)), "window_every": draw(st.integers(1, layers))}
    moe = None
    if draw(st.booleans()):
        experts = draw(st.integers(1, 64))
        moe = {
            "experts": experts,
            "top_k": draw(st.integers(1, experts)),
            "intermediate": draw(st.integers(1, 256)),
            "matrices": draw(st.sampled_from([2, 3])),
            "shared_intermediate": draw(st.integers(0, 64)),
            "first_layer": draw(st.integers(0, layers - 1)),
            "every": draw(st.integers(1, 3)),
        }
    all_moe = moe is not None and moe["first_layer"] == 0 and (moe["every"] == 1 or layers == 1)
    return tiny(
        layers=layers,
        hidden=draw(st.integers(1, 256)),
        vocab=draw(st.integers(1, 1000)),
        tied_embeddings=draw(st.booleans()),
        attention=attention,
        moe=moe,
        ffn=None if all_moe else {"intermediate": draw(st.integers(1, 256))},
    )


def changed(spec: ModelSpec, **changes: Any) -> ModelSpec:
    return ModelSpec.model_validate(spec.model_dump() | changes)


@given(specs())
def test_active_is_at_most_all(spec: ModelSpec) -> None:
    assert 0 < spec.active_parameters <= spec.parameters
    everyone = spec.moe is None or spec.moe.top_k == spec.moe.experts
    assert (spec.active_parameters == spec.parameters) == everyone
    assert spec.lookup_parameters <= spec.embedding_parameters < spec.parameters


@given(specs())
def test_weight_bytes_scale_with_the_data_type(spec: ModelSpec) -> None:
    for dtype, size in BYTES_PER_ELEMENT.items():
        assert changed(spec, dense_dtype=dtype).weight_bytes == pytest.approx(spec.parameters * size)


@given(specs(), st.integers(0, 10_000), st.integers(0, 10_000))
def test_flops_grow_with_context_at_a_falling_rate(spec: ModelSpec, context: int, more: int) -> None:
    start, near, far = (spec.flops_per_token(tokens) for tokens in (0, context, context + more))
    assert start <= near <= far
    assert far - near <= spec.flops_per_token(more) - start  # a window can only flatten it


@given(specs())
def test_kv_never_exceeds_full_attention(spec: ModelSpec) -> None:
    everywhere = spec.kv_bytes_per_token_layer * spec.layers
    windowed = spec.kv_bytes_per_token_layer * spec.windowed_layers
    assert spec.kv_bytes_per_token + windowed == everywhere
    assert changed(spec, kv_dtype="fp8").kv_bytes_per_token == spec.kv_bytes_per_token / 2


@given(specs(), st.integers(1, 4))
def test_experts_add_total_but_not_active_weights(spec: ModelSpec, more: int) -> None:
    if spec.moe is None:
        return
    larger = changed(spec, moe=spec.moe.model_dump() | {"experts": spec.moe.experts + more})
    router = more * spec.hidden * spec.moe_layers
    assert larger.active_parameters == spec.active_parameters + router
    assert larger.parameters == (
        spec.parameters + router + more * spec.moe_layers * spec.moe.expert_parameters(spec.hidden)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "greater than 0"),
        ({"attention": {"kind": "gqa", "heads": 5, "kv_heads": 2, "head_dim": 3}}, r"heads \(5\) must be a multiple"),
        ({"attention": {"kind": "linear"}}, "'gqa', 'mla'"),
        ({"attention": {**TINY["attention"], "window_tokens": 8, "window_every": 5}}, r"window_every \(5\)"),
        ({"attention": {**TINY["attention"], "window_every": 2}}, r"window_every \(2\) has no effect without"),
        ({"moe": {"experts": 2, "top_k": 3, "intermediate": 5}}, r"top_k \(3\) must not exceed experts \(2\)"),
        ({"moe": {**TINY["moe"], "first_layer": 4}}, r"first_layer \(4\) must be below layers \(4\)"),
        ({"moe": {"experts": 2, "top_k": 1, "intermediate": 5}}, "every layer is MoE"),
        ({"ffn": None}, "2 layers are dense"),
        ({"ffn": None, "moe": None}, "4 layers are dense"),
        ({"ffn": {"intermediate": 4, "matrices": 4}}, "2 or 3"),
        ({"dense_dtype": "int3"}, "'fp16', 'bf16', 'fp8', 'fp8_block', 'mxfp4' or 'nvfp4'"),
        ({"hiden": 8}, "Extra inputs"),
        ({"published": {"parameters": 1.0, "relative_tolerance": 0.5}}, "less than or equal to 0.05"),
    ],
)
def test_bad_spec_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("spec", [ModelSpec, WorkloadSpec])
def test_schemas_ask_for_the_key_that_says_which_description_it_is(spec: type[BaseModel]) -> None:
    """A default of it would stand in the reference, and never be taken."""
    schema = spec.model_json_schema()
    tagged = re.findall(r"'discriminator': \{'mapping': (\{.*?\}), 'propertyName': '(\w+)'\}", str(schema))
    assert tagged
    for mapping, key in tagged:
        for name in re.findall(r"#/\$defs/(\w+)", mapping):
            assert key in schema["$defs"][name]["required"], name
