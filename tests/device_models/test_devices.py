"""Devices: physical bounds for every device and model of the catalogue, and the closed forms of arXiv 2409.01141."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from pimserve.cluster.scenario.interconnect import Interconnect
from pimserve.device_models.catalogue import device_names, load_model, model_names
from pimserve.device_models.device import OperatorDevice
from pimserve.device_models.duplex import DuplexSpec
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.expert_picks import draw_counts, pick_probabilities
from pimserve.device_models.gpu import Gpu
from pimserve.device_models.kernels import load_kernels
from pimserve.device_models.model import BYTES_PER_ELEMENT, ModelSpec, compute_dtypes
from pimserve.device_models.operators import AllReduce, Parallelism, operators_of, weight_bytes_per_device
from pimserve.device_models.plan import FS_PER_S, PJ_PER_J, Chunk, CostPlan
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError

# Nodes, devices per node, tensor parallelism; the last one slices over two nodes.
SPLITS = [(1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8), (2, 8, 8), (4, 8, 8), (2, 8, 16)]
DECODES, CONTEXT, PROMPT = 24, 700, 512
OPERATOR_DEVICES = [name for name in device_names() if isinstance(load_device(name), OperatorDevice)]


def gpu(document: str | dict[str, object]) -> Gpu:
    """A device that runs operators: a GPU, or one with a second unit."""
    device = load_device(document)
    assert isinstance(device, Gpu)
    return device


def sensible_splits(device: Gpu, model: ModelSpec) -> list[Parallelism]:
    """The fewest devices that hold the weights, with experts whole and (where the model has any) sliced."""
    for shape in SPLITS:
        found = []
        for experts in ("ep", "tp") if model.moe else ("ep",):
            split = Parallelism(*shape, experts)  # type: ignore[arg-type]
            try:
                operators_of(model, split)
            except InputError:
                continue
            if weight_bytes_per_device(model, split) < 0.9 * device.memory_bytes:
                found.append(split)
        if found:
            return found
    raise AssertionError(f"no split over up to 32 {device.spec.name} holds {model.name}")


@dataclass
class Step:
    """What the plan says of one step, in SI units; `counts` is how its tokens fell on experts."""

    seconds: float
    joules: float
    counts: np.ndarray


def take_step(plan: CostPlan, *, decodes: int, context: int, prompt: int) -> Step:
    """One decode step (prompt 0) or prefill step (decodes 0), with one routing for all layers."""
    tokens = decodes + prompt
    chunks = [Chunk(prompt, 0)] if prompt else []
    fs = evaluate(plan, shape_of(plan, decodes, decodes * context, chunks, 1 if prompt else decodes)).duration_fs
    if prompt:
        pj = sum(sum(term.cost(Chunk(prompt, 0))[1:]) for term in plan.prefill)
    else:
        pj = sum(
            (t.dram_per_token + t.compute_per_token) * _seen(t.window_tokens, decodes, context) for t in plan.decode
        )
    for row in plan.rows:
        rows = tokens if row.rows == "tokens" else decodes or 1  # the others take no energy
        groups = min(plan.data_parallel, decodes or 1)  # a group without a request reads no weights
        pj += row.energy.dram_const * groups + (row.energy.dram_per_row + row.energy.compute_per_row) * rows
    counts = np.zeros((1, 0), np.int64)
    if plan.experts is not None:
        term = plan.experts
        law = pick_probabilities(np.ones(term.experts), term.top_k)
        counts = draw_counts(np.random.default_rng(1), law, tokens, 1)
        time, *_, dram, compute = term.layer_features(counts)[0]
        fs += term.layers * int(time)
        pj += term.layers * int(dram + compute)
    return Step(fs / FS_PER_S, pj / PJ_PER_J, counts)


def _seen(window: int | None, decodes: int, context: int) -> int:
    return decodes * (context if window is None else min(context, window))


@dataclass
class Demand:
    """The least that all devices together must move (bytes) and compute (FLOPs), by where it may run."""

    xpu_bytes: float = 0
    xpu_flops: float = 0
    pim_bytes: float = 0  # may run on the memory-side unit too
    pim_flops: float = 0


def dense_matrices(model: ModelSpec) -> float:
    """Weights outside the routed experts that a token is multiplied with, in the layers."""
    attention, hidden = model.attention, model.hidden
    if attention.kind == "gqa":
        own = hidden * attention.head_dim * (2 * attention.heads + 2 * attention.kv_heads)
    else:
        own = hidden * (attention.q_lora_rank + attention.kv_lora_rank + attention.qk_rope_head_dim)
        own += attention.q_lora_rank * attention.heads * (attention.qk_nope_head_dim + attention.qk_rope_head_dim)
        own += attention.kv_lora_rank * attention.heads * (attention.qk_nope_head_dim + attention.v_head_dim)
        own += attention.heads * attention.v_head_dim * hidden
    total = float(model.layers * own)
    if model.ffn is not None:
        total += model.dense_layers * model.ffn.matrices * hidden * model.ffn.intermediate
    if model.moe is not None:
        moe = model.moe
        total += model.moe_layers * hidden * (moe.experts + moe.matrices * moe.shared_intermediate)
    return total


def demand(model: ModelSpec, counts: np.ndarray, *, decodes: int, context: int, prompt: int) -> Demand:
    """Worked out from the model's shapes alone. One data-parallel group reads the dense weights once."""
    tokens, outputs = decodes + prompt, decodes or 1
    element = BYTES_PER_ELEMENT[model.dense_dtype]
    dense, head = dense_matrices(model), model.vocab * model.hidden
    need = Demand(xpu_bytes=element * (dense + head), xpu_flops=2.0 * (tokens * dense + outputs * head))
    attention = model.attention
    windowed = model.windowed_layers
    if prompt:
        if attention.kind == "gqa":
            per_pair = 4 * attention.heads * attention.head_dim
            window = min(attention.window_tokens or prompt, prompt)
        else:
            width = attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
            per_pair, window = 2 * attention.heads * width, prompt
        causal = prompt * prompt / 2
        in_window = causal - (prompt - window) ** 2 / 2
        need.xpu_flops += per_pair * ((model.layers - windowed) * causal + windowed * in_window)
    else:
        window = getattr(attention, "window_tokens", None) or context
        seen = (model.layers - windowed) * context + windowed * min(window, context)
        need.pim_bytes += decodes * seen * model.kv_bytes_per_token_layer
        need.pim_flops += decodes * (model.flops_per_token(context) - model.flops_per_token(0))
    if model.moe is not None:
        expert = model.moe.matrices * model.hidden * model.moe.intermediate
        need.pim_bytes += model.moe_layers * np.count_nonzero(counts) * expert * BYTES_PER_ELEMENT[model.routed_dtype]
        need.pim_flops += model.moe_layers * 2 * tokens * model.moe.top_k * expert
    return need


