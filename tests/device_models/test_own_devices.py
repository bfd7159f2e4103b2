"""Devices of one's own: changing one costs what it must, and what its description leaves open is stated."""

from typing import Any

import pytest

from pimserve.device_models.duplex import Duplex
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
    device = duplex(pim=changes, memory_gb_per_s=gb_per_s)
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
