"""One token's way through a mapped network: its chain, and the work that it leaves on each resource.

Everything is derived from the mapping: which tiles a matrix's chunks lie on, on which chip, and how often one token
needs them. The rules are those of the event-driven model in its physical setting (`event.graph.PHYSICAL`), no others.
Times are in picoseconds, energies in nJ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.costs import AttentionCost, OpCost
from pimserve.device_models.aimc.mapping import Mapping
from pimserve.device_models.aimc.network import Attention, Block, Ffn, Network
from pimserve.device_models.operators import Category
from pimserve.device_models.routing import draw_counts, expert_share, pick_probabilities

_DRAWS = 16  # of experts, where a chain depends on which are chosen
_TOKENS = 64  # that are drawn to see how unevenly experts are chosen
_NEAR, _FAR = 1024, 3072  # contexts between which attention is affine


class Law(NamedTuple):
    """How a token of one layer picks experts: as `pick_probabilities` and as `expert_share` say."""

    picks: NDArray[np.float64]
    share: tuple[float, ...]


class Way(NamedTuple):
    """Time of a part of one token's chain: on transfers, and on all else."""

    hops_ps: float
    rest_ps: float


@dataclass(slots=True)
class Work:
    """What one token leaves behind: busy time of every tile, and of the digital units of every chip, ps."""

    tiles: NDArray[np.float64]
    digital: NDArray[np.float64]

    def busiest_ps(self, digital_units: int) -> float:
        """The most that one tile, or one chip's pool of digital units, has to do."""
        return float(max(self.tiles.max(), self.digital.max() / digital_units))

    def __add__(self, other: Work) -> Work:
        return Work(self.tiles + other.tiles, self.digital + other.digital)


class Visits:
    """When one token is at each tile, at positions of its chain: ps, (tiles,) each.

    `rest` is the shortest time between two visits (inf for one visit), `slack` the sum of all such times.
    """

    def __init__(self, tiles: int) -> None:
        self.longest = np.zeros(tiles)
        self.rest = np.full(tiles, np.inf)
        self.slack = np.zeros(tiles)
        self._left = np.full(tiles, np.nan)

    def visit(self, position: float, held: NDArray[np.float64]) -> None:
        """A visit that starts at `position` and holds each tile as long as `held` says."""
        here = held > 0
        since = np.where(here, position - self._left, np.nan)
        again = ~np.isnan(since)
        since[again] = np.maximum(since[again], 0)
        self.rest[again] = np.minimum(self.rest[again], since[again])
        self.slack[again] += since[again]
        self.longest = np.maximum(self.longest, held)
        self._left[here] = position + held[here]


@dataclass(frozen=True, slots=True)
class AttentionSlopes:
    """Attention of one layer to a cached context, on its chip: ps and nJ, a fixed part and one per context token.

    `position_ps` is where on the token's chain it comes, without attention of layers before it.
    """

    position_ps: float
    chip: int
    window: int | None
    read_ps: tuple[float, float]
    compute_ps: tuple[float, float]
    read_nj: tuple[float, float]
    compute_nj: tuple[float, float]
    write: OpCost
    prefill_ps_per_pair: float
    prefill_nj_per_pair: float

    @property
    def exposed_ps(self) -> tuple[float, float]:
        """What a token waits: reading and computing go side by side."""
        return max(self.read_ps, self.compute_ps, key=lambda part: part[0] + part[1] * _NEAR)


@dataclass(slots=True)
class Walk:
    """What is found on the way. Chains and energies are by category.

    `segments` is the work up to each attention barrier, `last` that after the last one, and `head` that of the final
    norm, the product with the vocabulary and sampling: of a prompt, only the last token comes there. `sampled_nj` is
    the energy of both. `link_bytes` and `sampled_link_bytes` are what passes between chips, likewise.
    """

    last: Work
    head: Work
    visits: Visits
    chain_ps: dict[Category, float] = field(default_factory=lambda: defaultdict(float))
    energy_nj: dict[Category, float] = field(default_factory=lambda: defaultdict(float))
    sampled_nj: dict[Category, float] = field(default_factory=lambda: defaultdict(float))
    segments: list[Work] = field(default_factory=list)
    attention: list[AttentionSlopes] = field(default_factory=list)
    expert_mvm_ps: float = 0.0
    link_bytes: float = 0.0
    sampled_link_bytes: float = 0.0