@pytest.mark.medium
@pytest.mark.parametrize("model_name", model_names())
@pytest.mark.parametrize("backend", [None, "vllm", "trtllm"])
@pytest.mark.parametrize("device_name", OPERATOR_DEVICES)
def test_no_step_is_faster_or_cheaper_than_physics_allows(
    device_name: str, backend: str | None, model_name: str
) -> None:
    device, model = gpu(device_name), load_model(model_name)
    spec = device.spec
    if backend is not None:
        assert spec.kernels is not None
        device = type(device)(spec, load_kernels(spec.kernels, backend).captured())
    peaks: dict[str, float] = dict(spec.peak_tflop_per_s)
    dtypes = [name for dtype in ("fp16", model.dense_dtype, model.routed_dtype) for name in compute_dtypes(dtype)]
    peak = 1e12 * max(peaks.get(dtype, peaks["fp16"]) for dtype in dtypes)
    bandwidth = spec.memory_gb_per_s * 1e9
    low_bandwidth, low_peak, least_pj = bandwidth, peak, spec.energy.xpu_pj_per_bit
    if isinstance(spec, DuplexSpec):
        # Both units may read side by side in co-processing, each at its own nominal bandwidth.
        low_bandwidth += spec.pim.bandwidth_multiple * bandwidth
        low_peak += spec.pim.bandwidth_multiple * bandwidth * spec.pim.flop_per_byte
        least_pj = min(least_pj, spec.pim.pj_per_bit)
    for split in sensible_splits(device, model):
        plan = device.compile(operators_of(model, split), split)
        assert plan.passive is not None
        assert plan.passive.idle_uw == round(split.devices * device.passive_w * 1e6)
        for decodes, context, prompt in ((DECODES, CONTEXT, 0), (1, 8000, 0), (0, 0, PROMPT)):
            step = take_step(plan, decodes=decodes, context=context, prompt=prompt)
            need = demand(model, step.counts, decodes=decodes, context=context, prompt=prompt)
            p, n = split.tensor, split.devices
            reads = need.xpu_bytes / p / bandwidth + need.pim_bytes / n / low_bandwidth
            computes = need.xpu_flops / n / peak + need.pim_flops / n / low_peak
            rounding = 1 - 1e-9
            assert step.seconds >= reads * rounding
            assert step.seconds >= computes * rounding
            bits = 8 * (need.xpu_bytes * min(split.data, decodes or 1) + need.pim_bytes)
            macs = (need.xpu_flops + need.pim_flops) / 2
            assert step.joules >= (bits * least_pj + macs * spec.energy.mac_pj) / PJ_PER_J * rounding


