"""One token through an FFN, an expert or the output head, where attention is on other chips.

It comes to the chip of the first matrix, and leaves from there; to all chips that an expert is cut over. The rules are
those of `walk`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.aimc.network import Ffn
from pimserve.device_models.aimc.operation_costs import OpCost
from pimserve.device_models.aimc.placed import PlacedNetwork


@dataclass(frozen=True, slots=True)
class Pass:
    """What it takes, and what it leaves behind.

    Args:
        chain_ps: time of the token alone.
        tiles: that it needs, ascending.
        tiles_ps: (tiles,) busy time of each.
        digital_ps: busy time of the pool of digital units, by chip.
        nj: energy.
        links_ps: busy time of the link of each chip that sends others partial sums.
    """

    chain_ps: float
    tiles: IntArray
    tiles_ps: IntArray
    digital_ps: Mapping[int, float]
    nj: float
    links_ps: Mapping[int, float] = field(default_factory=dict)

    @property
    def busiest_ps(self) -> float:
        """The most that one tile, or one chip's pool of digital units or link, has to do."""
        return max(int(self.tiles_ps.max(initial=0)), *self.digital_ps.values(), *self.links_ps.values())

    def moved(self, chips: int, tiles: int) -> Pass:
        """The same so many chips, of `tiles` each, further on."""
        return replace(
            self,
            tiles=self.tiles + chips * tiles,
            digital_ps={chip + chips: ps for chip, ps in self.digital_ps.items()},
            links_ps={chip + chips: ps for chip, ps in self.links_ps.items()},
        )


class ExpertPasses:
    """Of the experts of a network; of those that lie alike on their chips one is worked out."""

    def __init__(self, placed: PlacedNetwork) -> None:
        self._placed = placed
        self._known: dict[Hashable, Pass] = {}

    def of(self, expert: Sequence[Ffn]) -> Pass:
        """Through one of them."""
        placed, first = self._placed, self._placed.entry(expert[0])
        where = [placed.tiles[matrix] - first * placed.chip.tiles for ffn in expert for matrix in ffn.matrices]
        kind = tuple(ffn.width for ffn in expert), b"".join([tiles.tobytes() for tiles in where])
        if kind not in self._known:
            self._known[kind] = pass_of_expert(placed, expert).moved(-first, placed.chip.tiles)
        return self._known[kind].moved(first, placed.chip.tiles)


def pass_of_ffn(placed: PlacedNetwork, ffn: Ffn) -> Pass:
    """Through an FFN."""
    home = placed.entry(ffn)
    there, between = placed.chip_of(ffn.down), placed.between(ffn)
    return _pass(placed, ffn.matrices, sum(placed.ffn_time(ffn, home)), home, (there, between))


def pass_of_expert(placed: PlacedNetwork, expert: Sequence[Ffn]) -> Pass:
    """Through an expert: the FFNs that it is cut into are on chips in their order, side by side."""
    passes = [pass_of_ffn(placed, ffn) for ffn in expert]
    reduction = placed.reduction(expert)
    if reduction is None:
        return passes[0]
    chips = [placed.chip_of(ffn.down) for ffn in expert]
    digital = {chip: ps for each in passes for chip, ps in each.digital_ps.items()}
    for number, chip in enumerate(chips):
        digital[chip] += reduction.digital_ps(number) / placed.chip.digital_units
    return Pass(
        max(each.chain_ps for each in passes) + reduction.hops_ps + reduction.sums_ps,
        np.concatenate([each.tiles for each in passes]),
        np.concatenate([each.tiles_ps for each in passes]),
        digital,
        sum(each.nj for each in passes) + reduction.hops_nj + reduction.sums_nj,
        {chip: reduction.link_ps(number) for number, chip in enumerate(chips)},
    )


def pass_of_head(placed: PlacedNetwork, head: int, *, lm_head: bool) -> Pass:
    """Through the product with the vocabulary, unless it does not count, and sampling."""
    home, sampler = placed.chip_of(head), placed.chip.costs.sampler(placed.network.vocab)
    matrices = (head,) if lm_head else ()
    chain = sampler.ps + sum(sum(placed.stage_time((matrix,), home)) for matrix in matrices)
    return _pass(placed, matrices, chain, home, (home, [sampler]))


def _pass(
    placed: PlacedNetwork, matrices: Sequence[int], chain_ps: float, home: int, digital: tuple[int, Sequence[OpCost]]
) -> Pass:
    chip, (there, operations) = placed.chip, digital
    tiles = [np.repeat(placed.tiles[matrix], placed.reads(matrix)) for matrix in matrices]
    used, mvms = np.unique(np.concatenate([np.zeros(0, np.int64), *tiles]), return_counts=True)
    busy: defaultdict[int, float] = defaultdict(float, {there: sum(cost.ps for cost in operations)})
    nj = int(mvms.sum()) * placed.mvm.nj + sum(cost.nj for cost in operations)
    for matrix in matrices:
        row_blocks, column_blocks = placed.grid(matrix)
        add, sums = placed.sum_of(matrix), (row_blocks - 1) * column_blocks
        nj += placed.hops_nj(matrix, home) + sums * add.nj
        if chip.partial_sums == "pool":
            busy[placed.chip_of(matrix)] += sums * add.ps
    pools = {pool: ps / chip.digital_units for pool, ps in busy.items()}
    return Pass(chain_ps, used, mvms * placed.mvm.ps, pools, nj)
