"""Mapping: which crossbar holds which chunk of which matrix."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.network import Network
from pimserve.device_models.aimc.spread import Group, Spread, Spreader
from pimserve.device_models.memo import Memo
from pimserve.errors import DoesNotFitError, InputError

Strategy = Literal["greedy_in_order", "greedy_util", "moe_separated", "greedy_random", "greedy_top2"]
Density = Sequence[float] | Sequence[Sequence[float]]
Tiles = NDArray[np.int64]


class MappingSpec(BaseModel):
    """How matrices are put on tiles. The strategies are those of the reference simulator, spelled in either case.

    `greedy_in_order`: the next chunk goes to the tile with the smallest fill. `greedy_util`: to the lightest tile, by
    how often its chunks are expected to be used. `moe_separated`: likewise, and all experts of a layer share tiles, so
    that which experts are chosen does not matter. `greedy_random`: matrices in random order, to a random one of the
    least filled tiles. `greedy_top2`: in order, experts that are likely to be chosen together side by side. The sixth
    mapping is any of these but `moe_separated` with `split_ffn` off.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Strategy = "moe_separated"
    split_ffn: bool = Field(True, description="off: an expert's second matrix goes to the tiles of its first")
    stack_embedding: bool = Field(True, description="all row blocks of an embedding go to the tiles of one row block")
    seed: int = Field(0, ge=0, lt=2**63, description="of greedy_random")

    @field_validator("strategy", mode="before")
    @classmethod
    def _either_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Mapping:
    """Where chunks are. `tiles[m]` and `tiers[m]`: tile and tier of each chunk of matrix m, row-major; `fill`: tiers
    used on each tile of the replica; `spread`: what chips of it share; `settled`: more chips would change nothing.
    """

    tiles: tuple[tuple[int, ...], ...]
    tiers: tuple[tuple[int, ...], ...]
    fill: tuple[int, ...]
    spread: Spread = "layers"
    settled: bool = False


def map_network(
    network: Network,
    chip: Chip,
    spec: MappingSpec,
    *,
    spread: Spread | None = "layers",
    expert_density: Density | None = None,
) -> Mapping:
    """Puts every chunk of the network on a tier of its own.

    One chip is mapped as the reference simulator maps its chip, chunk for chunk (but for `greedy_random`). Of several,
    each gets a run of the layers ("layers") or an even share of every layer's experts and a run of the rest
    ("experts"), and is mapped with the same strategy; experts come before routers there, which take no expert's place.
    Chips that the network's experts are cut over share them as one chip would.
    None: layers, or experts where no number of chips holds the layers.

    `expert_density`, for greedy_top2: the probability of each pair of experts (E x E), or, for top 1, of each (E).
    Raises InputError if the network does not fit, or the strategy lacks what it needs.
    """
    if spread is None:
        try:
            return map_network(network, chip, spec, spread="layers", expert_density=expert_density)
        except DoesNotFitError as error:
            if error.least is not None or not any(block.experts for block in network.blocks):
                raise
        return map_network(network, chip, spec, spread="experts", expert_density=expert_density)
    separated = spec.strategy == "moe_separated"
    if separated and not spec.split_ffn:
        raise InputError("mapping.split_ffn", "must be true with moe_separated, which keeps an expert's matrices apart")
    experts = max((len(block.experts) for block in network.blocks), default=0)
    density = _Density(experts, expert_density) if spec.strategy == "greedy_top2" and experts else None
    spreader = Spreader(network, chip, stacked=separated, spread=spread)
    return _place_chips(network, chip, spec, spreader, density)


def _place_chips(
    network: Network, chip: Chip, spec: MappingSpec, spreader: Spreader, density: _Density | None
) -> Mapping:
    """Each chip by itself; of chips that get the like, one is placed."""
    tiles: list[tuple[int, ...]] = [()] * len(network.matrices)
    tiers: list[tuple[int, ...]] = [()] * len(network.matrices)
    fill: list[int] = []
    known: dict[Hashable, tuple[list[int], _Placer]] = {}
    dealt = spreader.groups()
    for number, groups in enumerate(dealt):
        kind = number if spec.strategy == "greedy_random" else _kind(network, groups, density)
        matrices = [m for group in groups for ffn in group.ffns for m in ffn]
        if kind not in known:
            placer = _Placer(network, chip, spec, number, density)
            try:
                placer.place(groups)
            except _NoTileError:
                raise spreader.does_not_fit() from None
            known[kind] = matrices, placer
        alike, placer = known[kind]
        of_replica = Memo(partial(_moved, by=number * chip.tiles))
        for m, other in zip(matrices, alike, strict=True):
            tiles[m], tiers[m] = of_replica[placer.tiles[other]], placer.tiers[other]
        fill += placer.fill.tolist()
    return Mapping(tuple(tiles), tuple(tiers), tuple(fill), spreader.spread, spreader.settled(dealt))