@pytest.mark.parametrize("name", device_names())
def test_every_device_names_its_sources(name: str) -> None:
    spec = load_device(name).spec
    assert spec.name == name
    assert len(spec.sources) >= 3


def duplex_spec(name: str) -> DuplexSpec:
    spec = load_device(name).spec
    assert isinstance(spec, DuplexSpec)
    return spec


def test_derived_figures_of_the_duplex_presets() -> None:
    spec = duplex_spec("duplex")
    assert spec.memory_gb_per_s == pytest.approx(5 * 670.4)
    # 32 modules of 512 multiply-accumulators at 650 MHz on each of 5 stacks, against 8 FLOP per nominal byte.
    peak = spec.pim.bandwidth_multiple * spec.memory_gb_per_s * 1e9 * spec.pim.flop_per_byte
    assert peak == pytest.approx(5 * 32 * 512 * 2 * 650e6, rel=0.01)
    # Cell, column decoder, bank group and global multiplexers, TSV, interposer.
    assert spec.energy.xpu_pj_per_bit == pytest.approx(0.44 + 1.01 + 1.23 + 0.5 + 0.3)
    low, high = (spec.energy.per_byte_pj(path) for path in (spec.pim.pj_per_bit, spec.energy.xpu_pj_per_bit))
    assert low / 8 == pytest.approx(1.92, abs=0.005)
    assert low / high == pytest.approx(0.536, abs=0.001)
    bank, group, logic = (duplex_spec(n).pim for n in ("duplex-bank-pim", "duplex-bankgroup-pim", "logic-pim"))
    assert (bank.bandwidth_multiple, bank.flop_per_byte) == (16, 1)
    assert (group.bandwidth_multiple, group.flop_per_byte) == (4, 8)
    assert logic == spec.pim


def test_the_xpu_alone_is_the_h100() -> None:
    told_apart = {"name", "title", "sources", "kind", "area_mm2", "tdp_w"}
    h100 = load_device("h100").spec.model_dump(exclude=told_apart)
    duplex = duplex_spec("duplex").model_dump(include=set(h100))
    assert h100 == duplex


def test_silicon_of_duplex_is_that_of_the_h100_and_five_logic_dies_units() -> None:
    h100, duplex = gpu("h100"), gpu("duplex")
    assert h100.area_mm2 == 814
    assert duplex.area_mm2 == pytest.approx(814 + 5 * 17.80)


def mixtral_plan(preset: str, **changes: object) -> CostPlan:
    split = Parallelism(1, 4, 4, "ep")
    device = gpu({"preset": preset, **changes})
    return device.compile(operators_of(load_model("mixtral-8x7b"), split, lm_head=False), split)


def test_qkv_of_mixtral_at_nominal_bandwidth() -> None:
    plan = mixtral_plan("h100", dram_efficiency=1.0)
    qkv = next(row for row in plan.rows if row.name == "qkv")
    rounding = 1e-5  # the sheet prints a tenth of a nanosecond
    assert qkv.time_fs(32) / 32 / 1e6 == pytest.approx(3861.4, rel=rounding)
    assert qkv.time_fs(32) / 1e6 == pytest.approx(123_564.3, rel=1e-6)


