"""No resource hurts: more bandwidth or more FLOPs never make a step slower, nor do two units where one would do."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pimserve.device_models.catalogue import device_names, load_model, merged, model_names
from pimserve.device_models.device import Demand, OperatorDevice
from pimserve.device_models.duplex import DuplexSpec, decided_as_in_the_paper
from pimserve.device_models.evaluate import evaluate, shape_of, way_of
from pimserve.device_models.expert_picks import draw_counts, pick_probabilities
from pimserve.device_models.operators import Parallelism
from pimserve.device_models.plan import Chunk, CostPlan
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError
from tests.examples import examples

OPERATOR_DEVICES = [name for name in device_names() if isinstance(load_device(name), OperatorDevice)]
TWO_UNITS = [name for name in OPERATOR_DEVICES if isinstance(load_device(name).spec, DuplexSpec)]
LATENT = [name for name in model_names() if load_model(name).attention.kind == "mla"]
AIMC = [name for name in device_names() if load_device(name).spec.kind == "aimc"]  # type: ignore[attr-defined]
SPLITS = [Parallelism(*shape) for shape in ((1, 1, 1), (1, 4, 4), (1, 8, 8), (1, 8, 1), (1, 8, 8, "tp"), (2, 8, 8))]
_ROUNDING_FS = 1000  # every coefficient is rounded to a femtosecond by itself


@cache
def plan_of(document: str, model: str, split: Parallelism, backend: str | None) -> CostPlan:
    """On memories that hold any model."""
    device = load_device({"memory_gb": 9000, **eval(document)})
    return device.fit(Demand(load_model(model), split, backend=backend)).plan


def fitted(document: dict[str, Any], model: str, split: Parallelism, backend: str | None) -> CostPlan:
    try:
        return plan_of(repr(document), model, split, backend)
    except InputError:  # it does not divide, or was not measured
        assume(False)
        raise


def step_fs(plan: CostPlan, decodes: int, context: int, prompt: int) -> int:
    """A step with `decodes` requests of `context` tokens each, and a prompt; one draw of experts for every layer."""
    tokens, chunks = decodes + prompt, [Chunk(prompt, 0)] if prompt else []
    time = evaluate(plan, shape_of(plan, decodes, decodes * context, chunks, decodes + len(chunks))).duration_fs
    if plan.experts is not None:
        law = pick_probabilities(np.ones(plan.experts.experts), plan.experts.top_k)
        counts = draw_counts(np.random.default_rng(tokens), law, tokens, 4)
        time += plan.experts.layers * int(plan.experts.layer_features(counts)[:, 0].sum()) // 4
    return time


STEPS = st.tuples(
    st.sampled_from([0, 1, 8, 24, 128, 400]),
    st.sampled_from([1, 30, 500, 2000, 30_000]),
    st.sampled_from([0, 0, 1, 64, 512, 8192]),
).filter(lambda step: step[0] + step[2] > 0)


@st.composite
def devices(draw: st.DrawFn, names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A device of a preset, whose units may differ much from it, and what gives it more of one resource."""
    name = draw(st.sampled_from(names))
    spec: Any = load_device(name).spec
    resources = ["memory_gb_per_s", "peak_tflop_per_s"]
    slower = draw(st.sampled_from([0.1, 0.5, 1]))
    peaks = {dtype: slower * peak for dtype, peak in spec.peak_tflop_per_s.items()}
    document: dict[str, Any] = {"preset": name, "peak_tflop_per_s": peaks}
    if isinstance(spec, DuplexSpec):
        resources += ["bandwidth_multiple", "flop_per_byte"]
        document["processor_selection"] = draw(st.sampled_from(["per_layer", "co_processing", "pim"]))
        document["pim"] = {
            "bandwidth_multiple": draw(st.sampled_from([1, 4, 16])),
            "flop_per_byte": draw(st.sampled_from([1, 8, 16, 64])),
        }
    resource, factor = draw(st.sampled_from(resources)), draw(st.sampled_from([1.1, 2, 8]))
    if resource == "memory_gb_per_s":
        return document, {resource: factor * spec.memory_gb_per_s}
    if resource == "peak_tflop_per_s":
        return document, {resource: {dtype: factor * peak for dtype, peak in peaks.items()}}
    return document, {"pim": {resource: factor * document["pim"][resource]}}


def never_slower(pair: tuple[dict[str, Any], dict[str, Any]], model: str, *how: Any, steps: list[Any]) -> None:
    document, change = pair
    before, after = (fitted(each, model, *how) for each in (document, merged(document, change)))
    for step in steps:
        assert step_fs(after, *step) <= step_fs(before, *step) + _ROUNDING_FS, step


BACKENDS = st.sampled_from([None, "vllm", "trtllm"])


@pytest.mark.medium
@examples(120)
@given(
    devices(OPERATOR_DEVICES),
    st.sampled_from(model_names()),
    st.sampled_from(SPLITS),
    BACKENDS,
    st.lists(STEPS, min_size=3, max_size=3),
)
def test_more_of_a_resource_never_slows_a_step(
    pair: tuple[dict[str, Any], dict[str, Any]], model: str, split: Parallelism, backend: str | None, steps: list[Any]
) -> None:
    never_slower(pair, model, split, backend, steps=steps)


