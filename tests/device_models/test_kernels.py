"""Measured kernels: the catalogue's sets, what stands in for what, and the terms that they compile to."""

import pytest

from pimserve.device_models.catalogue import kernel_names, load_model
from pimserve.device_models.device import Demand
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.gpu import Gpu
from pimserve.device_models.kernels import FS_PER_US, load_kernels, stand_in
from pimserve.device_models.operators import DecodeAttention, Experts, Gemm, Parallelism, PrefillAttention
from pimserve.device_models.plan import FS_PER_S, HOST, CostPlan
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError

ALONE = Parallelism()


def gpu(name: str, backend: str = "vllm", changes: dict[str, object] | None = None) -> Gpu:
    device = load_device(name)
    assert isinstance(device, Gpu)
    assert device.spec.kernels is not None
    return Gpu(device.spec, load_kernels(device.spec.kernels, backend, changes))


def fitted(name: str, model: str = "llama-3.1-70b", **demand: object) -> CostPlan:
    return load_device(name).fit(Demand(load_model(model), Parallelism(1, 4, 4), **demand)).plan  # type: ignore[arg-type]


@pytest.mark.parametrize("name", kernel_names())
def test_a_set_says_whose_it_is_and_from_where(name: str) -> None:
    gpu, backend = name.split("-")
    kernels = load_kernels(gpu, backend)
    assert (kernels.gpu, kernels.backend) == (gpu, backend)
    assert kernels.version
    assert len(kernels.sources) >= 3
    assert set(kernels.collectives.all_reduce) == {2, 4, 8}


@pytest.mark.parametrize("name", kernel_names())
def test_no_all_reduce_is_faster_than_the_links(name: str) -> None:
    gpu, backend = name.split("-")
    link = load_device(gpu).spec.link_gb_per_s
    for n, algorithms in load_kernels(gpu, backend).collectives.all_reduce.items():
        # With sums in the switch, each GPU still sends its buffer once and receives it once.
        assert all(each.bus_gb_per_s <= 2 * (n - 1) / n * link for each in algorithms)


def test_a_gemm_is_its_roofs_its_launch_and_its_activations() -> None:
    device = gpu("h100", "trtllm")
    kernel = device.rates.gemm_kernel("fp8")
    m, k, n = 4096, 4096, 8192
    term = device.gemm(Gemm("x", "fc", 1, k, n, 1.0, "fp8"), ALONE)
    compute_s = 2 * m * n * k / (kernel.compute * 1978.9e12)
    activations_s = kernel.activation_passes * 2 * m * k / 3352e9
    assert term.time_fs(m) / FS_PER_S == pytest.approx(compute_s + activations_s + kernel.launch_us * 1e-6, rel=1e-6)
    read_s = k * n / (kernel.memory * 3352e9)
    row_s = read_s * kernel.reread / 128 + 2 * (k + n) / (kernel.memory * 3352e9) + activations_s / m
    assert term.time_fs(1) / FS_PER_S == pytest.approx(read_s + row_s + kernel.launch_us * 1e-6, rel=1e-6)


def test_small_matrices_take_as_long_as_their_depth() -> None:
    device = gpu("b200")
    kernel = device.rates.gemm_kernel("bf16")
    for k in (2048, 4096):
        term = device.gemm(Gemm("x", "fc", 1, k, 64, 2.0, "bf16"), ALONE)
        assert term.time_fs(1) == pytest.approx((kernel.launch_us + kernel.depth_us * k / 1024) * FS_PER_US, rel=1e-6)


def test_decode_attention_costs_a_launch_and_a_fixed_part_of_each_sequence() -> None:
    device = gpu("h100")
    kernel = device.rates.decode_kernel("bf16")
    kv_bytes = 2 * 8 * 128 * 2
    plan = device.compile([DecodeAttention(1, kv_bytes, 4 * 32 * 128, None, "bf16")], ALONE)
    requests, context = 32, 32 * 4096
    measured = evaluate(plan, shape_of(plan, requests, context)).duration_fs
    tokens = context + requests * kernel.sequence_tokens
    expected = kernel.launch_us * 1e-6 + tokens * kv_bytes / (kernel.memory * 3352e9)
    assert measured / FS_PER_S == pytest.approx(expected, rel=1e-5)


def test_prompts_share_one_launch_of_attention() -> None:
    device = gpu("h100")
    plan = device.compile([PrefillAttention(1, 32, 8, 128, 128, 2.0)], ALONE)
    (launch,) = plan.rows
    assert launch.rows == "prompts"
    assert launch.time_fs(5) == launch.time_fs(1) > launch.time_fs(0) == 0


