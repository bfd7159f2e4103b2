"""What of a chip's silicon and passive power follows its rates, where these are above those of its preset.

The figures of a preset hold for its own rates, and say what a faster part takes:

- An attention unit has 0.8 TFLOP/s per mm2, and a digital unit its rates on its silicon: so many times the rate, so
  many times the silicon, and the leakage and idle clock of that.
- A tile's converters do so many conversions per s and mm2 (areal throughput): an MVM in half the time takes twice of
  them. Its passive power is a share of its active power, energy over time.
- A memory has the idle power of its modules or stacks, and bandwidth in proportion to these.

A slower part keeps what the preset has: it is no smaller for that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pimserve.device_models.aimc.operation_costs import Dram, UnitCosts

_ATTENTION = ("costs.attention_tflop_per_s",)
_DIGITAL = ("costs.add_elements_per_ns", "costs.norm_elements_per_ns", "costs.activation_elements_per_ns")
_MVM = ("costs.mvm_ns", "costs.mvm_nj")
_BANDWIDTH = ("dram.gb_per_s",)
_HANG_ON = {
    **dict.fromkeys(("area.attention_mm2", "power.attention_w"), _ATTENTION),
    **dict.fromkeys(("area.digital_mm2", "power.digital_w"), _DIGITAL),
    **dict.fromkeys(("area.tile_mm2", "power.tile_mw"), _MVM),
    "dram.idle_w": _BANDWIDTH,
}
# Quicker for more silicon, by no formula: figures of which part.
_LATENCIES = {
    "costs.hop_ns": ("area.other_mm2", "power.other_w"),
    "costs.hop_ns_per_byte": ("area.other_mm2", "power.other_w"),
    "costs.digital_ns": ("area.digital_mm2", "power.digital_w"),
}


@dataclass(frozen=True, slots=True)
class Rates:
    """Costs and memory of a chip, beside those that its figures were stated for."""

    costs: UnitCosts
    dram: Dram
    usual_costs: UnitCosts
    usual_dram: Dram

    def factors(self, resized: Mapping[str, float]) -> dict[str, float]:
        """What figures are multiplied with because of rates, by their paths.

        Args:
            resized: the same because of the size of tiers, which is in the result.
        """
        tile_mw, mvm_power = resized.get("power.tile_mw", 1.0), self._mvm_power()
        of_tiles = {
            "area.tile_mm2": resized.get("area.tile_mm2", 1.0) * self._mvms_per_s(resized.get("costs.mvm_ns", 1.0)),
            "power.tile_mw": max(tile_mw, mvm_power) if mvm_power > 1 else tile_mw,
        }
        multiples = {path: of_tiles[path] if rates is _MVM else self._above(rates) for path, rates in _HANG_ON.items()}
        return {path: factor for path, factor in multiples.items() if factor != resized.get(path, 1.0)}

    def changed(self, moved: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Changed rates that moved the figures at these paths, and what they usually are."""
        rates = dict.fromkeys(rate for path in moved for rate in _HANG_ON[path])
        pairs = {rate: pair for rate in rates if (pair := self._pair(rate)) is not None and pair[0] != pair[1]}
        return (
            tuple(f"{rate} {own:g}" for rate, (own, _) in pairs.items()),
            tuple(f"{usual:g}" for _, usual in pairs.values()),
        )

    def unpriced(self, name: str, given: Collection[str]) -> tuple[str, ...]:
        """A sentence on latencies below those of the preset `name`, where what hangs on them is not among `given`."""
        quicker = {}
        for rate, figures in _LATENCIES.items():
            pair = self._pair(rate)
            missing = [path for path in figures if path not in given]
            if pair is not None and pair[0] < pair[1] and missing:
                quicker[f"{rate} {pair[0]:g} (there {pair[1]:g})"] = missing
        if not quicker:
            return ()
        wanted = ", ".join(dict.fromkeys(path for paths in quicker.values() for path in paths))
        return (f"silicon and passive power are those of {name}, with quicker {', '.join(quicker)}: give {wanted}",)

    def _pair(self, rate: str) -> tuple[float, float] | None:
        """A rate and its usual value; None where the unit costs have none of that name."""
        section, key = rate.split(".")
        both = (self.costs, self.usual_costs) if section == "costs" else (self.dram, self.usual_dram)
        own, usual = (getattr(costs, key, None) for costs in both)
        return None if own is None or usual is None else (own, usual)

    def _above(self, rates: Collection[str]) -> float:
        """The rate that grew most as a multiple of its usual value; 1 where none is above it."""
        return max([1.0, *(own / usual for rate in rates for own, usual in [self._pair(rate) or (1.0, 1.0)])])

    def _mvms_per_s(self, resized: float) -> float:
        """MVMs per s of a tile likewise, beyond what smaller tiers have for nothing."""
        return max(1.0, self.usual_costs.mvm_ns * min(1.0, resized) / self.costs.mvm_ns)

    def _mvm_power(self) -> float:
        """Active power of a tile as written; slower MVMs, of the same converters used several times, leak no more."""
        usual = self.usual_costs.mvm_nj / self.usual_costs.mvm_ns
        if not usual or self.costs.mvm_ns > self.usual_costs.mvm_ns:
            return 1.0
        return max(1.0, self.costs.mvm_nj / self.costs.mvm_ns / usual)
