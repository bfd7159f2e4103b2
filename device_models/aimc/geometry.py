"""What of a chip's figures follows its geometry: derived for one size, and for other sizes from that.

A preset states its figures for its own size. They are derived in its sources, and the same derivations say what they
become when tiers, or the number of tiles, change:

- Energy of an MVM: the periphery, of which `column_share` are converters of columns (ADCs) and the rest drivers of rows
  (DACs), in proportion to these; and the cells (`cell_share`), in proportion to rows x columns.
- Its time: all rows are driven and all columns converted at once, so that pulse and conversion take the same whatever
  the size. Lines of twice the length settle in twice the time: `settling_share`, half of it of either line.
- Silicon of a tile: converters side by side, as wide as columns and rows are many; a line-select device for each row
  and each column of a tier.
- Passive power of a tile: a share of its active power, energy over time.
- Hops: their stages grow with the square root of the number of tiles, wires also with the tile's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from pydantic import BaseModel, ConfigDict, Field

_WIRE_SHARE = 3.84 / 5.04  # of a hop's energy: 8 mm x 8 bit x 0.06 pJ per byte, beside 8 routers x 0.15 pJ


class ReadoutScaling(BaseModel):
    """How the figures of one MVM follow the size of a tier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column_share: float = Field(ge=0, le=1, description="of periphery, energy and silicon: converters of columns")
    cell_share: float = Field(ge=0, le=1, description="of the energy of an MVM: the cells")
    settling_share: float = Field(ge=0, le=1, description="of the time of an MVM: the settling of lines")


@dataclass(frozen=True, slots=True)
class Growth:
    """A chip beside the one that its figures were stated for: rows and columns of a tier, and tiles, as ratios."""

    rows: float
    cols: float
    tiles: float

    def periphery(self, scaling: ReadoutScaling) -> float:
        """Converters and drivers of a tile, weighted by what they take."""
        return scaling.column_share * self.cols + (1 - scaling.column_share) * self.rows

    def lines(self, rows: int, cols: int) -> float:
        """Line-select devices of a tier that had so many rows and columns."""
        return (self.rows * rows + self.cols * cols) / (rows + cols)

    def mvm_nj(self, scaling: ReadoutScaling) -> float:
        """Energy of an MVM."""
        return (1 - scaling.cell_share) * self.periphery(scaling) + scaling.cell_share * self.rows * self.cols

    def mvm_ns(self, scaling: ReadoutScaling) -> float:
        """Time of an MVM."""
        return 1 - scaling.settling_share + scaling.settling_share * (self.rows + self.cols) / 2

    def stages(self) -> float:
        """Stages of a hop."""
        return sqrt(self.tiles)

    def hop_energy(self, tile_mm2: float) -> float:
        """Energy of a hop, where the silicon of a tile grows as much."""
        return self.stages() * (1 - _WIRE_SHARE + _WIRE_SHARE * sqrt(tile_mm2))