def test_prefill_attention_ramps_with_length() -> None:
    device = gpu("h100")
    (term,) = device.compile([PrefillAttention(1, 32, 8, 128, 128, 2.0)], ALONE).prefill
    peak = 989.4e12
    shares = [2 * 32 * 128 * length**2 / peak / (term.cost((length, 0))[0] / FS_PER_S) for length in (512, 4096, 32768)]
    assert shares[0] < 0.6 * shares[1] < 0.6 * shares[2] < 0.6 * device.rates.prefill_kernel().compute


def test_experts_cost_launches_sorting_and_their_weights() -> None:
    device = gpu("h100", "trtllm")
    kernel = device.rates.moe_kernel("fp8_block")
    op = Experts(1, 256, 8, 7168, 2048, 3, 1.0, "fp8_block", 1, 1, 256)
    (launch,) = device.compile([op], ALONE).rows
    expected_us = kernel.launch_us + 256 * kernel.expert_us
    row_us = kernel.row_passes * 8 * 7168 * 2 / 3352e3
    assert launch.time_fs(100) / FS_PER_US == pytest.approx(expected_us + 100 * row_us, rel=1e-6)


def test_what_was_not_measured_takes_the_nearest() -> None:
    assert stand_in(("bf16", "fp8"), "fp8_block") == "fp8"
    assert stand_in(("bf16", "fp8"), "mxfp4") == "fp8"
    assert stand_in(("bf16",), "fp16") == "bf16"
    with pytest.raises(InputError, match="no measured kernel for bf16"):
        stand_in(("fp8",), "bf16")


def test_stand_ins_are_said() -> None:
    model = load_model("gpt-oss-120b")
    fit = load_device("h100").fit(Demand(model, Parallelism(1, 4, 4), backend="vllm"))
    assert any("mxfp4" in sentence for sentence in fit.warnings)
    assert fit.costs["stand_ins"]
    same = load_device("h100").fit(Demand(load_model("llama-3.1-70b"), Parallelism(1, 4, 4), backend="vllm"))
    assert same.costs["stand_ins"] == []
    assert same.warnings == ()


def test_a_captured_launch_replaces_that_of_a_call_alone() -> None:
    kernels = load_kernels("h100", "trtllm")
    assert kernels.captured().gemm["fp8"].launch_us == kernels.gemm["fp8"].captured_us
    assert kernels.captured().gemm["bf16"] == kernels.gemm["bf16"]


def test_changes_are_laid_over_the_catalogue_and_said() -> None:
    changed = load_kernels("h100", "vllm", {"step": {"host_us": 0}})
    assert changed.step.host_us == 0
    assert changed.step.layer_us == load_kernels("h100", "vllm").step.layer_us
    assert changed.version.endswith("(changed)")
    same = {"step": {"host_us": load_kernels("h100", "vllm").step.host_us}}
    assert load_kernels("h100", "vllm", same) == load_kernels("h100", "vllm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": {"host": 3}}, "costs.kernels.step.host: unknown key"),
        ({"gemm": {"bf16": {"compute": 2}}}, "costs.kernels.gemm.bf16.compute"),
        ({"gpu": "a100"}, "costs.kernels.gpu"),
        ({"gemm": 3}, "costs.kernels.gemm"),
        ({"collectives": {"all_reduce": {8: []}}}, "costs.kernels.collectives.all_reduce.8"),
    ],
)
def test_bad_changes_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_kernels("h100", "vllm", changes)


def test_a_device_or_backend_without_measurements_is_refused() -> None:
    with pytest.raises(InputError, match="no measured kernels for h100 with sglang"):
        load_kernels("h100", "sglang")
    bare = {key: value for key, value in load_device("h100").spec.model_dump().items() if key != "kernels"}
    with pytest.raises(InputError, match="names no measured kernels"):
        load_device(bare).fit(Demand(load_model("llama-3.1-8b"), ALONE, backend="vllm"))


def test_the_host_is_in_every_measured_plan_and_in_no_ideal_one() -> None:
    for name in ("h100", "duplex", "aimc-realistic"):
        demand = Demand(load_model("gpt2-medium"), ALONE)
        ideal = load_device(name).fit(demand).plan
        measured = load_device(name).fit(Demand(load_model("gpt2-medium"), ALONE, backend="vllm")).plan
        assert not any(term.unit == HOST for term in ideal.rows)
        assert ideal.frontend_ps == 0
        host = load_kernels("h100", "vllm").step
        assert sum(term.time_fs(4) for term in measured.rows if term.rows == "requests") == pytest.approx(
            (host.host_us + 4 * host.host_request_us) * FS_PER_US
        )
        assert measured.frontend_ps == round(host.frontend_us * 1e6)


