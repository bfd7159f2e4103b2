"""Tiers, tiles and units of another size or number cost what they must: by derivations, and by laws."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.aimc.aimc_spec import AimcSpec
from pimserve.device_models.catalogue import device_names
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError

SCALED = ["aimc-realistic", "aimc-realistic-hbm3e", "aimc-silicon"]
OF_ONE_SIZE = ["aimc-paper-table", "aimc-placeholder", "aimc-nand"]
SIZES = st.sampled_from([64, 128, 256, 384, 512, 1024, 2048])


def spec(preset: str = "aimc-realistic", **changes: Any) -> AimcSpec:
    found = load_device({"preset": preset, **changes}).spec
    assert isinstance(found, AimcSpec)
    return found


def square(size: int, preset: str = "aimc-realistic", **changes: Any) -> AimcSpec:
    return spec(preset, tier_rows=size, tier_cols=size, **changes)


def test_formulas_are_the_derivations_of_the_figures() -> None:
    # HERMES: 13.4 nJ and 133 ns for 256 x 256, of which cells are 1.3 nJ; one node on the periphery is x 0.6.
    periphery, cells = 12.1, 1.3
    for preset, node in (("aimc-silicon", 1.0), ("aimc-realistic", 0.6)):
        whole = 2 * periphery * node + 4 * cells
        assert spec(preset).costs.mvm_nj == pytest.approx(whole, rel=0.015)
        scaling = spec(preset).scaling
        assert scaling is not None
        assert scaling.cell_share == pytest.approx(4 * cells / whole, abs=1e-3)
        assert scaling.settling_share == pytest.approx(2 * (150 - 133) / 150, abs=1e-3)
        assert square(256, preset).costs.mvm_nj == pytest.approx(periphery * node + cells, rel=0.015)
        assert square(256, preset).costs.mvm_ns == pytest.approx(133, rel=1e-3)
        # 256 converters of 4 um by 0.61 mm, shrunk by 0.8, and a line-select device of 2 um2 for each row and column.
        assert square(256, preset).area.tile_mm2 == pytest.approx(256 * 0.004 * 0.61 * 0.8, rel=1e-3)
        assert square(256, preset).area.per_tier_mm2 == pytest.approx((256 + 256) * 2e-6, rel=0.03)
        # Measured silicon again: 9.76 TOPS/W.
    assert 2 * 256**2 / square(256, "aimc-silicon").costs.mvm_nj / 1000 == pytest.approx(9.76, rel=0.005)
    large = square(1024)
    assert large.costs.mvm_nj == pytest.approx(4 * periphery * 0.6 + 16 * cells, rel=0.02)
    assert large.area.tile_mm2 == pytest.approx(2.0)
    assert large.costs.mvm_ns == pytest.approx(150 + 34, rel=1e-3)
    # A share of the active power, 5 % in round figures.
    active_w = [each.costs.mvm_nj / each.costs.mvm_ns for each in (spec(), large)]
    assert large.power.tile_mw / spec().power.tile_mw == pytest.approx(active_w[1] / active_w[0])


def test_a_hop_over_more_tiles_or_larger_ones_takes_more() -> None:
    costs, more, larger = (each.costs for each in (spec(), spec(tiles=2048), square(1024)))
    assert costs.model == more.model == larger.model == "rates"
    # 8 stages of 1.25 ns and 8 mm become 16 and 16 mm.
    assert (more.hop_ns, more.hop_pj_per_byte, more.hop_nj) == pytest.approx((20, 10, 0.2))
    # 8 stages, over 8 mm x sqrt(2): 8 x (8 bit x 0.06 x 1.41 + 0.15) = 6.63 for 5.04.
    assert larger.hop_ns == costs.hop_ns
    assert larger.hop_pj_per_byte / costs.hop_pj_per_byte == pytest.approx(8 * (0.48 * 2**0.5 + 0.15) / 5.04)


@pytest.mark.parametrize("preset", [*SCALED, *OF_ONE_SIZE])
def test_a_preset_keeps_its_figures_at_its_own_size(preset: str) -> None:
    own = spec(preset)
    again = spec(preset, tier_rows=own.tier_rows, tier_cols=own.tier_cols, tiles=own.tiles)
    assert again == own
    assert {*SCALED, *OF_ONE_SIZE} == {name for name in device_names() if name.startswith("aimc-")}


@pytest.mark.parametrize("preset", SCALED)
@given(st.data())
def test_more_of_anything_costs_silicon_energy_and_time(preset: str, data: st.DataObject) -> None:
    rows, cols, tiles = data.draw(SIZES), data.draw(SIZES), data.draw(st.sampled_from([128, 512, 1024]))
    small = spec(preset, tier_rows=rows, tier_cols=cols, tiles=tiles)
    more = {"tier_rows": rows, "tier_cols": cols, "tiles": tiles}
    grown = data.draw(st.sampled_from(sorted(more)))
    large = spec(preset, **{**more, grown: 2 * more[grown]})
    assert large.area_mm2 > small.area_mm2
    assert large.passive_w > small.passive_w
    hop_bytes = 512
    assert large.costs.hop(hop_bytes).nj > small.costs.hop(hop_bytes).nj
    if grown != "tiles":
        assert large.costs.mvm_nj > small.costs.mvm_nj
        assert large.costs.mvm_ns > small.costs.mvm_ns
        # Twice the weights, and no more than twice of anything.
        assert large.costs.mvm_nj <= 2 * small.costs.mvm_nj
        assert large.area.tile_mm2 <= 2 * small.area.tile_mm2
        # Loading takes as long for each weight, one tier after the other.
        loads = [each.programming_facts(each.tier_rows * each.tier_cols, 1) for each in (small, large)]
        assert loads[0] is not None
        assert loads[1] is not None
        assert loads[1]["time_s"] == pytest.approx(2 * loads[0]["time_s"])
        assert loads[1]["joules"] == pytest.approx(2 * loads[0]["joules"])


@pytest.mark.parametrize("figure", ["tiers", "digital_units", "attention_units"])
def test_tiers_and_units_take_their_silicon_and_power(figure: str) -> None:
    own = spec()
    twice = spec(**{figure: 2 * getattr(own, figure)})
    per = {"tiers": own.tiles * 0.002, "digital_units": 1.25, "attention_units": 5}
    watts = {"tiers": 0, "digital_units": 0.1, "attention_units": 0.3}
    assert twice.area_mm2 - own.area_mm2 == pytest.approx(per[figure] * getattr(own, figure))
    assert twice.passive_w - own.passive_w == pytest.approx(watts[figure] * getattr(own, figure))


def test_what_is_given_stays_and_what_follows_is_said() -> None:
    found = square(1024, costs={"mvm_nj": 33}, area={"tile_mm2": 1.7}, power={"tile_mw": 9})
    assert (found.costs.mvm_nj, found.area.tile_mm2, found.power.tile_mw) == (33, 1.7, 9)
    assert found.costs.mvm_ns == square(1024).costs.mvm_ns
    (said,) = [each for each in found.assumptions if "1024 x 1024" in each]
    assert "costs.mvm_ns 184" in said
    assert "mvm_nj" not in said
    assert "docs/aimc.md" in said
    assert not any("1024" in each for each in spec().assumptions)
    # A description that is written out whole, as in results, is taken as it is.
    whole = load_device(found.model_dump(mode="json", exclude_none=True)).spec
    assert whole == found


@pytest.mark.parametrize("preset", OF_ONE_SIZE)
def test_figures_of_one_size_are_refused_for_others(preset: str) -> None:
    with pytest.raises(InputError, match=r"device\.tier_cols: the figures of .* hold for tiers of 512 x 512 only"):
        spec(preset, tier_cols=1024)
    with pytest.raises(InputError, match=r"device\.tier_rows: .* give costs\.mvm_ns, area\.tile_mm2 too"):
        spec(preset, tier_rows=256, costs={"mvm_nj": 5})
    own = {"costs": {"mvm_ns": 90, "mvm_nj": 5}, "area": {"tile_mm2": 0.5}}
    assert spec(preset, tier_rows=256, **own).costs.mvm_nj == 5


def test_an_own_description_has_the_silicon_of_its_size() -> None:
    document = spec().model_dump(mode="json", exclude_none=True)
    for key in ("area", "power", "scaling", "assumptions"):
        del document[key]
    document |= {"name": "mine", "tier_rows": 1024, "tier_cols": 1024}
    found = load_device(document).spec
    assert isinstance(found, AimcSpec)
    assert found.area == square(1024).area
    assert found.power == square(1024).power
    assert found.costs == spec().costs  # as written


@pytest.mark.parametrize(
    ("changes", "figures"),
    [
        ({"costs": {"attention_tflop_per_s": 40}}, {"area.attention_mm2": 50, "power.attention_w": 3}),
        ({"costs": {"norm_elements_per_ns": 20.48}}, {"area.digital_mm2": 2.5, "power.digital_w": 0.2}),
        ({"costs": {"mvm_ns": 15}}, {"area.tile_mm2": 10, "power.tile_mw": 70}),
        ({"costs": {"mvm_nj": 40}}, {"power.tile_mw": 14}),
        ({"dram": {"gb_per_s": 6140}}, {"dram.idle_w": 40}),
    ],
)
def test_faster_parts_take_silicon_and_passive_power(changes: dict[str, Any], figures: dict[str, float]) -> None:
    own, fast = spec(), spec(**changes)

    def at(of: AimcSpec, path: str) -> float:
        section, key = path.split(".")
        return float(getattr(getattr(of, section), key))

    every = ["tile_mm2", "digital_mm2", "attention_mm2", "other_mm2"]
    paths = [f"area.{key}" for key in every] + [f"power.{key}" for key in ("tile_mw", "digital_w", "attention_w")]
    for path in (*paths, "dram.idle_w"):
        assert at(fast, path) == pytest.approx(figures.get(path, at(own, path)))
    assert fast.passive_w > own.passive_w
    (said,) = set(fast.warnings(passive_power=False)) - set(own.warnings(passive_power=False))
    assert all(f"{path} {value:g}" in said for path, value in figures.items())
    # What is given stays, and a written description is the same chip.
    stated: dict[str, Any] = {section: dict(keys) for section, keys in changes.items()}
    for path in figures:
        section, key = path.split(".")
        stated.setdefault(section, {})[key] = at(own, path)
    assert (spec(**stated).area, spec(**stated).power, spec(**stated).dram.idle_w) == (own.area, own.power, 4)
    assert load_device(fast.model_dump(mode="json", exclude_none=True)).spec == fast


def test_slower_parts_keep_their_silicon() -> None:
    own = spec()
    slow = spec(costs={"attention_tflop_per_s": 1, "mvm_ns": 600, "add_elements_per_ns": 1}, dram={"gb_per_s": 100})
    assert (slow.area_mm2, slow.passive_w) == (own.area_mm2, own.passive_w)


def test_quicker_hops_are_told_as_not_paid_for() -> None:
    quick = spec(costs={"hop_ns": 1})
    assert any("costs.hop_ns 1 (there 10): give area.other_mm2, power.other_w" in each for each in quick.assumptions)
    paid = spec(costs={"hop_ns": 1}, area={"other_mm2": 80}, power={"other_w": 12})
    assert paid.assumptions == spec().assumptions
