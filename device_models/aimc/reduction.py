"""How chips that an expert is cut over add up its result: a reduce-scatter over the links between them.

Each chip has a vector of partial sums, as many column blocks as the down projection has. Blocks are dealt to the chips
as evenly as can be; each chip sends the others theirs, and adds to its own what comes from them. So there are as many
sums of blocks as if all row blocks were on one chip, and each chip is left with its share of the result. Partial sums
travel in 16 bit, as activations do (`ACTIVATION_BYTES`): products of 8 bit, of up to 256 row blocks, add up to no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pimserve.device_models.aimc.chip import Chip, Link
from pimserve.device_models.aimc.operation_costs import OpCost
from pimserve.device_models.operators import ACTIVATION_BYTES


@dataclass(frozen=True, slots=True)
class Reduction:
    """The sum of vectors of `cols` elements, one on each of `slices` chips; blocks at the border count as full."""

    chip: Chip
    cols: int
    slices: int

    @property
    def blocks(self) -> int:
        """Column blocks of a vector."""
        return -(-self.cols // self.chip.tier_cols)

    def own(self, number: int) -> range:
        """Blocks that are summed up on one of the chips."""
        return range(self.blocks * number // self.slices, self.blocks * (number + 1) // self.slices)

    @property
    def block_bytes(self) -> int:
        """Of a block of partial sums."""
        return min(self.cols, self.chip.tier_cols) * ACTIVATION_BYTES

    @property
    def add(self) -> OpCost:
        """One sum of two blocks."""
        return self.chip.costs.add(min(self.cols, self.chip.tier_cols))

    def sent(self) -> Iterator[tuple[int, int, int]]:
        """(from, to, bytes) of two of the chips."""
        for to in range(self.slices):
            if size := len(self.own(to)) * self.block_bytes:
                yield from ((number, to, size) for number in range(self.slices) if number != to)

    @property
    def bytes_sent(self) -> int:
        """Of all chips."""
        return (self.slices - 1) * self.blocks * self.block_bytes

    def link_ps(self, number: int) -> float:
        """Time that one of the chips keeps its link busy, in the direction that has more to carry."""
        return self._link.busy_ps(self._carried(number))

    def digital_ps(self, number: int) -> int:
        """Work of the digital units of one of the chips, where partial sums run there."""
        return self._sums(number) * self.add.ps if self.chip.partial_sums == "pool" else 0

    @property
    def hops_ps(self) -> int:
        """Time until all blocks are where they are summed up."""
        carried = max(self._carried(number) for number in range(self.slices))
        return self.chip.costs.hop(self.block_bytes).ps + self._link.hop(carried).ps

    @property
    def sums_ps(self) -> float:
        """Time of the sums: blocks side by side, as far as digital units are theirs."""
        pooled = max(self.digital_ps(number) for number in range(self.slices)) / self.chip.digital_units
        return max((self.slices - 1) * self.add.ps, pooled)

    @property
    def hops_nj(self) -> float:
        """Energy of the way of all blocks."""
        over_link = self._link.hop(self.block_bytes).nj + self.chip.costs.hop(self.block_bytes).nj
        return (self.slices - 1) * self.blocks * over_link

    @property
    def sums_nj(self) -> float:
        """Energy of all sums."""
        return (self.slices - 1) * self.blocks * self.add.nj

    def _sums(self, number: int) -> int:
        return (self.slices - 1) * len(self.own(number))

    def _carried(self, number: int) -> int:
        """Bytes that one of the chips sends, or receives if that is more."""
        return max(self.blocks - len(self.own(number)), self._sums(number)) * self.block_bytes

    @property
    def _link(self) -> Link:
        assert self.chip.link is not None  # there are several chips
        return self.chip.link
