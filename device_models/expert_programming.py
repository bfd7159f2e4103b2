"""What it takes to write routed experts anew where their weights stay: on crossbars."""

from __future__ import annotations

from dataclasses import dataclass

from pimserve.arrays import BoolArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class ExpertProgramming:
    """Writing an expert of a layer, tier by tier: the tiles of all chips side by side, each one of its tiers at a time.

    Args:
        tiers: (chips, layers, slots of a chip, tiles of a chip): tiers that the expert in a slot takes on each tile.
        tier_s: to write a tier.
        pulses: that each device of it gets.
        endurance_pulses: that a device survives.
    """

    tiers: IntArray
    tier_s: float
    pulses: float
    endurance_pulses: float

    def time_s(self, written: BoolArray) -> float:
        """Until the last tile is done; `written`: (layers, chips, slots of a chip), which slots are."""
        by_chip = zip(self.tiers, written.swapaxes(0, 1), strict=True)
        return self.tier_s * max(int(tiers[slots].sum(axis=0).max(initial=0)) for tiers, slots in by_chip)
