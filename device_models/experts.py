"""Routed experts of one MoE layer: time, busy units and energy, given how many tokens each expert got.

The slowest group of devices sets the layer's time. Inside a group the experts run one after the other on one unit,
or on two units side by side (expert co-processing, arXiv 2409.01141, section VI). Which expert runs where is decided
by the times themselves (`terms`), or as the paper has it by a deliberately crude table (`decision`).

By times, a group takes the least of several ways to divide its experts, and which ways there are hangs on the tokens
alone. Each way is faster, or as fast, on faster units, and so is therefore the layer: no resource hurts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import BoolArray, FloatArray, IntArray

Selection = Literal["first", "second", "faster", "co_processing", "paper_table"]
FEATURES = (
    "time_fs",
    "first_busy_fs",
    "second_busy_fs",
    "first_of_busiest_fs",
    "second_of_busiest_fs",
    "dram_pj",
    "compute_pj",
)
# Where experts are on two kinds of devices, these have up to four units.
MORE_UNITS = ("third", "fourth")
# Of experts on devices of their own, after all others: `time_fs` is then what a step waits for them beyond attention
# and links, `link_fs` what it waits for links, and `station_fs` the time for which the experts' devices are at work.
MIXED_FEATURES = ("link_fs", "station_fs")
LINK_FS, STATION_FS = -2, -1  # their places
GROUP_FEATURES = ("time_fs", "first_busy_fs", "second_busy_fs", "dram_pj", "compute_pj")


class NamedUnit(Protocol):
    """A unit that runs experts."""

    @property
    def unit(self) -> str:
        """Its name."""


def features_of(units: int) -> tuple[str, ...]:
    """Columns of experts that keep so many units busy: FEATURES, and what further ones need."""
    more = MORE_UNITS[: max(0, units - 2)]
    return (*FEATURES, *(f"{place}_{what}_fs" for place in more for what in ("busy", "of_busiest")))


class RoutedExperts(Protocol):
    """The routed experts of a plan: `layers` layers, each with its own routing. A frozen dataclass of plain data."""

    def __hash__(self) -> int:
        """Of the data: runs with equal experts share what is drawn."""

    @property
    def layers(self) -> int:
        """MoE layers."""

    @property
    def experts(self) -> int:
        """Experts of a layer."""

    @property
    def top_k(self) -> int:
        """Experts that a token picks."""

    @property
    def units(self) -> Sequence[NamedUnit]:
        """Up to four units of devices: those of `first`, `second` and so on in the features."""

    @property
    def features(self) -> tuple[str, ...]:
        """Columns of what layers cost: FEATURES, and of more than two units, more."""

    @property
    def slots(self) -> tuple[tuple[int, ...], ...]:
        """The expert in each slot, group by group, for all layers or for each, where an expert in several slots has
        copies; empty: experts in order."""

    @property
    def physical_experts(self) -> int:
        """Experts of a layer with their copies: its slots."""

    @property
    def weight_stationary(self) -> bool:
        """Whether weights stay where they are, and tokens pass by them."""

    def least_fs(self, tokens: int) -> int:
        """A bound from below of the time of a step with so many tokens, all layers."""

    def most_pj(self, tokens: int) -> int:
        """A bound of the energy of a step with so many tokens, all layers."""

    def layer_features(self, tokens: IntArray) -> IntArray:
        """(draws, features): cost of layers whose slots got `tokens` (draws, slots). Busy times are means over the
        devices, and those of the group that the layer waits for; energy is for all devices."""


class AlikeGroups(RoutedExperts, Protocol):
    """Experts on devices in `groups` alike groups, of which each holds as many, in the order of `slots`.

    What is said of experts of a group is said of its slots.
    """

    @property
    def groups(self) -> int:
        """Groups of devices that hold experts, as many physical ones each."""

    @property
    def ways(self) -> int:
        """Ways of which a layer takes the fastest."""

    def group_features(self, tokens: IntArray) -> IntArray:
        """What groups of devices take for their experts of a layer; a group needs to know nothing of the others.

        Args:
            tokens: (draws, groups, experts of a group), tokens that each expert got.

        Returns:
            (ways, draws, groups, group features), columns as in GROUP_FEATURES. Energy is for all devices of the group.
        """

    def merged(self, groups: IntArray) -> IntArray:
        """What layers cost, of which all groups have worked out their experts.

        Args:
            groups: (ways, draws, groups, group features), as `group_features` gives them.

        Returns:
            (draws, features), as `layer_features` has them.
        """

    def taken(self, groups: IntArray) -> IntArray:
        """(draws, groups, group features) of the way that ends first; `groups` as in `merged`."""


@dataclass(frozen=True, slots=True)
class ExpertUnit:
    """How one unit runs the slice of one expert that a device holds.

    `terms`: time in fs is the sum over terms of the max over pieces of const + slope x tokens (0 for no tokens).
    `decision`: (floor, slope) of the table entry max(floor, slope x tokens) that decides where an expert runs.
    Energies are for all slices of the expert together: `weight_pj` once, the others per token.
    """

    unit: str
    terms: tuple[tuple[tuple[int, int], ...], ...]
    decision: tuple[float, float]
    weight_pj: int
    token_dram_pj: int
    token_compute_pj: int

    def time_fs(self, tokens: IntArray) -> IntArray:
        """Time of one expert with `tokens` tokens; any shape."""
        total = np.zeros_like(tokens)
        for pieces in self.terms:
            total += np.maximum.reduce([const + slope * tokens for const, slope in pieces])
        return np.where(tokens > 0, total, 0)

    def table(self, tokens: IntArray) -> FloatArray:
        """The decision table's time, in units of one expert's weight read by the first unit; any shape."""
        floor, slope = self.decision
        return np.asarray(np.maximum(floor, slope * tokens))

    def dram_pj(self, tokens: IntArray) -> IntArray:
        """DRAM energy of one expert with `tokens` tokens; any shape."""
        return np.where(tokens > 0, self.weight_pj + self.token_dram_pj * tokens, 0)


@dataclass(frozen=True, slots=True)
class ExpertTerm:
    """Routed experts whose weights are fetched, as `AlikeGroups`.

    `units` holds one or two units; `selection` says how they are used: one of them, the one that is faster for the
    whole layer, or both side by side, divided by times ("co_processing") or by the paper's table ("paper_table").
    `spaces` is the number of memory spaces that a device's experts are laid out in: experts of one space run on one
    unit. `rebalance_every`: of how many steps of a drift of popularities a layout is made; 0: `slots` stay.
    """

    layers: int
    experts: int
    top_k: int
    groups: int
    spaces: int
    units: tuple[ExpertUnit, ...]
    selection: Selection
    slots: tuple[tuple[int, ...], ...] = ()
    rebalance_every: int = 0

    @property
    def physical_experts(self) -> int:
        """Experts of a layer with their copies: its slots."""
        return len(self.slots[0]) if self.slots else self.experts

    @property
    def features(self) -> tuple[str, ...]:
        """Of two units at most."""
        return FEATURES

    @property
    def ways(self) -> int:
        """Two where the faster unit runs the whole layer."""
        return 2 if self.selection == "faster" else 1

    @property
    def weight_stationary(self) -> bool:
        """Weights are fetched."""
        return False

    @property
    def move_pj(self) -> int:
        """Energy of bringing an expert of a layer to devices without it: its weights are read at one end and written at
        the other, each as devices read weights; links draw nothing beside their device."""
        return 2 * self.units[0].weight_pj

    def least_fs(self, tokens: int) -> int:
        """Tokens spread evenly over all units."""
        even_share = np.array([tokens * self.top_k // self.physical_experts])
        fastest = min(int(unit.time_fs(even_share)[0]) for unit in self.units)
        return self.layers * (self.physical_experts // self.groups) * fastest // len(self.units)

    def most_pj(self, tokens: int) -> int:
        """Each expert on the unit that takes more."""
        return self.layers * max(
            self.physical_experts * unit.weight_pj + tokens * self.top_k * (unit.token_dram_pj + unit.token_compute_pj)
            for unit in self.units
        )

    def layer_features(self, tokens: IntArray) -> IntArray:
        """(draws, features) of layers."""
        return self.merged(self.group_features(tokens.reshape(len(tokens), self.groups, -1)))

    def group_features(self, tokens: IntArray) -> IntArray:
        """One way, or for units of which the faster runs the whole layer, one for each."""
        times = [unit.time_fs(tokens) for unit in self.units]
        return np.stack([self._group_features(tokens, times, on_second) for on_second in self._ways(tokens, times)])

    def merged(self, groups: IntArray) -> IntArray:
        """(draws, features) of layers of all groups."""
        taken = self.taken(groups)
        time, busy, energy = taken[:, :, 0], taken[:, :, 1:3], taken[:, :, 3:]
        of_busiest = np.take_along_axis(busy, time.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        return np.column_stack([time.max(axis=1), busy.sum(axis=1) // self.groups, of_busiest, energy.sum(axis=1)])

    def taken(self, groups: IntArray) -> IntArray:
        """(draws, groups, group features) of the faster way."""
        taken = groups[0]
        for other in groups[1:]:
            sooner = other[:, :, 0].max(axis=1) < taken[:, :, 0].max(axis=1)
            taken = np.where(sooner[:, None, None], other, taken)
        return np.asarray(taken)

    def _ways(self, tokens: IntArray, times: Sequence[IntArray]) -> list[BoolArray]:
        """Of each way, which experts run on the second unit, (draws, groups, experts of a group)."""
        if self.selection in ("co_processing", "paper_table"):
            return [self._side_by_side(tokens, times)]
        seconds = (False, True) if self.selection == "faster" else (self.selection == "second",)
        return [np.full(tokens.shape, second) for second in seconds]

    def _group_features(self, tokens: IntArray, times: Sequence[IntArray], on_second: BoolArray) -> IntArray:
        features = np.zeros((*tokens.shape[:2], len(GROUP_FEATURES)), np.int64)
        for index, unit in enumerate(self.units):
            here = on_second if index else ~on_second
            features[:, :, 1 + index] = np.where(here, times[index], 0).sum(axis=2)
            features[:, :, 3] += np.where(here, unit.dram_pj(tokens), 0).sum(axis=2)
            features[:, :, 4] += np.where(here, unit.token_compute_pj * tokens, 0).sum(axis=2)
        # One group never uses both units but in co-processing, side by side.
        features[:, :, 0] = features[:, :, 1:3].max(axis=2)
        return features

    def _side_by_side(self, tokens: IntArray, times: Sequence[IntArray]) -> BoolArray:
        """(draws, groups, experts of a group): which experts run on the second unit, given each one's times on both.

        A group moves a run of its spaces, in order of their tokens, to the first unit.
        """
        experts = tokens.shape[2]
        spaces = min(self.spaces, experts)
        space_of = np.arange(experts) * spaces // experts
        starts = np.flatnonzero(np.diff(space_of, prepend=-1))

        def of_spaces(values: NDArray[Any]) -> NDArray[Any]:
            return np.add.reduceat(values, starts, axis=2)

        order = np.argsort(-of_spaces(tokens), axis=2, kind="stable")
        by_table = self.selection == "paper_table"
        costs = [unit.table(tokens) for unit in self.units] if by_table else times
        first, second = (
            np.pad(np.cumsum(np.take_along_axis(of_spaces(values), order, axis=2), axis=2), ((0, 0), (0, 0), (1, 0)))
            for values in costs
        )
        begin, end = _paper_run(first, second) if by_table else _fastest_run(first, second)
        rank = np.argsort(order, axis=2, kind="stable")
        stays = (rank < begin[:, :, None]) | (rank >= end[:, :, None])
        return np.asarray(stays[:, :, space_of])


def _fastest_run(first: IntArray, second: IntArray) -> tuple[IntArray, IntArray]:
    """(begin, end) of the run of spaces that the first unit should take, (draws, groups) each.

    All runs are tried, none and all among them, for the one with which the slower unit ends soonest: on average within
    0.2 % of the best of all sets of four spaces. (Those with most tokens alone would not do: where both units are bound
    by reading weights, one with few active experts fits beside the others.)

    Args:
        first: (draws, groups, spaces + 1), time of the first so many spaces on the first unit.
        second: the same on the second unit.
    """
    best = second[:, :, -1].copy()
    begin, end = np.zeros_like(best), np.zeros_like(best)
    for start in range(first.shape[2] - 1):
        left = second[:, :, -1:] - (second[:, :, start + 1 :] - second[:, :, start, None])
        makespan = np.maximum(first[:, :, start + 1 :] - first[:, :, start, None], left)
        shortest = makespan.min(axis=2)
        better = shortest < best
        best[better] = shortest[better]
        begin[better] = start
        end[better] = start + 1 + makespan.argmin(axis=2)[better]
    return begin, end


def _paper_run(first: FloatArray, second: FloatArray) -> tuple[IntArray, IntArray]:
    """The same by the paper's rule: those with most tokens move, up to the first that does not help by its table."""
    makespan = np.maximum(first, second[:, :, -1:] - second)
    makespan[:, :, 0] = second[:, :, -1]
    moves = np.cumprod(np.diff(makespan, axis=2) < 0, axis=2).sum(axis=2)
    return np.zeros_like(moves), moves
