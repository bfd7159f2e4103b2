"""Devices of one's own: changing one costs what it must, and what its description leaves open is stated."""

from typing import Any

import pytest

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.catalogue import device_names
from pimserve.device_models.duplex import Duplex
from pimserve.device_models.gpu_spec import GpuSpec
from pimserve.device_models.kernels import load_kernels
from pimserve.device_models.registry import load_device

# arXiv 2409.01141: processing of one of five stacks, mm2, at four times 670.4 GB/s and 8 FLOPs per byte.
STACKS, STACK_GB_PER_S = 5, 670.4
TSV_MM2, ALL_MM2 = 10.89, 17.80
PARTS_MM2 = {"TSVs": 10.89, "GEMM modules": 3.02, "buffers": 2.26, "softmax": 1.64}
GH100_MM2 = 814


def duplex(preset: str = "duplex", **changes: Any) -> Duplex:
    device = load_device({"preset": preset, **changes})
    assert isinstance(device, Duplex)
    return device


def test_area_coefficients_follow_from_the_papers_breakdown() -> None:
    area = duplex().spec.pim.area
    assert area is not None
    assert sum(PARTS_MM2.values()) == pytest.approx(ALL_MM2, abs=0.02)  # as printed, rounded one by one
    assert area.mm2_per_tb_per_s == pytest.approx(TSV_MM2 / (4 * STACK_GB_PER_S / 1e3), rel=1e-6)
    assert area.mm2_per_tflop_per_s == pytest.approx((ALL_MM2 - TSV_MM2) / (8 * 4 * STACK_GB_PER_S / 1e3), rel=1e-6)
    # The same silicon, whatever of the device it is used by.
    assert duplex("logic-pim").spec.pim.area == area


@pytest.mark.parametrize(
    ("multiple", "flop_per_byte", "gb_per_s"),
    [(4, 8, 3352), (4, 32, 3352), (8, 8, 3352), (8, 4, 3352), (1, 1, 3352), (4, 8, 8000)],
)
def test_silicon_follows_bandwidth_and_peak(multiple: float, flop_per_byte: float, gb_per_s: float) -> None:
    changes = {"bandwidth_multiple": multiple, "flop_per_byte": flop_per_byte}
    device = duplex(pim=changes, memory_gb_per_s=gb_per_s, xpu_area_mm2=GH100_MM2)  # else not known beside more GB/s
    bandwidth = multiple / 4 * gb_per_s / 3352
    logic = STACKS * (ALL_MM2 - TSV_MM2) * bandwidth * flop_per_byte / 8
    assert device.pim_logic_mm2 == pytest.approx(logic, rel=1e-6)
    assert device.pim_area_mm2 == pytest.approx(logic + STACKS * TSV_MM2 * bandwidth, rel=1e-6)
    assert device.area_mm2 == pytest.approx(GH100_MM2 + logic + STACKS * TSV_MM2 * bandwidth, rel=1e-6)


def test_units_in_dram_dies_take_what_was_published_of_them() -> None:
    bank, group = duplex("duplex-bank-pim"), duplex("duplex-bankgroup-pim")
    assert bank.pim_area_mm2 == pytest.approx(0.27 * 121 * 8 * STACKS, rel=1e-6)
    assert group.spec.pim.area == bank.spec.pim.area
    assert group.pim_area_mm2 == pytest.approx(2 * bank.pim_area_mm2, rel=1e-6)  # twice the FLOP/s
    # In a DRAM process the same FLOP/s take far more than on the logic die.
    assert group.pim_area_mm2 > 10 * (duplex().pim_area_mm2 or 0)


@pytest.mark.parametrize("preset", ["duplex", "logic-pim", "duplex-bank-pim", "duplex-bankgroup-pim"])
def test_power_follows_bandwidth_and_peak(preset: str) -> None:
    before = duplex(preset)
    pim = before.spec.pim
    nominal = pim.bandwidth_multiple * 3352e9
    reads = nominal * pim.dram_efficiency * before.spec.energy.per_byte_pj(pim.pj_per_bit) * 1e-12
    multiplies = nominal * pim.flop_per_byte / 2 * 0.46e-12
    assert before.pim_peak_w == pytest.approx(reads + multiplies)
    more_flops = duplex(preset, pim={"flop_per_byte": 4 * pim.flop_per_byte})
    assert more_flops.pim_peak_w == pytest.approx(reads + 4 * multiplies)
    wider = duplex(preset, pim={"bandwidth_multiple": 2 * pim.bandwidth_multiple})
    assert wider.pim_peak_w == pytest.approx(2 * before.pim_peak_w)
    assert wider.key_figures["pim_peak_w"] == wider.pim_peak_w
    assert wider.key_figures["pim_area_mm2"] == wider.pim_area_mm2


