"""A network on the tiles where its mapping has put it: which chip a matrix is on, and the time of a token through it.

The rules are those of the event-driven model in its physical setting (`event.graph.PHYSICAL`), for one token alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.mapping import Mapping
from pimserve.device_models.aimc.network import Block, Ffn, Network
from pimserve.device_models.aimc.operation_costs import OpCost
from pimserve.device_models.aimc.reduction import Reduction
from pimserve.device_models.memo import Memo


class PassTime(NamedTuple):
    """Time of one token through some matrices: on transfers, and on all else."""

    hops_ps: float
    rest_ps: float


class PlacedNetwork:
    """A network, its chips and its mapping.

    `tiles`: of each matrix, the tile of each of its chunks. `mvm`: one product with a chunk.
    """

    def __init__(self, network: Network, chip: Chip, mapping: Mapping) -> None:
        self.network = network
        self.chip = chip
        self.mapping = mapping
        self.tiles: list[NDArray[np.int64]] = [np.asarray(tiles, np.int64) for tiles in mapping.tiles]
        self.mvm = chip.mvm
        self._hops_of = Memo(self._hops_of_shape)
        self._ffn_times = Memo(self._ffn_time)

    def chip_of(self, matrix: int) -> int:
        """The chip of a matrix's first chunk, where its sums run."""
        return int(self.tiles[matrix][0]) // self.chip.tiles

    def home(self, block: Block) -> int:
        """The chip of a block's attention, residual and norms: that of its first matrix after attention."""
        return self.chip_of(block.after[0][0])

    def entry(self, ffn: Ffn) -> int:
        """The chip to which vectors for an FFN come where there is no home for them."""
        return self.chip_of(ffn.up[0])

    def grid(self, matrix: int) -> tuple[int, int]:
        """(row blocks, column blocks) of a matrix."""
        return self.network.matrices[matrix].grid(self.chip.tier_rows, self.chip.tier_cols)

    def reads(self, matrix: int) -> int:
        """MVMs of each chunk of a matrix for one token."""
        return self.network.matrices[matrix].reads(self.chip.tier_cols)

    def sum_of(self, matrix: int) -> OpCost:
        """One sum over two row blocks of a matrix."""
        return self.chip.costs.add(min(self.network.matrices[matrix].cols, self.chip.tier_cols))

    def vector_bytes(self, matrix: int) -> tuple[int, int]:
        """Bytes of the vector to all crossbars of a matrix, and of the products back."""
        shape = self.network.matrices[matrix]
        row_blocks, column_blocks = self.grid(matrix)
        return shape.rows * column_blocks, shape.cols * row_blocks

    def _hop(self, size: int, *, over_link: bool) -> OpCost:
        """A transfer of `size` bytes to a chunk, over the link where it is on another chip."""
        hop = self.chip.costs.hop(size)
        if not over_link or self.chip.link is None:
            return hop
        link = self.chip.link.hop(size)
        return OpCost(hop.ps + link.ps, hop.nj + link.nj)

    def hops_ps(self, matrix: int, home: int) -> int:
        """Time of a way to one full chunk and back."""
        return self._hops(matrix, home)[0]

    def hops_nj(self, matrix: int, home: int) -> float:
        """Energy of the ways to all chunks and back; those at the border carry less."""
        return self._hops(matrix, home)[1]

    def _hops(self, matrix: int, home: int) -> tuple[int, float]:
        shape = self.network.matrices[matrix]
        return self._hops_of[shape.rows, shape.cols, self.chip_of(matrix) != home]

    def _hops_of_shape(self, key: tuple[int, int, bool]) -> tuple[int, float]:
        """(time to one full chunk and back, energy to all) of a matrix of (rows, columns, whether over a link)."""
        rows, cols, over_link = key
        chip = self.chip
        there, back = (
            self._hop(size, over_link=over_link).ps for size in (min(rows, chip.tier_rows), min(cols, chip.tier_cols))
        )
        row_blocks, col_blocks = _blocks(rows, chip.tier_rows), _blocks(cols, chip.tier_cols)
        nj = [
            sum(number * self._hop(size, over_link=over_link).nj for size, number in blocks)
            * sum(number for _, number in across)
            for blocks, across in ((row_blocks, col_blocks), (col_blocks, row_blocks))
        ]
        return there + back, nj[0] + nj[1]

    def serial_mvms(self, matrices: Iterable[int]) -> int:
        """MVMs in a row on the tile that has most of them."""
        return int(np.bincount(np.concatenate([np.repeat(self.tiles[m], self.reads(m)) for m in matrices])).max())

    def stage_time(self, stage: Sequence[int], home: int) -> PassTime:
        """Through matrices side by side, from `home` and back, with their partial sums."""
        hops = sums = 0.0
        pooled: dict[int, float] = defaultdict(float)
        for matrix in stage:
            row_blocks, column_blocks = self.grid(matrix)
            add = self.sum_of(matrix).ps
            hops = max(hops, self.hops_ps(matrix, home))
            sums = max(sums, (row_blocks - 1) * add)
            pooled[self.chip_of(matrix)] += (row_blocks - 1) * column_blocks * add
        if self.chip.partial_sums == "pool":
            # All columns start together; the units take them in turns.
            for busy in pooled.values():
                sums = max(sums, busy / self.chip.digital_units)
        return PassTime(hops, self.serial_mvms(stage) * self.mvm.ps + sums)

    def between(self, ffn: Ffn) -> list[OpCost]:
        """Digital operations between up and down projection: activation, and the product where it is gated."""
        activation = self.chip.costs.activation(self.network.activation, ffn.width)
        return [activation, self.chip.costs.add(ffn.width)] if len(ffn.up) > 1 else [activation]

    def ffn_time(self, ffn: Ffn, home: int) -> PassTime:
        """Through one FFN."""
        return self._ffn_times[ffn, home]

    def _ffn_time(self, key: tuple[Ffn, int]) -> PassTime:
        ffn, home = key
        up, down = self.stage_time(ffn.up, home), self.stage_time((ffn.down,), home)
        between = sum(cost.ps for cost in self.between(ffn))
        return PassTime(up.hops_ps + down.hops_ps, up.rest_ps + between + down.rest_ps)

    def reduction(self, expert: Sequence[Ffn]) -> Reduction | None:
        """What adds up the results of the FFNs that an expert is cut into; None for a whole one."""
        if len(expert) == 1:
            return None
        return Reduction(self.chip, self.network.matrices[expert[0].down].cols, len(expert))

    def expert_time(self, expert: Sequence[Ffn], home: int) -> PassTime:
        """Through one expert, all FFNs that it is cut into side by side."""
        longest, reduction = max((self.ffn_time(ffn, home) for ffn in expert), key=sum), self.reduction(expert)
        if reduction is None:
            return longest
        return PassTime(longest.hops_ps + reduction.hops_ps, longest.rest_ps + reduction.sums_ps)

    def experts_time(self, block: Block, chosen: Sequence[int], home: int) -> PassTime:
        """Through experts that start together: the longest one's, and the wait for tiles that they share."""
        experts = [block.experts[expert] for expert in chosen]
        if block.shared is not None:
            experts.append((block.shared,))
        ffns = [ffn for expert in experts for ffn in expert]
        up = [matrix for ffn in ffns for matrix in ffn.up]
        down = [ffn.down for ffn in ffns]
        own_up = max(self.serial_mvms(ffn.up) for ffn in ffns)
        own_down = max(self.serial_mvms((ffn.down,)) for ffn in ffns)
        # Experts follow each other: one is in its down projection while the next is in its up projection.
        wait = max(
            self.serial_mvms(up) - own_up,
            self.serial_mvms(down) - own_down,
            self.serial_mvms([*up, *down]) - own_up - own_down,
        )
        alone = max((self.expert_time(expert, home) for expert in experts), key=sum)
        return PassTime(alone.hops_ps, alone.rest_ps + wait * self.mvm.ps)

    def experts_apart(self, block: Block) -> bool:
        """Whether experts lie on different tiles."""
        first = block.experts[0]
        return any(
            not np.array_equal(self.tiles[a], self.tiles[b])
            for expert in block.experts[1:]
            for one, other in zip(first, expert, strict=True)
            for a, b in zip(one.matrices, other.matrices, strict=True)
        )


def _blocks(whole: int, size: int) -> list[tuple[int, int]]:
    """(elements, how many) of blocks of `size`, and of the smaller one at the border."""
    full, rest = divmod(whole, size)
    return [(elements, number) for elements, number in ((size, full), (rest, 1)) if elements and number]
