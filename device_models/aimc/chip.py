"""A replica's 3D AIMC chips, as mapping, task graph and cost plan see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pimserve.device_models.aimc.operation_costs import PS_PER_NS, Dram, OpCost, UnitCosts

PS_PER_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Link:
    """Between chips; bandwidth one way, without contention."""

    latency_us: float
    gb_per_s: float
    pj_per_bit: float

    def hop(self, size: int) -> OpCost:
        """A transfer of `size` bytes to another chip."""
        ps = self.latency_us * PS_PER_US + self.busy_ps(size)
        return OpCost(round(ps), size * 8 * self.pj_per_bit * 1e-3)

    def busy_ps(self, size: int) -> float:
        """How long `size` bytes keep it busy."""
        return size * 1e3 / self.gb_per_s


@dataclass(frozen=True, slots=True)
class Chip:
    """`chips` alike chips; all other figures are of one.

    A tile is a stack of `tiers` crossbars of `tier_rows` x `tier_cols` of which one computes at a time
    (`one_tier_at_a_time`). Tile t of the replica lies on chip t // tiles. `partial_sums`: sums over row blocks run on
    the pool of digital units, or beside the tiles. `attention_split`: one unit takes the attention of a whole sequence,
    or all units share it by heads.
    """

    tiles: int
    tiers: int
    tier_rows: int
    tier_cols: int
    digital_units: int
    attention_units: int
    costs: UnitCosts
    dram: Dram
    passive_w: float
    chips: int = 1
    link: Link | None = None
    partial_sums: Literal["pool", "tile"] = "pool"
    attention_split: Literal["sequence", "heads"] = "sequence"
    one_tier_at_a_time: bool = True
    lock_attention_to_layer: bool = False

    @property
    def mvm(self) -> OpCost:
        """One matrix-vector product on one tier."""
        return OpCost(round(self.costs.mvm_ns * PS_PER_NS), self.costs.mvm_nj)

    @property
    def all_tiles(self) -> int:
        """Tiles of all chips."""
        return self.tiles * self.chips