def test_a_stated_silicon_stands_in_place_of_the_formula() -> None:
    device = duplex(area_mm2=1000, pim={"flop_per_byte": 32})
    assert device.area_mm2 == 1000
    assert device.pim_area_mm2 == pytest.approx(5 * (10.89 + 4 * 6.91), rel=1e-6)
    assert duplex(xpu_area_mm2=400).area_mm2 == pytest.approx(400 + 5 * 17.80)
    bare = duplex().spec.model_dump(exclude={"xpu_area_mm2"})
    assert load_device(bare).area_mm2 is None


GPU = {
    "kind": "gpu",
    "name": "mine",
    "peak_tflop_per_s": {"bf16": 500},
    "memory_gb": 80,
    "memory_gb_per_s": "2 TB/s",
    "link_gb_per_s": 100,
    "link_latency_us": 1,
}
PIM = {**GPU, "kind": "duplex", "pim": {"bandwidth_multiple": 4, "flop_per_byte": 8}}


def spec_of(document: Any) -> Any:
    return load_device(document).spec


def test_a_whole_description_starts_from_the_preset_of_its_kind() -> None:
    usual, mine = spec_of("h100"), spec_of(GPU)
    for key in ("dram_efficiency", "compute_efficiency", "energy"):
        assert getattr(mine, key) == getattr(usual, key)
    assert mine.dram_efficiency == 0.77
    (said,) = mine.assumptions
    assert said.startswith("taken over from h100: dram_efficiency 0.77, ")
    assert "energy.mac_pj 0.46" in said
    # What says which device it is is its own: nothing of the preset.
    assert (mine.area_mm2, mine.tdp_w, mine.kernels, mine.sources) == (None, None, None, ())


def test_a_memory_side_unit_starts_from_logic_pim() -> None:
    usual, mine = spec_of("duplex"), spec_of(PIM)
    assert mine.pim.model_dump() == usual.pim.model_dump()
    assert mine.processor_selection == usual.processor_selection
    (said,) = mine.assumptions
    assert "pim.dram_efficiency 0.64, pim.pj_per_bit 1.8125" in said
    given = spec_of({**PIM, "pim": {**PIM["pim"], "dram_efficiency": 0.9, "area": {"mm2_per_tb_per_s": 1}}})  # type: ignore[dict-item]
    assert given.pim.dram_efficiency == 0.9
    assert (given.pim.area.mm2_per_tb_per_s, given.pim.area.mm2_per_tflop_per_s) == (1, 0.3221025)
    assert "pim.dram_efficiency" not in given.assumptions[0]
    assert "pim.area.mm2_per_tflop_per_s" in given.assumptions[0]


def test_chips_of_ones_own_have_no_free_memory_or_links() -> None:
    usual = spec_of("aimc-realistic")
    whole = usual.model_dump(
        mode="json", exclude_none=True, exclude={"area", "power", "link_pj_per_bit", "assumptions"}
    )
    whole["dram"] = {key: whole["dram"][key] for key in ("gb", "gb_per_s")}
    mine = spec_of({**whole, "name": "mine"})
    for key in ("efficiency", "first_access_ns", "pj_per_bit", "idle_w"):
        assert getattr(mine.dram, key) == getattr(usual.dram, key)
        assert f"dram.{key} " in mine.assumptions[0]
    assert (mine.area, mine.power, mine.link_pj_per_bit) == (usual.area, usual.power, usual.link_pj_per_bit)
    assert mine.assumptions[0] in load_device(mine.model_dump(mode="json", exclude_none=True)).spec.assumptions