def test_ring_all_reduce_of_mixtral() -> None:
    split = Parallelism(1, 4, 4)

    def stage_ns(hop_us: float) -> float:
        links = Interconnect(450, hop_us, 400, 0.5, 15)
        (term,) = links.compile([AllReduce(64, 4096 * 2, 4)], split)
        return term.time_fs(32) / 1e6

    assert stage_ns(3.0) / 64 == pytest.approx(18_870, rel=1e-3)
    assert stage_ns(3.0) == pytest.approx(1.208e6, rel=1e-3)
    assert stage_ns(0.8) == pytest.approx(363_124.1, rel=1e-6)


def test_decode_attention_takes_four_times_the_bandwidth_on_logic_pim() -> None:
    gpu, duplex = mixtral_plan("h100").decode[0], mixtral_plan("duplex").decode[0]
    assert gpu.slope / duplex.slope == pytest.approx(4 * 0.64 / 0.77, rel=1e-6)
    assert duplex.dram_per_token / gpu.dram_per_token == pytest.approx(0.5357, rel=1e-3)


def test_decode_attention_on_bank_pim_is_compute_bound_with_grouped_queries() -> None:
    # Mixtral: 4 FLOP per byte of cache against 1 at the unit's peak; OPT: 1 FLOP per byte, bound by its efficiency.
    kv_bytes = load_model("mixtral-8x7b").kv_bytes_per_token / 4
    slope = mixtral_plan("duplex-bank-pim").decode[0].slope
    assert slope / FS_PER_S == pytest.approx(kv_bytes * 4 / (16 * 3.352e12), rel=1e-5)


def test_processor_selection_decides_what_runs_where() -> None:
    plans = {way: mixtral_plan("duplex", processor_selection=way) for way in ("per_layer", "co_processing", "pim")}
    assert [plans[way].overlap_attention for way in plans] == [False, True, False]
    terms = {way: plan.experts for way, plan in plans.items()}
    few, many = np.full((1, 8), 4), np.full((1, 8), 400)
    for tokens in (few, many):
        features = {way: term.layer_features(tokens)[0] for way, term in terms.items() if term}
        assert features["pim"][1] == 0
        assert features["per_layer"][0] <= features["pim"][0]
        assert features["per_layer"][:2].min() > 0 or features["per_layer"][2] > 0
    # 4 tokens per expert: Logic-PIM alone, in every mode that has the choice. 400: it is compute-bound, the xPU is not.
    assert terms["per_layer"] is not None
    assert terms["per_layer"].layer_features(few)[0][1] == 0
    assert terms["per_layer"].layer_features(many)[0][2] == 0


def test_an_expert_takes_equally_long_on_both_units_at_about_41_tokens() -> None:
    term = mixtral_plan("duplex").experts
    assert term is not None
    xpu, pim = (unit.time_fs(np.arange(1, 200)) for unit in term.units)
    assert np.argmax(pim > xpu) + 1 == pytest.approx(41, abs=2)
    ridge = np.argmax(np.diff(pim) > pim[0] / 50) + 1
    assert ridge == pytest.approx(12.5, abs=1.5)


def test_whole_experts_of_one_device_run_one_after_the_other() -> None:
    term = mixtral_plan("h100").experts
    assert term is not None
    alone = term.layer_features(np.array([[9, 0, 0, 0, 0, 0, 0, 0]]))[0][0]
    same_device = term.layer_features(np.array([[9, 9, 0, 0, 0, 0, 0, 0]]))[0][0]
    other_device = term.layer_features(np.array([[9, 0, 9, 0, 0, 0, 0, 0]]))[0][0]
    assert same_device == 2 * alone
    assert other_device == alone


def test_no_expert_with_tokens_is_free() -> None:
    term = mixtral_plan("duplex").experts
    assert term is not None
    one = np.eye(8, dtype=np.int64)
    assert (term.layer_features(one)[:, 0] > 0).all()
    assert (term.layer_features(np.zeros((1, 8), np.int64)) == 0).all()
    assert replace(term, selection="first").layer_features(one)[0, 2] == 0
