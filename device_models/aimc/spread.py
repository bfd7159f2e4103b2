"""Which chip of a replica holds which matrices."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.network import Block, Network
from pimserve.errors import DoesNotFitError

Spread = Literal["layers", "experts"]
WHERE = "cluster.devices_per_node"


@dataclass(frozen=True, slots=True)
class Group:
    """Matrices that stay together: one that is no expert's, or those of some experts of a layer.

    `ffns[i]` holds matrices of expert `experts[i]`, the same of each. `tiers` is the room of all, `positions` that of
    one expert.
    """

    layer: int
    ffns: tuple[tuple[int, ...], ...]
    experts: tuple[int, ...]
    tiers: int
    positions: int


@dataclass(frozen=True, slots=True)
class Room:
    """What one chip holds. `positions`: matrices of a first expert, if the others share its tiles."""

    tiers: int
    positions: int


@dataclass(eq=False)
class Spreader:
    """Deals the matrices of a network out to chips.

    `stacked`: the experts of a layer share tiles, so that all experts of a matrix have to be on one chip, and a tile
    takes (tiers - 1) // experts of these stacks (a stack is put where fill + experts < tiers). Experts that are cut are
    spread over groups of as many chips, each of which has one FFN of each expert there.
    """

    network: Network
    chip: Chip
    stacked: bool = field(kw_only=True)
    spread: Spread = field(kw_only=True)

    def __post_init__(self) -> None:
        chip, self._by_expert = self.chip, self.spread == "experts"
        grids = [matrix.grid(chip.tier_rows, chip.tier_cols) for matrix in self.network.matrices]
        self._tiers = [rows * cols for rows, cols in grids]
        self._experts = max((len(block.experts) for block in self.network.blocks), default=0)
        self._slices = self.network.slices
        self._routed = [block.experts for block in self.network.blocks if block.experts]
        if self._by_expert and self._experts * self._slices < chip.chips:
            raise DoesNotFitError(
                WHERE,
                f"experts are spread over {chip.chips} chips, but a layer has {self._experts}; allowed are at most "
                "as many chips as experts, or spreading layers",
                None,
            )

    @property
    def fits(self) -> bool:
        """Whether chips have the room, as far as that can be told before chunks are placed."""
        return self._deal(self.chip.chips) is not None

    def groups(self) -> list[list[Group]]:
        """Groups of each chip, in the order of the network's matrices."""
        chips = self._deal(self.chip.chips)
        if chips is None:
            raise self.does_not_fit()
        return chips

    def settled(self, dealt: Sequence[Sequence[Group]]) -> bool:
        """Whether more chips would get the same groups, and nothing: the fullest has one, which is never parted."""
        fullest = max(sum(group.tiers for group in on_chip) for on_chip in dealt)
        largest = max((group.tiers for on_chip in dealt for group in on_chip), default=0)
        return not self._by_expert and self.chip.chips > 1 and fullest == largest

    def does_not_fit(self) -> DoesNotFitError:
        """The error that says how much is needed, how much there is, and what would do."""
        chip, experts = self.chip, self._experts_per_chip(self.chip.chips)
        needed, there = sum(self._tiers), chip.chips * chip.tiles * chip.tiers
        message = (
            f"the network does not fit: it needs {needed:,} tiers of {chip.tier_rows} x {chip.tier_cols}, and "
            f"{chip.chips} x {chip.tiles:,} tiles of {chip.tiers} tiers have {there:,}"
        )
        if self._by_expert:
            message += f"; a chip gets up to {experts} of a layer's experts"
        stacked = self.stacked and experts > 0
        if stacked:
            stacks = sum(
                self._tiers[m] for block in self.network.blocks for ffns in block.experts[:1] for m in ffns[0].matrices
            )
            message += (
                f"; moe_separated puts a chunk of {experts} experts on one tile and leaves a tier free, so that a tile "
                f"takes {(chip.tiers - 1) // experts} of {stacks:,} such chunks and a chip "
                f"{self._room(chip.chips).positions:,}"
            )
        least = self._least_chips()
        remedies = [
            *(["no number of such chips will do, but"] if least is None else [f"use {least} such chips,"]),
            f"{f'more than {experts}' if stacked and experts >= chip.tiers else 'more'} tiers per tile, more tiles,",
            *(["another strategy than moe_separated,"] if stacked else []),
            *(
                ["experts spread over the chips (cluster.device.spread=experts),"]
                if stacked and not self._by_expert
                else []
            ),
            "or a smaller model",
        ]
        return DoesNotFitError(WHERE, f"{message}; {' '.join(remedies)}", least)

    def _experts_per_chip(self, chips: int) -> int:
        """Experts of a layer on the chip that has most of them."""
        return -(-self._experts * self._slices // chips) if self._by_expert else self._experts

    def _room(self, chips: int) -> Room:
        chip, experts = self.chip, self._experts_per_chip(chips)
        positions = (chip.tiers - 1) // experts * chip.tiles if self.stacked and experts else chip.tiles * chip.tiers
        return Room(chip.tiles * chip.tiers, positions)

    def _least_chips(self) -> int | None:
        most = self._experts if self._by_expert else len(self.network.matrices)
        if self._deal(most) is None:
            return None
        bound = -(-sum(self._tiers) // (self.chip.tiles * self.chip.tiers))
        first = max(self.chip.chips + 1, bound)
        return next((chips for chips in range(first, most + 1) if self._deal(chips) is not None), None)

    def _deal(self, chips: int) -> list[list[Group]] | None:
        """Groups of each chip, the fullest as empty as can be; None if they do not fit."""
        room = self._room(chips)
        if self._by_expert and (chips % self._slices or not self._experts_fit(chips, room)):
            return None
        groups = [
            Group(matrix.layer, ((m,),), (), self._tiers[m], 0)
            for m, matrix in enumerate(self.network.matrices)
            if matrix.role != "expert"
        ]
        dealt: list[list[Group]] = [[] for _ in range(chips)]
        for layer, block in enumerate(self.network.blocks):
            experts = len(block.experts)
            if not experts:
                continue
            if chips == 1:
                groups.append(self._expert_group(layer, block, range(experts)))
            elif self._by_expert:
                for first, numbers in enumerate(_shares(experts, chips // self._slices)):
                    for of_expert in range(self._slices):
                        group = self._expert_group(layer, block, numbers, of_expert=of_expert)
                        dealt[first * self._slices + of_expert].append(group)
            elif self.stacked:
                parts = range(len(block.experts[0][0].matrices))
                groups += [self._expert_group(layer, block, range(experts), part) for part in parts]
            else:
                groups += [self._expert_group(layer, block, range(e, e + 1)) for e in range(experts)]
        groups.sort(key=_first_matrix)
        if chips == 1:
            return [groups] if sum(group.tiers for group in groups) <= room.tiers else None
        if any(sum(group.positions for group in on_chip) > room.positions for on_chip in dealt):
            return None
        taken = [sum(group.tiers for group in on_chip) for on_chip in dealt]
        total = sum(taken) + sum(group.tiers for group in groups)
        even = max(-(-total // chips), *taken, *(group.tiers for group in groups))
        limits = range(even, room.tiers + 1)
        if not limits or _fill(groups, taken, room) is None:
            return None
        limit = limits[
            bisect_left(limits, True, key=lambda tiers: _fill(groups, taken, Room(tiers, room.positions)) is not None)
        ]
        filled = _fill(groups, taken, Room(limit, room.positions))
        assert filled is not None
        return [sorted(on_chip + more, key=_first_matrix) for on_chip, more in zip(dealt, filled, strict=True)]

    def _experts_fit(self, chips: int, room: Room) -> bool:
        """Whether chips have the room for their shares of every layer's experts, which is soon told."""
        if chips == 1:
            return True
        for of_expert in range(self._slices):
            tiers = [sum(self._tiers[m] for m in experts[0][of_expert].matrices) for experts in self._routed]
            most = [-(-len(experts) * self._slices // chips) for experts in self._routed]
            if self.stacked and sum(tiers) > room.positions:
                return False
            if sum(number * size for number, size in zip(most, tiers, strict=True)) > room.tiers:
                return False
        return True

    def _expert_group(
        self, layer: int, block: Block, numbers: range, part: int | None = None, of_expert: int = 0
    ) -> Group:
        """Those experts of a layer, or FFN `of_expert` of each that is cut; `part`: only that matrix of each."""
        ffns = tuple(block.experts[e][of_expert].matrices for e in numbers)
        if part is not None:
            ffns = tuple((ffn[part],) for ffn in ffns)
        positions = sum(self._tiers[m] for m in ffns[0])
        return Group(layer, ffns, tuple(numbers), positions * len(ffns), positions if self.stacked else 0)


def _first_matrix(group: Group) -> int:
    return group.ffns[0][0]


def _shares(count: int, parts: int) -> list[range]:
    """`count` things in `parts` runs whose lengths differ by one at most."""
    return [range(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def _fill(groups: Sequence[Group], taken: Sequence[int], room: Room) -> list[list[Group]] | None:
    """Fills chips one after the other, tiers `taken` before; None if it takes more chips."""
    filled: list[list[Group]] = [[] for _ in taken]
    chip, tiers, positions = 0, taken[0], 0
    for group in groups:
        while tiers + group.tiers > room.tiers or positions + group.positions > room.positions:
            chip += 1
            if chip == len(taken):
                return None
            tiers, positions = taken[chip], 0
        filled[chip].append(group)
        tiers += group.tiers
        positions += group.positions
    return filled