def test_what_is_given_stays_and_is_not_named() -> None:
    mine = spec_of({**GPU, "dram_efficiency": 1.0, "energy": {"mac_pj": 0.1}})
    assert (mine.dram_efficiency, mine.energy.mac_pj, mine.energy.xpu_pj_per_bit) == (1.0, 0.1, 3.48)
    assert "dram_efficiency" not in mine.assumptions[0]
    assert "mac_pj" not in mine.assumptions[0]
    whole = spec_of("h100").model_dump(mode="json", exclude_none=True)
    assert spec_of({**whole, "name": "mine", "dram_efficiency": None}).dram_efficiency == 0.77
    assert spec_of({**whole, "name": "mine"}).assumptions == ()


@pytest.mark.parametrize(
    "document",
    [
        *device_names(),
        GPU,
        PIM,
        {"preset": "h100", "memory_gb_per_s": 6704, "peak_tflop_per_s": {"fp16": 100}},
        {"preset": "duplex", "area_mm2": 1000},
        {"preset": "h100", "kind": "duplex", "pim": PIM["pim"]},
    ],
    ids=str,
)
def test_a_description_written_out_is_the_same_device(document: Any) -> None:
    spec = spec_of(document)
    assert spec_of(spec.model_dump(mode="json", exclude_none=True)) == spec
    if isinstance(document, str):
        kind = spec_of({"preset": document, "name": "mine"})
        assert kind.assumptions == spec.assumptions


@pytest.mark.parametrize("preset", [name for name in device_names() if isinstance(load_device(name).spec, GpuSpec)])
def test_what_work_draws_follows_the_rates(preset: str) -> None:
    before = spec_of(preset)
    if before.power is None:
        pytest.skip("its power is not known")
    wide = spec_of({"preset": preset, "memory_gb_per_s": 2 * before.memory_gb_per_s})
    strong = spec_of(
        {"preset": preset, "peak_tflop_per_s": {key: 2 * peak for key, peak in before.peak_tflop_per_s.items()}}
    )
    idle = before.power.idle_w
    assert wide.power.decode_w == pytest.approx(idle + 2 * (before.power.decode_w - idle))
    assert wide.power.prefill_w == before.power.prefill_w
    assert strong.power.prefill_w == pytest.approx(idle + 2 * (before.power.prefill_w - idle))
    assert strong.power.decode_w == before.power.decode_w
    assert any(sentence.startswith("power.decode_w") for sentence in wide.assumptions)
    # So that a byte and a product cost what they cost.
    kernels = load_kernels(before.kernels, "trtllm").captured()
    cls = type(load_device(preset))
    costs = [
        (cls(spec, kernels).rates.pj_per_byte, cls(spec, kernels).rates.mac_pj("bf16"))
        for spec in (before, wide, strong)
    ]
    assert costs[1] == pytest.approx(costs[0])
    assert costs[2] == pytest.approx(costs[0])
    stated = spec_of({"preset": preset, "memory_gb_per_s": 2 * before.memory_gb_per_s, "power": {"decode_w": 999}})
    assert stated.power.decode_w == 999


GPUS = [name for name in device_names() if isinstance(load_device(name).spec, GpuSpec)]


def built(spec: GpuSpec) -> dict[str, float]:
    """What holds for a part as it is built, where it is known."""
    return {key: value for key in (spec.area_of_die, "tdp_w") if (value := getattr(spec, key)) is not None}


@pytest.mark.parametrize("preset", GPUS)
@pytest.mark.parametrize("key", ["memory_gb_per_s", "peak_tflop_per_s", "one peak"])
def test_silicon_and_tdp_of_a_faster_part_are_not_those_of_the_preset(preset: str, key: str) -> None:
    before = spec_of(preset)
    peaks = before.peak_tflop_per_s
    changes: dict[str, Any] = {
        "memory_gb_per_s": {"memory_gb_per_s": 2 * before.memory_gb_per_s},
        "peak_tflop_per_s": {"peak_tflop_per_s": {dtype: 2 * peak for dtype, peak in peaks.items()}},
        "one peak": {"peak_tflop_per_s": {"bf16": 4 * peaks["bf16"]}},
    }[key]
    rate = next(iter(changes))
    known = built(before)
    faster = spec_of({"preset": preset, **changes})
    assert built(faster) == {}
    assert load_device({"preset": preset, **changes}).area_mm2 is None
    said = " ".join(faster.caveats)
    assert all(f"cluster.device.{each}" in said for each in known)
    if before.power is not None:
        assert faster.power.idle_w == before.power.idle_w
        assert f"{rate} above {preset}'s: its passive power is that of {preset}" in said
    whole = {**known, "power": {"idle_w": before.power.idle_w}} if before.power is not None else known
    given = spec_of({"preset": preset, **changes, **whole})
    assert (built(given), given.caveats) == (known, ())
    assert spec_of({"preset": preset, **changes, "area_mm2": 900, "tdp_w": 1, "power": {"idle_w": 9}}).caveats == ()
    # Written out, as in results, it is the same device.
    assert spec_of(faster.model_dump(mode="json", exclude_none=True)) == faster


