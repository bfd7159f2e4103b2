"""The description of a 3D AIMC chip: what it is built of, what its operations cost, and what no simulator can know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pimserve.device_models.aimc.chip import Chip, Link
from pimserve.device_models.aimc.geometry import Growth, ReadoutScaling
from pimserve.device_models.aimc.mapping import MappingSpec
from pimserve.device_models.aimc.operation_costs import Dram, NonNegative, Positive, UnitCosts
from pimserve.device_models.aimc.rates import Rates
from pimserve.device_models.device import DeviceSpec
from pimserve.errors import InputError

Count = Annotated[int, Field(gt=0, le=2**16)]
Share = Annotated[float, Field(ge=0, le=1)]

DEMONSTRATED_TIERS = 8  # stacks of 2 decks (3D XPoint) to 8 layers (vertical RRAM) were built


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChipPower(_Part):
    """What a chip draws whether it works or not; its memory's idle power comes on top."""

    tile_mw: NonNegative = 0.0
    digital_w: NonNegative = Field(description="one digital unit")
    attention_w: NonNegative = Field(description="one attention unit")
    other_w: NonNegative = Field(0.0, description="the rest of a chip: interfaces, clock, control")
    idle_gating: Share = Field(1.0, description="share of it that a chip without work draws; 1: no gating")


class Area(_Part):
    """Silicon of a chip, mm2; its memory is not counted."""

    tile_mm2: NonNegative = 1.0
    per_tier_mm2: NonNegative = Field(0.0, description="added by each tier of a tile")
    digital_mm2: NonNegative = 1.25
    attention_mm2: NonNegative = 5.0
    other_mm2: NonNegative = 0.0


class Programming(_Part):
    """Writing weights: program and verify, one tier of a tile at a time, all tiles side by side."""

    nj_per_weight: NonNegative
    iterations: Positive = Field(description="pulses that a device needs")
    iteration_us: Positive
    devices_per_weight: Count = 2
    parallel_weights: Count = Field(description="weights of a tile that are written at once")
    endurance_pulses: Positive = Field(description="pulses that a device survives")
    every_days: Positive = Field(30.0, description="interval after which drift asks for new weights")

    def tier_s(self, weights: int) -> float:
        """Time to write a tier of so many weights."""
        pulses = weights * self.iterations * self.devices_per_weight
        return pulses * (self.iteration_us * 1e-6 / self.parallel_weights)


class Noise(_Part):
    """What decides accuracy. Declared and passed on; it affects neither time nor energy."""

    weight_noise: NonNegative = Field(description="standard deviation of a weight, share of the largest")
    drift_exponent: NonNegative = Field(description="nu of G(t) = G0 (t / t0)^-nu")
    drift_s: NonNegative = Field(0.0, description="time since programming")
    weight_bits: Positive
    input_output_bits: Count


