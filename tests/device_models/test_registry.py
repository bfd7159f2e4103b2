"""From documents to devices, and what is said of those that are not one."""

import re
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from pimserve.device_models import registry
from pimserve.device_models.catalogue import device_names
from pimserve.device_models.catalogue import merged as merge
from pimserve.device_models.duplex import Duplex
from pimserve.device_models.gpu import Gpu
from pimserve.errors import InputError

WHOLE: dict[str, Any] = {
    "kind": "gpu",
    "peak_tflop_per_s": {"fp16": 100},
    "memory_gb": 80,
    "memory_gb_per_s": "2 TB/s",
    "link_gb_per_s": 100,
    "link_latency_us": 1,
    "energy": {"xpu_pj_per_bit": 3, "row_activation_nj": 1, "mac_pj": 0.5},
}


def test_a_name_a_preset_with_changes_and_a_whole_document() -> None:
    assert registry.load_device("h100").spec == registry.load_device({"preset": "h100"}).spec
    changed = registry.load_device({"preset": "duplex", "pim": {"flop_per_byte": 4}, "memory_gb": "40 GB"})
    assert isinstance(changed, Duplex)
    assert changed.spec.pim.flop_per_byte == 4
    assert changed.spec.pim.bandwidth_multiple == 4  # what is not changed stays
    assert changed.memory_bytes == 40e9
    assert registry.load_device(WHOLE).spec.memory_gb_per_s == 2000
    assert registry.load_device(WHOLE).units == ("xpu",)
    assert changed.units == ("xpu", "logic_pim")


def test_changes_do_not_reach_the_catalogue() -> None:
    registry.load_device({"preset": "duplex", "pim": {"flop_per_byte": 4}})
    unchanged = registry.load_device("duplex")
    assert isinstance(unchanged, Duplex)
    assert unchanged.spec.pim.flop_per_byte == 8


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("h10", "unknown device 'h10'.*did you mean.*h100"),
        ({"preset": "../models/opt-66b"}, "unknown device"),
        ({}, "needs `preset` .*duplex.*or a full description with `kind`"),
        ({"kind": 3}, "needs `preset`"),
        ({"kind": "abacus"}, "unknown kind of device 'abacus' .*aimc, duplex, gpu"),
        ({"preset": "h100", "colour": "green"}, "device.colour: unknown key"),
        ({"preset": "h100", "dram_efficiency": 1.2}, "device.dram_efficiency: .*less than or equal to 1.*got 1.2"),
        ({"preset": "h100", "memory_gb_per_s": "3 GB"}, "device.memory_gb_per_s: '3 GB' is not a number in GB/s"),
        ({"preset": "h100", "peak_tflop_per_s": {"fp12": 1}}, "device.peak_tflop_per_s.fp12"),
        ({"preset": "h100", "kind": "duplex"}, "device.pim.bandwidth_multiple: is missing"),
        ({"preset": "duplex", "pim": {"name": "Logic PIM"}}, "device.pim.name"),
        ({"preset": "duplex", "processor_selection": "best"}, "device.processor_selection"),
        ({**WHOLE, "energy": {"mac_pj": -1}}, "device.energy.mac_pj: .*greater than or equal to 0"),
        ({**WHOLE, "energy": 3}, "device.energy: "),
        ({key: value for key, value in WHOLE.items() if key != "memory_gb"}, "device.memory_gb: is missing"),
        ({"preset": "aimc-realistic", "tires": 4}, "device.tires: unknown key"),
        ({"preset": "aimc-realistic", "kv_bits": 5}, "device.kv_bits: .*4, 8"),
        ({"preset": "aimc-realistic", "mapping": {"strategy": "best"}}, "device.mapping.strategy: .*greedy_in_order"),
        ({"preset": "aimc-realistic", "mapping": {"split_ffn": False}}, "mapping.split_ffn: false does not go with"),
        ({"preset": "aimc-realistic", "costs": {"model": "guess"}}, "device.costs"),
        ({"preset": "aimc-realistic", "power": {"idle_gating": 2}}, "device.power.idle_gating: .*1"),
        ({"preset": "aimc-realistic", "memory_gb": 80}, "device.memory_gb: unknown key"),
    ],
)
def test_mistakes_are_named_with_their_place(document: Any, says: str) -> None:
    with pytest.raises(InputError, match=re.compile(says, re.DOTALL)):
        registry.load_device(document)


def test_the_place_is_the_callers() -> None:
    with pytest.raises(InputError) as caught:
        registry.load_device({"preset": "h100", "memory_gb": -1}, "cluster.device")
    assert "cluster.device.memory_gb" in str(caught.value)


class Abacus(Gpu):
    UNIT = "beads"


def test_an_installed_package_adds_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    found = EntryPoints([EntryPoint("abacus", f"{__name__}:Abacus", "pimserve.devices")])
    monkeypatch.setattr(EntryPoint, "load", lambda _: Abacus)
    monkeypatch.setattr(registry, "entry_points", lambda **_: found)
    assert registry.device_class("abacus") is Abacus


@pytest.mark.parametrize("name", device_names())
def test_every_preset_loads(name: str) -> None:
    device = registry.load_device(name)
    assert device.spec.kind in ("gpu", "duplex", "aimc")
    assert device.units
    memory = device.spec.dram.gb if device.spec.kind == "aimc" else device.spec.memory_gb
    assert device.key_figures["memory_gb"] == pytest.approx(memory, rel=1e-12)
    assert device.key_figures["memory_gb_per_s"] > 0


@pytest.mark.parametrize("name", ["xpu", "link", "host"])
def test_a_second_unit_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(InputError, match=r"device\.pim\.name: must differ from xpu, link and host"):
        registry.load_device({"preset": "duplex", "pim": {"name": name}})


def test_a_section_that_becomes_another_kind_is_replaced() -> None:
    changed = registry.load_device({"preset": "aimc-realistic", "costs": {"model": "placeholder"}}).spec
    assert changed.costs.model == "placeholder"  # type: ignore[attr-defined]
    base = {"costs": {"model": "rates", "mvm_ns": 1}, "dram": {"gb": 1, "idle_w": 2}}
    replaced = merge(base, {"costs": {"model": "paper_table"}, "dram": {"gb": 3}})
    assert replaced == {"costs": {"model": "paper_table"}, "dram": {"gb": 3, "idle_w": 2}}
    same = merge(base, {"costs": {"model": "rates", "mvm_nj": 5}})
    assert same["costs"] == {"model": "rates", "mvm_ns": 1, "mvm_nj": 5}


def test_an_unknown_cost_model_is_named_by_its_key() -> None:
    with pytest.raises(InputError, match=r"costs\.model: must be one of 'rates', 'affine', 'placeholder'"):
        registry.load_device({"preset": "aimc-realistic", "costs": {"model": "bogus"}})