@pytest.mark.parametrize("preset", GPUS)
def test_a_slower_part_keeps_its_silicon_which_is_said(preset: str) -> None:
    before = spec_of(preset)
    slower = spec_of({"preset": preset, "memory_gb_per_s": before.memory_gb_per_s / 2})
    assert (built(slower), slower.caveats) == (built(before), ())
    assert any(" as it is built" in each for each in slower.assumptions) == bool(built(before))


def test_runs_warn_of_silicon_that_is_not_known() -> None:
    device = {"preset": "h100", "peak_tflop_per_s": {"bf16": 3956}}
    scenario = Scenario.model_validate({"model": "llama-3.1-8b", "cluster": {"device": device}})
    (pool,) = prepare(scenario).pools
    assert (pool.silicon_mm2, pool.tdp_w) == (None, None)
    assert set(spec_of(device).caveats) <= set(pool.replica.warnings)
    assert len(spec_of(device).caveats) == 2


def test_a_result_says_what_was_assumed() -> None:
    def facts(device: Any) -> dict[str, Any]:
        scenario = Scenario.model_validate({"model": "llama-3.1-8b", "cluster": {"device": device}})
        pools = prepare(scenario).pools
        return pools[0].facts

    assert facts(GPU)["assumptions"] == list(spec_of(GPU).assumptions)
    assert facts({"preset": "duplex", "area_mm2": 1000})["assumptions"] == [
        "area_mm2 1000 is stated, in place of what processor and logic_pim take"
    ]
    assert "assumptions" not in facts("h100")
    assert "assumptions" not in facts("duplex")


def test_passive_power_of_the_unit_follows_its_silicon() -> None:
    # Leakage and idle clock as of the attention units of aimc-realistic, on the paper's 17.80 mm2 of each stack.
    chip = load_device("aimc-realistic").spec
    per_mm2 = chip.power.attention_w / chip.area.attention_mm2  # type: ignore[attr-defined]
    pim = duplex().spec.pim
    assert pim.area is not None
    assert pim.passive_w_per_mm2 == pytest.approx(per_mm2) == pytest.approx(0.06)
    assert duplex().pim_passive_w == pytest.approx(per_mm2 * STACKS * ALL_MM2, rel=1e-6)
    assert duplex().passive_w == pytest.approx(115 + 5.34, rel=1e-4)
    assert duplex("logic-pim").passive_w == duplex().passive_w
    faster = duplex(pim={"flop_per_byte": 32})
    assert faster.pim_passive_w == pytest.approx(per_mm2 * STACKS * (TSV_MM2 + 4 * (ALL_MM2 - TSV_MM2)), rel=1e-6)
    assert duplex(pim={"bandwidth_multiple": 8}).pim_passive_w == pytest.approx(2 * duplex().pim_passive_w)
    assert duplex(pim={"flop_per_byte": 32, "passive_w": 7}).passive_w == pytest.approx(122)
    assert faster.key_figures["passive_w"] == faster.passive_w
    assert faster.key_figures["pim_passive_w"] == faster.pim_passive_w
    # In a DRAM process what computes takes more silicon, and is taken to draw the same per FLOP/s.
    bank, group = duplex("duplex-bank-pim"), duplex("duplex-bankgroup-pim")
    logic_w = per_mm2 * STACKS * (ALL_MM2 - TSV_MM2)
    assert group.pim_passive_w == pytest.approx(logic_w, rel=1e-5)
    assert bank.pim_passive_w == pytest.approx(logic_w / 2, rel=1e-5)