@pytest.mark.medium
@examples(60)
@given(
    devices(TWO_UNITS),
    st.sampled_from(LATENT),
    st.sampled_from(SPLITS),
    BACKENDS,
    st.lists(STEPS, min_size=3, max_size=3),
)
def test_nor_where_either_unit_may_be_the_faster_one_for_decode_attention(
    pair: tuple[dict[str, Any], dict[str, Any]], model: str, split: Parallelism, backend: str | None, steps: list[Any]
) -> None:
    never_slower(pair, model, split, backend, steps=steps)


@examples(50)
@given(devices(TWO_UNITS), st.sampled_from(model_names()), st.sampled_from(SPLITS), BACKENDS, STEPS)
def test_two_units_are_never_slower_than_either_alone(
    pair: tuple[dict[str, Any], dict[str, Any]], model: str, split: Parallelism, backend: str | None, step: Any
) -> None:
    document, _ = pair
    spec: Any = load_device(document).spec
    gpu = {
        **spec.model_dump(mode="json", include=set(type(load_device("h100").spec).model_fields), exclude_none=True),
        "kind": "gpu",
    }
    ways = {
        way: fitted({**document, "processor_selection": way}, model, split, backend)
        for way in ("per_layer", "co_processing", "pim")
    }
    times = {way: step_fs(plan, *step) for way, plan in ways.items()}
    xpu = step_fs(fitted(gpu, model, split, backend), *step)
    assert times["per_layer"] <= min(xpu, times["pim"]) + _ROUNDING_FS
    assert times["co_processing"] <= times["per_layer"] + _ROUNDING_FS


@pytest.mark.parametrize("flop_per_byte", [8, 40])
def test_decode_attention_leaves_the_faster_unit_for_the_free_one(flop_per_byte: float) -> None:
    """Latent attention of whole devices: the xPU decodes faster, but beside a long prompt Logic-PIM costs nothing."""
    document = {"preset": "duplex", "pim": {"flop_per_byte": flop_per_byte}}
    plan = plan_of(repr(document), "deepseek-v3", Parallelism(1, 8, 1), None)
    prefill_fs = 10**18
    alone = shape_of(plan, 64, 64 * 1000)
    beside = alone._replace(prefill_fs=prefill_fs)
    assert {term.unit for term in way_of(plan, alone).terms} == {"xpu"}
    assert {term.unit for term in way_of(plan, beside).terms} == {"logic_pim"}
    alone_fs = evaluate(plan, alone).duration_fs
    others_fs = alone_fs - plan.timing.layers_fs(alone)
    assert evaluate(plan, beside).duration_fs == others_fs + prefill_fs < alone_fs + prefill_fs
    assert evaluate(decided_as_in_the_paper(plan), beside).duration_fs == alone_fs + prefill_fs


def test_short_contexts_are_not_worth_the_fixed_cost_of_a_sequence() -> None:
    document = {"preset": "duplex", "processor_selection": "per_layer"}
    plan = plan_of(repr(document), "deepseek-v3", Parallelism(1, 8, 1), "vllm")
    units = [way_of(plan, shape_of(plan, 64, 64 * context)).terms[0].unit for context in (1, 100, 1000, 30_000)]
    assert units[0] == "logic_pim"
    assert units[-1] == "xpu"
    assert units == sorted(units)


@pytest.mark.parametrize("name", AIMC)
@pytest.mark.parametrize("model", ["gpt2-medium", "llama-3.1-8b"])
def test_faster_memory_and_attention_units_never_slow_a_step_of_chips(name: str, model: str) -> None:
    before: Any = load_device(name).spec

    def plan(**changes: Any) -> CostPlan:
        return load_device({"preset": name, **changes}).fit(Demand(load_model(model), Parallelism(1, 2, 2))).plan

    changes: list[dict[str, Any]] = [{"dram": {"gb_per_s": 2 * before.dram.gb_per_s}}]
    if hasattr(before.costs, "attention_tflop_per_s"):
        changes.append({"costs": {"attention_tflop_per_s": 2 * before.costs.attention_tflop_per_s}})
    usual = plan()
    for change in changes:
        faster = plan(**change)
        for decodes, context in ((1, 100), (1, 8000), (16, 700), (256, 3000)):
            shape = shape_of(usual, decodes, decodes * context)
            times = [evaluate(each, shape).duration_fs for each in (usual, faster)]
            assert times[1] <= times[0] + _ROUNDING_FS, (change, decodes, context)


def test_the_table_of_the_paper_does_hurt() -> None:
    """The case that made it no default: Qwen3-30B, one Duplex, 128 requests, 16 FLOPs per byte for 8."""
    plans = [
        plan_of(repr({"preset": "duplex", "pim": {"flop_per_byte": flops}}), "qwen3-30b-a3b", SPLITS[0], None)
        for flops in (8, 16)
    ]
    before, after = (step_fs(decided_as_in_the_paper(plan), 128, 500, 0) for plan in plans)
    assert after > 1.15 * before
    before, after = (step_fs(plan, 128, 500, 0) for plan in plans)
    assert after <= before
