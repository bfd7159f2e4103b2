"""One token's way through a mapped network with attention: its chain, and the work that it leaves on each resource.

Everything is derived from the mapping: which tiles a matrix's chunks lie on, on which chip, and how often one token
needs them. The rules are those of the event-driven model in its physical setting (`event.graph.PHYSICAL`), no others.
Times are in picoseconds, energies in nJ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.aimc.attention_slopes import AttentionSlopes
from pimserve.device_models.aimc.network import Block, Ffn
from pimserve.device_models.aimc.operation_costs import OpCost
from pimserve.device_models.aimc.placed import PassTime, PlacedNetwork
from pimserve.device_models.expert_picks import draw_counts, expert_share, pick_probabilities
from pimserve.device_models.operators import Category

_DRAWS = 16  # of experts, where a chain depends on which are chosen
_TOKENS = 64  # that are drawn to see how unevenly experts are chosen


class Law(NamedTuple):
    """How a token of one layer picks experts: as `pick_probabilities` and as `expert_share` say."""

    picks: NDArray[np.float64]
    share: tuple[float, ...]


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


@lru_cache(maxsize=4)  # as `map_model`
def walk(placed: PlacedNetwork, popularity: tuple[tuple[float, ...], ...], *, lm_head: bool) -> Walk:
    """One token through all layers of a network, with the head, as a `Walker` finds it."""
    return Walker(placed, popularity, lm_head=lm_head).walk()


@dataclass(eq=False)
class Walker:
    """Walks a network that is mapped on chips.

    Args:
        placed: the network, the chips, and where its chunks are.
        popularity: weight of each routed expert, a row for all MoE layers or for each; empty without any.
        lm_head: whether the product with the vocabulary counts.
    """

    placed: PlacedNetwork
    popularity: Sequence[Sequence[float]]
    lm_head: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        self.network, self.chip = self.placed.network, self.placed.chip
        self.costs = self.chip.costs
        top_k = max((block.top_k for block in self.network.blocks), default=0)
        self._laws = [
            Law(pick_probabilities(np.asarray(row, float), top_k), expert_share(row, top_k)) for row in self.popularity
        ]
        self._random = np.random.default_rng(0)  # which experts are drawn to look at; not the run's seed
        self._walk = Walk(self._work(), self._work(), Visits(self.chip.all_tiles))
        self._position = 0.0  # on the chain
        self._spent: dict[Category, float] = defaultdict(float)  # nJ, since the last barrier but one
        self._sent = 0.0  # bytes between chips, likewise

    def walk(self) -> Walk:
        """One token through all layers, with the head."""
        network, walk = self.network, self._walk
        homes = [self.placed.home(block) for block in network.blocks]
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
            walk.attention.append(AttentionSlopes.of(block.attention, self.chip, home, self._position))
            for stage in block.after:
                self._stage("fc", stage, home, segment)
            self._digital("fc", self.costs.add(network.hidden), home, segment)
            self._digital("fc", self.costs.norm(network.hidden), home, segment)
            if block.dense is not None:
                self._ffn("fc", block.dense, home, segment)
            elif block.router is not None:
                self._mixture(block, self._laws[min(routed, len(self._laws) - 1)], home, segment)
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

    def _embedding(self, work: Work, home: int) -> None:
        """One row block of the token table, and of the position table: the rest of them is idle."""
        network = self.network
        tables = [table for table in (network.token_embedding, network.position_embedding) if table is not None]
        longest = PassTime(0.0, 0.0)
        for matrix in tables:
            row_blocks, column_blocks = self.placed.grid(matrix)
            self._mvms(matrix, work.tiles, 1 / row_blocks)
            self._visit((matrix,), self._position, 1 / row_blocks)
            # The blocks of one row lie side by side unless tiles are few.
            some = self.placed.tiles[matrix][:column_blocks]
            reading = PassTime(self.placed.hops_ps(matrix, home), self.placed.mvm.ps * int(np.bincount(some).max()))
            longest = max(longest, reading, key=sum)
            self._pay_hops(matrix, home, 1 / row_blocks)
            self._spent["fc"] += column_blocks * self.placed.mvm.nj
        self._chain("communication", longest.hops_ps)
        self._chain("fc", longest.rest_ps)
        self._digital("fc", self.costs.add(network.hidden), home, work)
        if network.norm_first:
            self._digital("fc", self.costs.norm(network.hidden), home, work)

    def _head(self, home: int) -> None:
        """Final norm, product with the vocabulary, and sampling, which is where that is."""
        network, walk = self.network, self._walk
        self._digital("fc", self.costs.norm(network.hidden), home, walk.head)
        if network.head is None:
            return
        if self.lm_head:
            self._stage("fc", (network.head,), home, walk.head)
        self._digital("fc", self.costs.sampler(network.vocab), home, walk.head)

    def _stage(self, category: Category, stage: Sequence[int], home: int, work: Work) -> None:
        """Matrices side by side on one vector, and their partial sums."""
        self._visit(stage, self._position)
        hops, rest = self.placed.stage_time(stage, home)
        self._chain("communication", hops)
        self._chain(category, rest)
        for matrix in stage:
            self._account(category, matrix, home, work, 1.0, 1.0)

    def _account(self, category: Category, matrix: int, home: int, work: Work, share: float, load: float) -> None:
        """Energy and work of one matrix, of which a token needs `share` on average, and its tiles bear `load`."""
        row_blocks, column_blocks = self.placed.grid(matrix)
        chunks = row_blocks * column_blocks
        self._mvms(matrix, work.tiles, load)
        self._pay_hops(matrix, home, share)
        add = self.placed.sum_of(matrix)
        sums = share * (row_blocks - 1) * column_blocks
        reads = self.placed.reads(matrix)
        self._spent[category] += share * chunks * reads * self.placed.mvm.nj + sums * add.nj
        if self.chip.partial_sums == "pool":
            work.digital[self.placed.chip_of(matrix)] += sums * add.ps

    def _mvms(self, matrix: int, tiles: NDArray[np.float64], share: float) -> None:
        """Adds the products with a share of a matrix's chunks to the time of their tiles."""
        reads = self.placed.reads(matrix)
        np.add.at(tiles, self.placed.tiles[matrix], share * reads * self.placed.mvm.ps)

    def _pay_hops(self, matrix: int, home: int, share: float) -> None:
        """Energy, and bytes between chips, of the ways to a share of the chunks and back."""
        self._spent["communication"] += share * self.placed.hops_nj(matrix, home)
        if self.placed.chip_of(matrix) != home and self.chip.link is not None:
            self._sent += share * sum(self.placed.vector_bytes(matrix))

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
            self._mvms(matrix, held, share)
        self._walk.visits.visit(position, held)

    def _ffn(self, category: Category, ffn: Ffn, home: int, work: Work) -> None:
        """A dense FFN."""
        self._stage(category, ffn.up, home, work)
        for cost in self.placed.between(ffn):
            self._digital(category, cost, self.placed.chip_of(ffn.down), work)
        self._stage(category, (ffn.down,), home, work)

    def _mixture(self, block: Block, law: Law, home: int, work: Work) -> None:
        """Router, gate, chosen and shared experts side by side, as far as they are here, and their sum."""
        network = self.network
        assert block.router is not None
        self._stage("moe", (block.router,), home, work)
        gated = network.matrices[block.router].cols
        self._digital("moe", self.costs.activation(network.activation, gated), home, work)
        if block.experts:
            self._experts(block, law, home, work)
        elif block.shared is not None:
            self._ffn("moe", block.shared, home, work)
        for _ in range(block.results - 1):
            self._digital("moe", self.costs.add(network.hidden), home, work)

    def _experts(self, block: Block, law: Law, home: int, work: Work) -> None:
        """Chosen and shared experts."""
        start = self._position
        differ = self.placed.experts_apart(block)
        chosen = self._chosen_time(block, law, home, _DRAWS if differ else 1)
        self._chain("communication", chosen.hops_ps)
        self._chain("moe", chosen.rest_ps)
        one = block.experts[0][0]
        half = sum(self.placed.stage_time(one.up, home)) + sum(cost.ps for cost in self.placed.between(one))
        picked = block.top_k / len(block.experts)
        ffns = [ffn for expert in block.experts for ffn in expert]
        self._visit([matrix for ffn in ffns for matrix in ffn.up], start, picked)
        self._visit([ffn.down for ffn in ffns], start + half, picked)
        loads: Sequence[float] = law.share
        if differ:  # experts on tiles of their own: the busiest tile is one that many tokens happen to choose
            loads = (draw_counts(self._random, law.picks, _TOKENS, 1)[0] / _TOKENS).tolist()
        for expert, share, load in zip(block.experts, law.share, loads, strict=True):
            for ffn in expert:
                self._account_expert(ffn, home, work, share, load)
            self._account_reduction(expert, work, share)
        for matrix in (matrix for ffn in block.experts[0] for matrix in ffn.matrices):
            self._walk.expert_mvm_ps += block.top_k * len(self.placed.tiles[matrix]) * self.placed.mvm.ps
        if block.shared is not None:
            self._account_expert(block.shared, home, work, 1.0, 1.0)

    def _account_expert(self, ffn: Ffn, home: int, work: Work, share: float, load: float) -> None:
        for matrix in ffn.matrices:
            self._account("moe", matrix, home, work, share, load)
        for cost in self.placed.between(ffn):
            self._spend("moe", cost, self.placed.chip_of(ffn.down), work, share)

    def _account_reduction(self, expert: Sequence[Ffn], work: Work, share: float) -> None:
        """Partial sums of an expert that is cut over chips."""
        reduction = self.placed.reduction(expert)
        if reduction is None:
            return
        self._spent["communication"] += share * reduction.hops_nj
        self._spent["moe"] += share * reduction.sums_nj
        self._sent += share * reduction.bytes_sent
        for number, ffn in enumerate(expert):
            work.digital[self.placed.chip_of(ffn.down)] += share * reduction.digital_ps(number)

    def _chosen_time(self, block: Block, law: Law, home: int, draws: int) -> PassTime:
        """Through the chosen experts of one token, a mean over draws where it depends on them."""
        times: dict[tuple[int, ...], PassTime] = {}
        drawn = []
        for counts in draw_counts(self._random, law.picks, 1, draws):
            chosen = tuple(np.flatnonzero(counts).tolist())
            if chosen not in times:
                times[chosen] = self.placed.experts_time(block, chosen, home)
            drawn.append(times[chosen])
        return PassTime(sum(one.hops_ps for one in drawn) / draws, sum(one.rest_ps for one in drawn) / draws)
