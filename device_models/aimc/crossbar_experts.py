"""Routed experts on crossbars: time, busy units and energy of a layer, given how many tokens each expert got.

A tile makes one product at a time, and a token's copy for an expert needs products of all of the expert's chunks. So
the copies pass through the chips one behind the other. Experts that lie on the same tiles queue for them, and those on
tiles of their own do not. A copy alone takes its chain; among others it waits for the busiest of the resources that its
expert needs, until these are served:

    time = max over experts with tokens of (chain + max over their resources of (work of all copies - that of one)).

A resource is a tile, a chip's pool of digital units, or, where an expert is cut over several chips, a chip's link. With
one expert that is T1 + (tokens - 1) w, as the plan of a whole model has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.expert_layout import Slots
from pimserve.device_models.experts import FEATURES, GROUP_FEATURES

Work = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class CrossbarUnit:
    """A part of a chip that is busy with experts."""

    unit: str


@dataclass(frozen=True)
class CrossbarExperts:
    """Routed experts that lie on crossbars, as `AlikeGroups`.

    Args:
        layers: MoE layers, which count as alike.
        experts: of a layer.
        top_k: experts that a token picks.
        groups: of chips, with as many experts each.
        chips: of a group. Where there are several, a layer need not lie on all of them.
        units: the busiest tile of a layer, and the digital units.
        chains: of each expert of a group, the time of a copy alone, fs.
        tiles: (tiles, experts of a group) for each chip that a layer lies on: fs that a copy keeps a tile busy. Tiles
            of which another has at least as much to do for every expert are left out.
        digital: (chips that a layer lies on, experts of a group), likewise of a pool of digital units.
        copy_pj: energy of a copy.
        fullest: what the chip with most experts in all layers has, as a ratio of the mean chip of its group.
        slots: the expert in each slot, group by group, for all layers or for each; empty: experts in order. What is
            said of experts of a group is said of its slots.
        rebalance_every: of how many steps of a drift of popularities a layout is made; 0: `slots` stay.
        move_pj: energy of programming an expert of a layer, where layouts are made; 0: not known.
    """

    layers: int
    experts: int
    top_k: int
    groups: int
    chips: int
    units: tuple[CrossbarUnit, CrossbarUnit]
    chains: tuple[int, ...]
    tiles: tuple[Work, ...]
    digital: Work
    copy_pj: int
    fullest: tuple[int, int] = (1, 1)
    slots: tuple[Slots, ...] = ()
    rebalance_every: int = 0
    move_pj: int = 0

    @property
    def physical_experts(self) -> int:
        """Experts of a layer with their copies: its slots."""
        return len(self.slots[0]) if self.slots else self.experts

    @property
    def features(self) -> tuple[str, ...]:
        """Of two units."""
        return FEATURES

    @property
    def ways(self) -> int:
        """An expert is where its crossbars are."""
        return 1

    @property
    def weight_stationary(self) -> bool:
        """Weights stay on their crossbars."""
        return True

    @cached_property
    def _tiles(self) -> list[IntArray]:
        return [np.array(of_chip, np.int64) for of_chip in self.tiles]

    @property
    def resources(self) -> Iterator[Work]:
        """Work of a copy of each expert of a group on all that it may have to wait for, tiles first, then pools."""
        yield from self.tiles
        yield self.digital

    @cached_property
    def _work(self) -> IntArray:
        """(resources, experts of a group)."""
        return np.concatenate([np.array(work, np.int64) for work in self.resources])

    @cached_property
    def _needed(self) -> list[tuple[IntArray, IntArray]]:
        """Resources on which experts of a group have work, and how much: the first of each expert, the second, and so
        on; one that has no more comes again with its last."""
        of_experts = [np.flatnonzero(work) for work in self._work.T]
        most = max(map(len, of_experts))
        needed = np.stack([np.pad(of_expert, (0, most - len(of_expert)), "edge") for of_expert in of_experts], axis=1)
        return [(row, self._work[row, np.arange(len(row))]) for row in needed]

    @cached_property
    def _chains(self) -> IntArray:
        return np.array(self.chains, np.int64)

    @cached_property
    def _first_tiles(self) -> IntArray:
        """Of each chip."""
        return np.cumsum([0, *map(len, self.tiles)])[:-1]

    def least_fs(self, tokens: int) -> int:
        """The chain alone, or copies spread evenly over groups and their tiles, or pools."""
        if not tokens:
            return 0
        copies = tokens * self.top_k // self.groups
        even = [
            copies * int(work.sum(axis=0).min()) // len(work) for work in (np.concatenate(self._tiles), self._digital)
        ]
        return self.layers * max(min(self.chains), *even)

    @cached_property
    def _digital(self) -> IntArray:
        return np.array(self.digital, np.int64)

    def most_pj(self, tokens: int) -> int:
        """Exactly what they take."""
        return self.layers * tokens * self.top_k * self.copy_pj

    def layer_features(self, tokens: IntArray) -> IntArray:
        """(draws, features) of layers."""
        return self.merged(self.group_features(tokens.reshape(len(tokens), self.groups, -1)))

    def group_features(self, tokens: IntArray) -> IntArray:
        """One way; busy times are means over the chips of a group."""
        copies = tokens.reshape(-1, tokens.shape[2])
        work = copies @ self._work.T
        features = np.zeros((len(copies), len(GROUP_FEATURES)), np.int64)
        features[:, 0] = self._time_fs(copies, work)
        first, tiles = self._first_tiles, sum(map(len, self.tiles))
        features[:, 1] = np.maximum.reduceat(work[:, :tiles], first, axis=1).sum(axis=1) // self.chips
        features[:, 2] = work[:, tiles : tiles + len(self.digital)].sum(axis=1) // self.chips
        features[:, 4] = copies.sum(axis=1) * self.copy_pj
        return features.reshape(1, *tokens.shape[:2], -1)

    def merged(self, groups: IntArray) -> IntArray:
        """(draws, features) of layers of all groups."""
        taken = self.taken(groups)
        time, busy, energy = taken[:, :, 0], taken[:, :, 1:3], taken[:, :, 3:]
        of_busiest = np.take_along_axis(busy, time.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        most, mean = self.fullest
        mean_busy = busy.sum(axis=1) // self.groups
        return np.column_stack([time.max(axis=1), mean_busy, of_busiest * most // mean, energy.sum(axis=1)])

    def taken(self, groups: IntArray) -> IntArray:
        """(draws, groups, group features) of the only way."""
        return np.asarray(groups[0])

    def _time_fs(self, copies: IntArray, work: IntArray) -> IntArray:
        """(n,): time of groups, given (n, experts of a group) copies and (n, resources) what these bring to each."""
        wait = np.zeros_like(copies)
        for needed, of_copy in self._needed:
            np.maximum(wait, work[:, needed] - of_copy, out=wait, where=copies > 0)
        return np.asarray(np.where(copies > 0, self._chains + wait, 0).max(axis=1))


@dataclass(frozen=True)
class SlicedExperts(CrossbarExperts):
    """Routed experts of which each is cut over several chips, whose partial sums pass over the links between these.

    Args:
        slices: chips of an expert. A group of experts is on as many chips, or on several times as many.
        links: (chips that a layer lies on, experts of a group): fs that a copy keeps the link of a chip busy.
    """

    slices: int = 1
    links: Work = ()

    @property
    def resources(self) -> Iterator[Work]:
        """Links too."""
        yield from super().resources
        yield self.links