def _kind(network: Network, groups: Sequence[Group], density: _Density | None) -> Hashable:
    """All that decides where groups are put on a chip."""
    return tuple(
        (
            group.layer - groups[0].layer,
            len(network.blocks[group.layer].experts),
            group.experts if density is not None else len(group.experts),
            *((network.matrices[m].role, network.matrices[m].rows, network.matrices[m].cols) for m in group.ffns[0]),
        )
        for group in groups
    )


def _moved(tiles: tuple[int, ...], by: int) -> tuple[int, ...]:
    return tuple([tile + by for tile in tiles])


class _NoTileError(Exception):
    """No tile has the room that a chunk needs."""


class _Density:
    """How likely experts are chosen, alone and with others."""

    def __init__(self, experts: int, given: Density | None) -> None:
        if given is None:
            raise InputError("mapping.strategy", "greedy_top2 needs the density of experts (`expert_density`)")
        try:
            density = np.array(given, dtype=float)
        except ValueError:  # rows of unlike lengths
            density = np.array(math.nan)
        if density.shape not in {(experts,), (experts, experts)} or not np.all(np.isfinite(density) & (density >= 0)):
            raise InputError(
                "expert_density",
                f"must hold probabilities (0 or more) of {experts} experts or of {experts} x {experts} pairs of them",
            )
        self.alone = [float(row.sum()) for row in density]
        # Chosen one at a time, experts meet when sequences choose them independently.
        self.joint = density if density.ndim == 2 else np.outer(density, density)

    def order(self, experts: Sequence[int], tiles: int, offset: int, planar: int) -> list[int]:
        """Experts in the order in which sweeps over the tiles, from tile `offset` on, take them up.

        One takes `planar` tiles. The next of a sweep is the one most likely to be chosen together with those before;
        the one that would straddle the end of the sweep, the least likely of all.
        """
        left, ordered = list(experts), []
        while left:
            count = -(-(tiles - offset) // planar)
            straddles = (tiles - offset) % planar != 0
            sweep: list[int] = []
            for place in range(min(count, len(left))):
                if straddles and place == count - 1:
                    chosen = min(left, key=self.alone.__getitem__)
                else:
                    chosen = max(left, key=lambda e: self.alone[e] * (self.joint[e, sweep].sum() if sweep else 1.0))
                left.remove(chosen)
                sweep.append(chosen)
            ordered += sweep
            offset = (count * planar + offset) % tiles
        return ordered


@dataclass(eq=False)
class _Placer:
    """The tiles of one chip as they fill. `weight` is how many MVMs of a token a tile is expected to do.

    `tiles` and `tiers`: of each chunk of a matrix, as `Mapping` has them, but tiles of the chip.
    """

    network: Network
    chip: Chip
    spec: MappingSpec
    number: int
    density: _Density | None

    def __post_init__(self) -> None:
        self.tiles: dict[int, tuple[int, ...]] = {}
        self.tiers: dict[int, tuple[int, ...]] = {}
        seeds = (self.spec.seed, self.number)
        self._random = np.random.default_rng(seeds) if self.spec.strategy == "greedy_random" else None
        self._by_weight = self.spec.strategy in {"greedy_util", "moe_separated"}
        self.fill = np.zeros(self.chip.tiles, dtype=np.int64)
        self._weight = np.zeros(self.chip.tiles)

    def place(self, groups: Sequence[Group]) -> None:
        """Places groups, given in the order of the network's matrices."""
        separated = self.spec.strategy == "moe_separated"
        if separated:
            first = self._stacked_first
            groups = [*filter(first, groups), *(group for group in groups if not first(group))]
        else:
            groups = list(_merged(groups))
        if self._random is not None:
            groups = [groups[i] for i in self._random.permutation(len(groups))]
        for group in groups:
            if not group.experts:
                self._place_single(group.ffns[0][0])
            elif separated:
                for stack in zip(*group.ffns, strict=True):
                    self._place_stack(stack, self._expert_weight(group))
            else:
                self._place_experts(group)

    def _stacked_first(self, group: Group) -> bool:
        router = self.network.matrices[group.ffns[0][0]].role == "router"
        return bool(group.experts) or (router and self.chip.chips == 1)

    def _expert_weight(self, group: Group) -> float:
        return 1 / len(self.network.blocks[group.layer].experts)

    def _place_single(self, m: int) -> None:
        matrix, chunks = self.network.matrices[m], self._chunks(m)
        weight = 1.0
        if matrix.role in {"token_embedding", "position_embedding"}:
            weight = min(1.0, self.chip.tier_rows / matrix.rows)
            if self.spec.stack_embedding:
                row = -(-matrix.cols // self.chip.tier_cols)
                self._put(m, np.resize(self._choose(row, weight), chunks), weight)
                return
        self._put(m, self._choose(chunks, weight), weight)

    def _place_experts(self, group: Group) -> None:
        ffns = dict(zip(group.experts, group.ffns, strict=True))
        numbers: Sequence[int] = group.experts
        if self.density is not None:
            offset = (int(np.flatnonzero(self.fill == self.fill.max())[-1]) + 1) % self.chip.tiles
            *up, _ = group.ffns[0]
            planar = self._chunks(up[0]) * (len(up) + self.spec.split_ffn)
            numbers = self.density.order(numbers, self.chip.tiles, offset, planar)
        weight = self._expert_weight(group)
        for expert in numbers:
            *up, down = ffns[expert]
            for m in up:
                tiles = self._put(m, self._choose(self._chunks(m), weight), weight)
            if self.spec.split_ffn:
                self._put(down, self._choose(self._chunks(down), weight), weight)
            else:
                self._put(down, np.resize(tiles, self._chunks(down)), weight)

    def _place_stack(self, stack: Sequence[int], weight: float) -> None:
        """Places the same matrix of all experts: the first where there is room for all, the others on its tiles."""
        first, *others = stack
        # Several chips are filled to the last place; a tile that takes two chunks of a matrix then needs room for both.
        takes = len(stack) if self.chip.chips > 1 else 1
        tiles = self._put(first, self._lightest(self._chunks(first), weight, len(stack), takes), weight)
        if _distinct(tiles) and self.fill[tiles].max() + len(others) <= self.chip.tiers:
            where, base = self.tiles[first], self.tiers[first]
            for above, m in enumerate(others, start=1):
                self.tiles[m] = where
                self.tiers[m] = tuple(tier + above for tier in base)
                self._weight[tiles] += weight  # one by one: sums of weights are compared, so must be rounded alike
            self.fill[tiles] += len(others)
        else:
            for m in others:
                self._put(m, tiles, weight)

    def _chunks(self, m: int) -> int:
        rows, cols = self.network.matrices[m].grid(self.chip.tier_rows, self.chip.tier_cols)
        return rows * cols

    def _choose(self, chunks: int, weight: float) -> Tiles:
        return self._lightest(chunks, weight) if self._by_weight else self._least_filled(chunks)

    def _least_filled(self, chunks: int) -> Tiles:
        """Tiles for the chunks of a matrix, one chunk at a time to the smallest fill."""
        fill, chosen, left = self.fill.copy(), [], chunks
        while left:
            level = np.flatnonzero(fill == fill.min())
            if self._random is not None:
                level = self._random.permutation(level)
            level = level[:left]
            fill[level] += 1
            chosen.append(level)
            left -= len(level)
        return np.concatenate(chosen)

    def _lightest(self, chunks: int, weight: float, room: int = 0, takes: int = 1) -> Tiles:
        """Tiles for the chunks of a matrix, one at a time to the lightest tile with fill + `room` < tiers.

        No tile gets a second chunk while there is another, unless the matrix has more chunks than there are tiles. A
        chunk takes `takes` tiers.
        """
        order = np.argsort(self._weight, kind="stable")
        order = order[self.fill[order] + room < self.chip.tiers]
        if chunks > self.chip.tiles:
            order = order[:0]
        if len(order) >= chunks:
            return order[:chunks]
        fill, weights = self.fill.copy(), self._weight.copy()
        fill[order] += takes
        weights[order] += weight
        free = np.flatnonzero(fill + room < self.chip.tiers)
        heap = list(zip(weights[free].tolist(), free.tolist(), strict=True))
        heapq.heapify(heap)
        chosen = order.tolist()
        while len(chosen) < chunks:
            if not heap:
                raise _NoTileError
            load, tile = heapq.heappop(heap)
            chosen.append(tile)
            fill[tile] += takes
            if fill[tile] + room < self.chip.tiers:
                heapq.heappush(heap, (load + weight, tile))
        return np.array(chosen)

    def _put(self, m: int, tiles: Tiles, weight: float) -> Tiles:
        """Puts a matrix's chunks on those tiles, or, where one is full, on the tile with the smallest fill."""
        if _distinct(tiles) and self.fill[tiles].max() < self.chip.tiers:
            tiers = self.fill[tiles]
            self.fill[tiles] += 1
            self._weight[tiles] += weight
        else:
            tiles, tiers = tiles.copy(), np.empty_like(tiles)
            for chunk, wanted in enumerate(tiles):
                tile = wanted if self.fill[wanted] < self.chip.tiers else self.fill.argmin()
                if self.fill[tile] == self.chip.tiers:
                    raise _NoTileError
                tiles[chunk], tiers[chunk] = tile, self.fill[tile]
                self.fill[tile] += 1
                self._weight[tile] += weight
        self.tiles[m] = tuple(tiles.tolist())
        self.tiers[m] = tuple(tiers.tolist())
        return tiles


def _distinct(tiles: Tiles) -> bool:
    return len(set(tiles.tolist())) == len(tiles)


def _merged(groups: Iterable[Group]) -> Iterable[Group]:
    """Experts of a layer that follow each other as one group."""
    for (layer, is_expert), run in groupby(groups, key=lambda group: (group.layer, bool(group.experts))):
        if not is_expert:
            yield from run
            continue
        parts = list(run)
        yield Group(
            layer,
            tuple(ffn for part in parts for ffn in part.ffns),
            tuple(e for part in parts for e in part.experts),
            sum(part.tiers for part in parts),
            sum(part.positions for part in parts),
        )