class AimcSpec(DeviceSpec):
    """A 3D AIMC preset: one chip and its memory. Chips of a replica share the model's layers, or its experts."""

    default_preset: ClassVar[str | None] = "aimc-realistic"
    taken_over: ClassVar[tuple[str, ...]] = (
        "power",
        "area",
        "link_pj_per_bit",
        "dram.efficiency",
        "dram.first_access_ns",
        "dram.pj_per_bit",
        "dram.idle_w",
    )

    kind: Literal["aimc"] = "aimc"
    tiles: Count
    tiers: Count = Field(description="crossbars in a tile, of which one computes at a time")
    tier_rows: Count = 512
    tier_cols: Count = 512
    digital_units: Count
    attention_units: Count
    costs: UnitCosts
    dram: Dram
    power: ChipPower
    area: Area = Area()
    scaling: ReadoutScaling | None = Field(
        None, description="how figures of an MVM and of a tile follow the size of a tier; without, that is not known"
    )
    programming: Programming | None = None
    noise: Noise | None = None
    kv_bits: Literal[4, 8, 16] = Field(8, description="of an element of the KV cache, whatever the model's kv_dtype")
    link_pj_per_bit: NonNegative = Field(0.0, description="between chips")
    partial_sums: Literal["pool", "tile"] = Field(
        "tile", description="sums over row blocks run on the digital units, or beside the tiles"
    )
    attention_split: Literal["sequence", "heads"] = Field(
        "heads", description="a unit takes the attention of a whole sequence, or all units share it by heads"
    )
    mapping: MappingSpec = MappingSpec()
    spread: Literal["layers", "experts"] | None = Field(
        None,
        description="chips of a replica hold layers one after the other, or each a share of all experts, which are cut "
        "over several chips where one is too small; left out: layers, or experts where no number of chips holds the "
        "layers",
    )
    assumptions: tuple[str, ...] = Field((), description="sentences that belong with every result")

    @model_validator(mode="after")
    def _experts_can_be_separated(self) -> Self:
        if self.mapping.strategy == "moe_separated" and not self.mapping.split_ffn:
            raise ValueError("mapping.split_ffn: false does not go with mapping.strategy: moe_separated")
        return self

    def following(self, base: DeviceSpec, given: Mapping[str, Any]) -> tuple[Self, tuple[str, ...]]:
        """Time and energy of an MVM, silicon and passive power of parts, and hops, follow tiers, tiles and rates.

        Raises:
            InputError: another size of a tier, where it is not known what an MVM of that size takes.
        """
        assert isinstance(base, AimcSpec)
        growth = Growth(self.tier_rows / base.tier_rows, self.tier_cols / base.tier_cols, self.tiles / base.tiles)
        factors = self._tier_factors(base, given, growth)
        rates = Rates(self.costs, self.dram, base.costs, base.dram)
        of_rates = rates.factors(factors)
        resized = growth.tiles != 1 or bool(factors)
        factors |= of_rates
        if resized or of_rates:
            tile_mm2 = factors.get(
                "area.tile_mm2", self.area.tile_mm2 / base.area.tile_mm2 if base.area.tile_mm2 else 1
            )
            energy = growth.hop_energy(tile_mm2)
            factors |= {"costs.hop_ns": growth.stages(), "costs.hop_nj": energy, "costs.hop_pj_per_byte": energy}
        written = {
            f"{section}.{key}" for section in ("costs", "dram", "power", "area") for key in (given.get(section) or {})
        }
        sections: dict[str, dict[str, float]] = {}
        for path, factor in factors.items():
            section, key = path.split(".")
            usual = getattr(getattr(self, section), key, None)
            if usual is not None and factor != 1 and path not in written:
                sections.setdefault(section, {})[key] = usual * factor
        unpriced = rates.unpriced(base.name, written)
        if not sections:
            return self, unpriced
        changes = {f"{section}.{key}": value for section, to in sections.items() for key, value in to.items()}
        own, usual_ones = rates.changed([path for path in of_rates if path in changes])
        if resized:
            own = (f"{self.tiles} tiles of {self.tier_rows} x {self.tier_cols}", *own)
            usual_ones = (f"{base.tiles} of {base.tier_rows} x {base.tier_cols}", *usual_ones)
        values = ", ".join(f"{path} {value:.4g}" for path, value in changes.items())
        said = (
            f"with {', '.join(own)}, where {base.name} has {', '.join(usual_ones)}: {values}, by the formulas of "
            "docs/aimc.md"
        )
        parts = {section: getattr(self, section).model_copy(update=to) for section, to in sections.items()}
        return self.model_copy(update=parts), (said, *unpriced)

    def _tier_factors(self, base: AimcSpec, given: Mapping[str, Any], growth: Growth) -> dict[str, float]:
        """What figures of a tile are multiplied with, by their paths."""
        if growth.rows == growth.cols == 1:
            return {}
        scaling = self.scaling or base.scaling
        if scaling is None:
            needed = ("costs.mvm_ns", "costs.mvm_nj", "area.tile_mm2")
            missing = [path for path in needed if path.split(".")[1] not in (given.get(path.split(".")[0]) or {})]
            if missing:
                key = "tier_rows" if growth.rows != 1 else "tier_cols"
                raise InputError(
                    f"device.{key}",
                    f"the figures of {base.name} hold for tiers of {base.tier_rows} x {base.tier_cols} only, and how "
                    f"they follow the size is not known: give {', '.join(missing)} too, or start from aimc-realistic",
                )
            return {}
        return {
            "costs.mvm_ns": growth.mvm_ns(scaling),
            "costs.mvm_nj": growth.mvm_nj(scaling),
            "area.tile_mm2": growth.periphery(scaling),
            "area.per_tier_mm2": growth.lines(base.tier_rows, base.tier_cols),
            "power.tile_mw": growth.mvm_nj(scaling) / growth.mvm_ns(scaling),
        }

    @property
    def passive_w(self) -> float:
        """Power of one chip that does nothing, with its memory."""
        power = self.power
        units = self.digital_units * power.digital_w + self.attention_units * power.attention_w
        return self.tiles * power.tile_mw * 1e-3 + units + power.other_w + self.dram.idle_w

    @property
    def area_mm2(self) -> float:
        """Silicon of one chip without its memory."""
        area = self.area
        tiles = self.tiles * (area.tile_mm2 + self.tiers * area.per_tier_mm2)
        units = self.digital_units * area.digital_mm2 + self.attention_units * area.attention_mm2
        return tiles + units + area.other_mm2

    def chips(self, count: int) -> Chip:
        """`count` chips of this kind, linked."""
        return Chip(
            tiles=self.tiles,
            tiers=self.tiers,
            tier_rows=self.tier_rows,
            tier_cols=self.tier_cols,
            digital_units=self.digital_units,
            attention_units=self.attention_units,
            costs=self.costs,
            dram=self.dram,
            passive_w=self.passive_w,
            chips=count,
            link=Link(self.link_latency_us, self.link_gb_per_s, self.link_pj_per_bit),
            partial_sums=self.partial_sums,
            attention_split=self.attention_split,
        )

    def programming_facts(self, weights: int, fullest_tiers: int) -> dict[str, Any] | None:
        """Time, energy and wear of loading `weights` weights, `fullest_tiers` of them on the fullest tile."""
        program = self.programming
        if program is None:
            return None
        return {
            "time_s": program.tier_s(self.tier_rows * self.tier_cols) * fullest_tiers,
            "joules": weights * program.nj_per_weight * 1e-9,
            "pulses_per_device": program.iterations,
            "endurance_pulses": program.endurance_pulses,
            "endurance_used": program.iterations / program.endurance_pulses,
            "programmings_endured": program.endurance_pulses / program.iterations,
            "programmed_every_days": program.every_days,
        }

    @property
    def weight_precision(self) -> str:
        """Effective bits of a weight on the crossbars."""
        return "analog" if self.noise is None else f"{self.noise.weight_bits:g}-bit"

    def warnings(self, *, passive_power: bool = True) -> tuple[str, ...]:
        """What a reader of any result must know, of one that has passive power or not."""
        power = self.power
        sentences = [*self.assumptions, *self.caveats]
        if passive_power:
            sentences.append(
                f"{self.name}: passive power is assumed: {power.tile_mw:g} mW per tile, {power.digital_w:g} W and "
                f"{power.attention_w:g} W per digital and attention unit, {power.other_w:g} W for the rest of a chip"
            )
        if self.tiers > DEMONSTRATED_TIERS:
            sentences.append(
                f"{self.name}: {self.tiers} tiers per tile are assumed; stacks of up to {DEMONSTRATED_TIERS} were built"
            )
        return tuple(sentences)