class Walker:
    """Walks a network that is mapped on chips.

    Args:
        network: the model.
        chip: the chips.
        mapping: where its chunks are.
        popularity: weight of each routed expert, a row for all MoE layers or for each; empty without any.
        lm_head: whether the product with the vocabulary counts.
    """

    def __init__(
        self,
        network: Network,
        chip: Chip,
        mapping: Mapping,
        popularity: Sequence[Sequence[float]],
        *,
        lm_head: bool = True,
    ) -> None:
        self.network = network
        self.chip = chip
        self.costs = chip.costs
        self.lm_head = lm_head
        top_k = max((block.top_k for block in network.blocks), default=0)
        self._laws = [
            Law(pick_probabilities(np.asarray(row, float), top_k), expert_share(row, top_k)) for row in popularity
        ]
        self._tiles = [np.asarray(tiles, np.int64) for tiles in mapping.tiles]
        self._mvm = chip.costs.mvm()
        self._random = np.random.default_rng(0)  # which experts are drawn to look at; not the run's seed
        self._walk = Walk(self._work(), self._work(), Visits(chip.all_tiles))
        self._position = 0.0  # on the chain
        self._spent: dict[Category, float] = defaultdict(float)  # nJ, since the last barrier but one
        self._sent = 0.0  # bytes between chips, likewise

    def walk(self) -> Walk:
        """One token through all layers, with the head."""
        network, walk = self.network, self._walk
        homes = [self._home(block) for block in network.blocks]
        routed = 0  # layers with experts so far
        segment = self._work()
        self._embedding(segment, homes[0])
        for layer, block in enumerate(network.blocks):
            home = homes[layer]
            if layer and home != homes[layer - 1]:
                self._to_next_chip()
            for stage in block.before:
                self._stage("fc", stage, home, segment)
            walk.segments.append(segment)
            segment = self._work()
            if layer == len(network.blocks) - 1:
                walk.energy_nj, self._spent = self._spent, defaultdict(float)
                walk.link_bytes, self._sent = self._sent, 0.0
            walk.attention.append(self._attention(block.attention, home))
            for stage in block.after:
                self._stage("fc", stage, home, segment)
            self._digital("fc", self.costs.add(network.hidden), home, segment)
            self._digital("fc", self.costs.norm(network.hidden), home, segment)
            if block.dense is not None:
                self._ffn("fc", block.dense, home, segment)
            else:
                self._experts(block, self._laws[min(routed, len(self._laws) - 1)], home, segment)
                routed += 1
            self._digital("fc", self.costs.add(network.hidden), home, segment)
            if layer < len(network.blocks) - 1:
                self._digital("fc", self.costs.norm(network.hidden), homes[layer + 1], segment)
        walk.last = segment
        self._head(homes[-1])
        walk.sampled_nj, walk.sampled_link_bytes = self._spent, self._sent
        return walk

    def _to_next_chip(self) -> None:
        """The residual vector crosses the link."""
        assert self.chip.link is not None
        hop = self.chip.link.hop(self.network.hidden)
        self._chain("communication", hop.ps)
        self._spent["communication"] += hop.nj
        self._sent += self.network.hidden

    def _work(self) -> Work:
        return Work(np.zeros(self.chip.all_tiles), np.zeros(self.chip.chips))

    def _home(self, block: Block) -> int:
        """The chip of a block's attention, residual and norms: that of its first matrix after attention."""
        return self._chip_of(block.after[0][0])

    def _chip_of(self, matrix: int) -> int:
        return int(self._tiles[matrix][0]) // self.chip.tiles

    def _embedding(self, work: Work, home: int) -> None:
        """One row block of the token table, and of the position table: the rest of them is idle."""
        network, chip = self.network, self.chip
        tables = [network.token_embedding]
        if network.position_embedding is not None:
            tables.append(network.position_embedding)
        longest = Way(0.0, 0.0)
        for matrix in tables:
            row_blocks, column_blocks = network.matrices[matrix].grid(chip.tier_rows, chip.tier_cols)
            self._mvms(matrix, work, 1 / row_blocks)
            self._visit((matrix,), self._position, 1 / row_blocks)
            # The blocks of one row lie side by side unless tiles are few.
            some = self._tiles[matrix][:column_blocks]
            reading = Way(self._hops_ps(matrix, home), self._mvm.ps * int(np.bincount(some).max()))
            longest = max(longest, reading, key=sum)
            self._pay_hops(matrix, home, 1 / row_blocks)
            self._spent["fc"] += column_blocks * self._mvm.nj
        self._chain("communication", longest.hops_ps)
        self._chain("fc", longest.rest_ps)
        self._digital("fc", self.costs.add(network.hidden), home, work)
        if network.norm_first:
            self._digital("fc", self.costs.norm(network.hidden), home, work)

    def _head(self, home: int) -> None:
        """Final norm, product with the vocabulary, and sampling."""
        network, walk = self.network, self._walk
        self._digital("fc", self.costs.norm(network.hidden), home, walk.head)
        if self.lm_head:
            self._stage("fc", (network.head,), home, walk.head)
        self._digital("fc", self.costs.sampler(network.vocab), home, walk.head)

    def _stage(self, category: Category, stage: Sequence[int], home: int, work: Work) -> None:
        """Matrices side by side on one vector, and their partial sums."""
        self._visit(stage, self._position)
        hops, rest = self._pass(stage, home)
        self._chain("communication", hops)
        self._chain(category, rest)
        for matrix in stage:
            self._account(category, matrix, home, work, 1.0)

    def _pass(self, stage: Sequence[int], home: int) -> Way:
        """A token's way through `stage`."""
        hops = sums = 0.0
        pooled: dict[int, float] = defaultdict(float)
        for matrix in stage:
            row_blocks, column_blocks = self._grid(matrix)
            add = self.costs.add(self._block_cols(matrix)).ps
            hops = max(hops, self._hops_ps(matrix, home))
            sums = max(sums, (row_blocks - 1) * add)
            pooled[self._chip_of(matrix)] += (row_blocks - 1) * column_blocks * add
        if self.chip.partial_sums == "pool":
            # All columns start together; the units take them in turns.
            for busy in pooled.values():
                sums = max(sums, busy / self.chip.digital_units)
        return Way(hops, self._serial(stage) * self._mvm.ps + sums)

    def _serial(self, matrices: Iterable[int]) -> int:
        """MVMs in a row on the tile that has most of them."""
        cols = self.chip.tier_cols
        parts = [np.repeat(self._tiles[m], self.network.matrices[m].reads(cols)) for m in matrices]
        return int(np.bincount(np.concatenate(parts)).max())

    def _account(
        self, category: Category, matrix: int, home: int, work: Work, share: float, load: float | None = None
    ) -> None:
        """Energy and work of one matrix, of which a token needs `share` on average, and its tiles bear `load`."""
        row_blocks, column_blocks = self._grid(matrix)
        chunks = row_blocks * column_blocks
        self._mvms(matrix, work, share if load is None else load)
        self._pay_hops(matrix, home, share)
        add = self.costs.add(self._block_cols(matrix))
        sums = share * (row_blocks - 1) * column_blocks
        reads = self.network.matrices[matrix].reads(self.chip.tier_cols)
        self._spent[category] += share * chunks * reads * self._mvm.nj + sums * add.nj
        if self.chip.partial_sums == "pool":
            work.digital[self._chip_of(matrix)] += sums * add.ps

    def _mvms(self, matrix: int, work: Work, share: float) -> None:
        reads = self.network.matrices[matrix].reads(self.chip.tier_cols)
        np.add.at(work.tiles, self._tiles[matrix], share * reads * self._mvm.ps)

    def _grid(self, matrix: int) -> tuple[int, int]:
        return self.network.matrices[matrix].grid(self.chip.tier_rows, self.chip.tier_cols)

    def _block_cols(self, matrix: int) -> int:
        return min(self.network.matrices[matrix].cols, self.chip.tier_cols)

    def _hop(self, matrix: int, size: int, home: int) -> OpCost:
        """A transfer of `size` bytes between `home` and a chunk, over the link where the matrix is on another chip."""
        hop = self.costs.hop(size)
        if self._chip_of(matrix) == home or self.chip.link is None:
            return hop
        link = self.chip.link.hop(size)
        return OpCost(hop.ps + link.ps, hop.nj + link.nj)

    def _hops_ps(self, matrix: int, home: int) -> int:
        """Time of a way to one full chunk and back."""
        shape, chip = self.network.matrices[matrix], self.chip
        rows, cols = min(shape.rows, chip.tier_rows), min(shape.cols, chip.tier_cols)
        return self._hop(matrix, rows, home).ps + self._hop(matrix, cols, home).ps

    def _pay_hops(self, matrix: int, home: int, share: float) -> None:
        """Energy, and bytes between chips, of the ways to a share of the chunks and back; the border carries less."""
        shape, chip = self.network.matrices[matrix], self.chip
        rows, cols = _blocks(shape.rows, chip.tier_rows), _blocks(shape.cols, chip.tier_cols)
        row_blocks, col_blocks = (sum(number for _, number in blocks) for blocks in (rows, cols))
        there = sum(number * self._hop(matrix, size, home).nj for size, number in rows) * col_blocks
        back = sum(number * self._hop(matrix, size, home).nj for size, number in cols) * row_blocks
        self._spent["communication"] += share * (there + back)
        if self._chip_of(matrix) != home and chip.link is not None:
            self._sent += share * (shape.rows * col_blocks + shape.cols * row_blocks)

    def _digital(self, category: Category, cost: OpCost, home: int, work: Work, times: float = 1.0) -> None:
        """A digital operation on the chain."""
        self._chain(category, cost.ps)
        self._spend(category, cost, home, work, times)

    def _spend(self, category: Category, cost: OpCost, home: int, work: Work, times: float) -> None:
        work.digital[home] += times * cost.ps
        self._spent[category] += times * cost.nj

    def _chain(self, category: Category, ps: float) -> None:
        self._walk.chain_ps[category] += ps
        self._position += ps

    def _visit(self, matrices: Iterable[int], position: float, share: float = 1.0) -> None:
        """A token is at the tiles of these matrices, each of which it needs with probability `share`."""
        held = np.zeros(self.chip.all_tiles)
        for matrix in matrices:
            reads = self.network.matrices[matrix].reads(self.chip.tier_cols)
            np.add.at(held, self._tiles[matrix], share * reads * self._mvm.ps)
        self._walk.visits.visit(position, held)

    def _between(self, ffn: Ffn) -> list[OpCost]:
        """Digital operations between up and down projection: activation, and the product where it is gated."""
        found = [self.costs.activation(self.network.activation, ffn.width)]
        if len(ffn.up) > 1:
            found.append(self.costs.add(ffn.width))
        return found

    def _ffn(self, category: Category, ffn: Ffn, home: int, work: Work) -> None:
        """A dense FFN."""
        self._stage(category, ffn.up, home, work)
        for cost in self._between(ffn):
            self._digital(category, cost, self._chip_of(ffn.down), work)
        self._stage(category, (ffn.down,), home, work)

    def _experts(self, block: Block, law: Law, home: int, work: Work) -> None:
        """Router, gate, chosen and shared experts side by side, and their sum."""
        network = self.network
        assert block.router is not None
        self._stage("moe", (block.router,), home, work)
        self._digital("moe", self.costs.activation(network.activation, len(block.experts)), home, work)
        start = self._position
        differ = self._differ(block)
        way = self._chosen(block, law, home, _DRAWS if differ else 1)
        self._chain("communication", way.hops_ps)
        self._chain("moe", way.rest_ps)
        one = block.experts[0]
        half = sum(self._pass(one.up, home)) + sum(cost.ps for cost in self._between(one))
        picked = block.top_k / len(block.experts)
        self._visit([matrix for ffn in block.experts for matrix in ffn.up], start, picked)
        self._visit([ffn.down for ffn in block.experts], start + half, picked)
        top_k = block.top_k
        loads: Sequence[float] = law.share
        if differ:  # experts on tiles of their own: the busiest tile is one that many tokens happen to choose
            loads = (draw_counts(self._random, law.picks, _TOKENS, 1)[0] / _TOKENS).tolist()
        for ffn, share, load in zip(block.experts, law.share, loads, strict=True):
            for matrix in (*ffn.up, ffn.down):
                self._account("moe", matrix, home, work, share, load)
            for cost in self._between(ffn):
                self._spend("moe", cost, self._chip_of(ffn.down), work, share)
        for matrix in (*block.experts[0].up, block.experts[0].down):
            self._walk.expert_mvm_ps += top_k * len(self._tiles[matrix]) * self._mvm.ps
        sums = top_k - 1
        if block.shared is not None:
            sums += 1
            for matrix in (*block.shared.up, block.shared.down):
                self._account("moe", matrix, home, work, 1.0)
            for cost in self._between(block.shared):
                self._spend("moe", cost, self._chip_of(block.shared.down), work, 1.0)
        for _ in range(sums):
            self._digital("moe", self.costs.add(network.hidden), home, work)

    def _chosen(self, block: Block, law: Law, home: int, draws: int) -> Way:
        """The way through the chosen experts of one token, a mean over draws where it depends on them."""
        ways: dict[tuple[int, ...], Way] = {}
        drawn = []
        for counts in draw_counts(self._random, law.picks, 1, draws):
            chosen = tuple(np.flatnonzero(counts).tolist())
            if chosen not in ways:
                ways[chosen] = self._together(block, chosen, home)
            drawn.append(ways[chosen])
        return Way(sum(way.hops_ps for way in drawn) / draws, sum(way.rest_ps for way in drawn) / draws)

    def _differ(self, block: Block) -> bool:
        """Whether experts lie on different tiles."""
        first = block.experts[0]
        return any(
            not np.array_equal(self._tiles[a], self._tiles[b])
            for ffn in block.experts[1:]
            for a, b in zip((*first.up, first.down), (*ffn.up, ffn.down), strict=True)
        )

    def _together(self, block: Block, chosen: Sequence[int], home: int) -> Way:
        """The way through experts that start together: the longest one's, and the wait for tiles that they share."""
        ffns = [block.experts[expert] for expert in chosen]
        if block.shared is not None:
            ffns.append(block.shared)
        up = [matrix for ffn in ffns for matrix in ffn.up]
        down = [ffn.down for ffn in ffns]
        own_up = max(self._serial(ffn.up) for ffn in ffns)
        own_down = max(self._serial((ffn.down,)) for ffn in ffns)
        # Experts follow each other: one is in its down projection while the next is in its up projection.
        wait = max(
            self._serial(up) - own_up, self._serial(down) - own_down, self._serial([*up, *down]) - own_up - own_down
        )
        alone = max((self._through(ffn, home) for ffn in ffns), key=sum)
        return Way(alone.hops_ps, alone.rest_ps + wait * self._mvm.ps)

    def _through(self, ffn: Ffn, home: int) -> Way:
        """The way through one FFN."""
        up, down = self._pass(ffn.up, home), self._pass((ffn.down,), home)
        between = sum(cost.ps for cost in self._between(ffn))
        return Way(up.hops_ps + down.hops_ps, up.rest_ps + between + down.rest_ps)

    def _attention(self, shape: Attention, home: int) -> AttentionSlopes:
        """Attention of one layer, from what its cost function says at two contexts."""
        costs, dram = self.costs, self.chip.dram
        whole = Attention(shape.heads, shape.kv_heads, shape.kv_bytes, shape.decode_flops, shape.prefill_flops)
        near = costs.attention(whole, 1, _NEAR, cached=True, dram=dram)
        far = costs.attention(whole, 1, _FAR, cached=True, dram=dram)
        prompt = costs.attention(whole, _FAR, _FAR, cached=False, dram=dram)
        pairs = _FAR * (_FAR + 1) // 2
        units = min(self.chip.attention_units, shape.kv_heads) if self.chip.attention_split == "heads" else 1

        def affine(name: str, divisor: int = 1) -> tuple[float, float]:
            at_near, at_far = (_part(cost, name) / divisor for cost in (near, far))
            slope = (at_far - at_near) / (_FAR - _NEAR)
            return max(0.0, at_near - slope * _NEAR), slope

        return AttentionSlopes(
            self._position,
            home,
            shape.window_tokens,
            affine("dram_ps"),
            affine("compute_ps", units),
            affine("dram_nj"),
            affine("compute_nj"),
            dram.move(shape.kv_bytes),
            prompt.compute_ps / units / pairs,
            prompt.compute_nj / pairs,
        )


def _blocks(whole: int, size: int) -> list[tuple[int, int]]:
    """(elements, how many) of blocks of `size`, and of the smaller one at the border."""
    full, rest = divmod(whole, size)
    return [(elements, number) for elements, number in ((size, full), (rest, 1)) if elements and number]


def _part(cost: AttentionCost, name: str) -> float:
    return float(getattr(cost, name))