def test_aimc_says_that_only_its_host_is_measured() -> None:
    fit = load_device("aimc-realistic").fit(Demand(load_model("gpt2-medium"), ALONE, backend="vllm"))
    assert fit.costs["setting"] == "measured"
    assert any("only the host" in sentence for sentence in fit.warnings)


def test_the_processor_of_duplex_is_that_of_the_gpu() -> None:
    h100, duplex = (fitted(name, backend="vllm") for name in ("h100", "duplex"))
    assert [term for term in h100.rows if term.category == "fc"] == [t for t in duplex.rows if t.category == "fc"]
    assert h100.prefill == duplex.prefill
    pim, ideal = duplex.decode[0], fitted("duplex").decode[0]
    assert (pim.unit, pim.slope) == (ideal.unit, ideal.slope)  # projected either way
    (launch,) = [term for term in duplex.rows if term.rows == "decodes"]
    assert launch.unit == pim.unit
    assert launch.pieces[0][1] == 0


def test_work_of_logic_pim_costs_what_its_circuits_take() -> None:
    measured, ideal = (fitted("duplex", "mixtral-8x7b", backend=backend) for backend in ("vllm", None))
    assert measured.decode == ideal.decode
    assert measured.experts is not None
    assert ideal.experts is not None
    units = [plan.experts.units for plan in (measured, ideal) if plan.experts is not None]
    assert units[0][1].token_compute_pj == units[1][1].token_compute_pj
    assert units[0][0].token_compute_pj > units[1][0].token_compute_pj


def test_the_score_matrix_takes_at_least_twice_the_causal_half() -> None:
    device = gpu("h100")
    whole = Gpu(device.spec.model_copy(update={"prefill_attention": "score_matrix"}), device.kernels)
    op = PrefillAttention(1, 32, 8, 128, 128, 2.0)
    for length in (256, 1024, 8192):
        causal, square = (each.prefill_attention(op, ALONE).cost((length, 0))[0] for each in (device, whole))
        assert square >= 2 * causal * (1 - 1 / length)


def test_a_stand_in_lends_its_share_of_its_own_peak() -> None:
    device = gpu("b200", "trtllm")
    kernel = device.rates.moe_kernel("nvfp4")  # 8-bit experts
    op = Experts(1, 8, 2, 4096, 14336, 3, 0.5625, "nvfp4", 1, 1, 8)
    (up, *_), row_fs = device.xpu_experts(op).terms, 2 * 2 * 4096 * 14336 / (kernel.compute * 4500e12) * FS_PER_S
    assert up[0][1] == pytest.approx(row_fs, rel=1e-6)


def test_a_changed_gpu_says_that_it_is_not_the_one_that_was_timed() -> None:
    demand = Demand(load_model("llama-3.1-8b"), ALONE, backend="vllm")
    assert load_device("h100").fit(demand).warnings == ()
    for change in ({"link_gb_per_s": 32}, {"memory_gb_per_s": 10_000}, {"peak_tflop_per_s": {"fp16": 2000}}):
        fit = load_device({"preset": "h100", **change}).fit(demand)
        assert any("measured on h100" in sentence for sentence in fit.warnings)


def test_power_gives_the_energy_of_bytes_and_products() -> None:
    device = gpu("h100")
    power = device.spec.power
    assert power is not None
    kernel = device.rates.gemm_kernel("bf16")
    term = device.gemm(Gemm("x", "fc", 1, 8192, 8192, 2.0, "bf16"), ALONE)
    # Bound by memory: bytes at the rate that is reached, at the power of decoding.
    seconds = 2 * 8192 * 8192 / (3352e9 * kernel.memory)
    assert term.energy.dram_const / 1e12 / seconds == pytest.approx(power.decode_w - power.idle_w, rel=1e-6)
    per_row_s = 2 * 8192 * 8192 / (989.4e12 * kernel.compute)
    assert term.energy.compute_per_row / 1e12 / per_row_s == pytest.approx(power.prefill_w - power.idle_w, rel=1e-4)
    passive = fitted("h100", backend="vllm").passive
    assert passive is not None
    assert passive.idle_uw == 4 * power.idle_w * 10**6
