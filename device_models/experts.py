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
from typing import Any, Literal

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
    """The routed experts of a plan: `layers` alike layers, each with its own routing.

    `units` holds one or two units; `selection` says how they are used: one of them, the one that is faster for the
    whole layer, or both side by side, divided by times ("co_processing") or by the paper's table ("paper_table").
    `spaces` is the number of memory spaces that a device's experts are laid out in: experts of one space run on one
    unit.
    """

    layers: int
    experts: int
    top_k: int
    groups: int
    spaces: int
    units: tuple[ExpertUnit, ...]
    selection: Selection

    def least_fs(self, tokens: int) -> int:
        """A bound from below of the time of a step with so many tokens, all layers: spread evenly over all units."""
        even_share = np.array([tokens * self.top_k // self.experts])
        fastest = min(int(unit.time_fs(even_share)[0]) for unit in self.units)
        return self.layers * (self.experts // self.groups) * fastest // len(self.units)

    def most_pj(self, tokens: int) -> int:
        """A bound of the energy of a step with so many tokens, all layers: each expert on the unit that takes more."""
        return self.layers * max(
            self.experts * unit.weight_pj + tokens * self.top_k * (unit.token_dram_pj + unit.token_compute_pj)
            for unit in self.units
        )

    def layer_features(self, tokens: IntArray) -> IntArray:
        """Cost of layers with given routing.

        Args:
            tokens: (draws, experts), tokens that each expert got.

        Returns:
            (draws, features), columns as in FEATURES. Busy times are means over the devices, and those of the group
            that the layer waits for; energy is for all devices.
        """
        draws = tokens.shape[0]
        times = [unit.time_fs(tokens) for unit in self.units]
        if self.selection in ("co_processing", "paper_table"):
            on_second = self._side_by_side(tokens, times)
        elif self.selection == "faster":
            on_second = np.repeat(self._faster_second(times)[:, None], self.experts, axis=1)
        else:
            on_second = np.full(tokens.shape, self.selection == "second")
        time = np.zeros((draws, self.groups), np.int64)
        busy = np.zeros((2, draws, self.groups), np.int64)
        energy = np.zeros((draws, 2), np.int64)
        for index, unit in enumerate(self.units):
            mine = on_second if index else ~on_second
            per_group = np.where(mine, times[index], 0).reshape(draws, self.groups, -1).sum(axis=2)
            np.maximum(time, per_group, out=time)  # one group never uses both units but in co-processing, side by side
            busy[index] = per_group
            energy[:, 0] += np.where(mine, unit.dram_pj(tokens), 0).sum(axis=1)
            energy[:, 1] += np.where(mine, unit.token_compute_pj * tokens, 0).sum(axis=1)
        slowest = time.argmax(axis=1)[None, :, None]
        of_busiest = np.take_along_axis(busy, slowest, axis=2)[:, :, 0]
        return np.column_stack([time.max(axis=1), *(busy.sum(axis=2) // self.groups), *of_busiest, energy])

    def _faster_second(self, times: Sequence[IntArray]) -> BoolArray:
        """(draws,): whether the second unit runs the whole layer sooner, given each expert's times (draws, experts)."""
        first, second = (
            unit_times.reshape(len(unit_times), self.groups, -1).sum(axis=2).max(axis=1) for unit_times in times
        )
        return np.asarray(second < first)

    def _side_by_side(self, tokens: IntArray, times: Sequence[IntArray]) -> BoolArray:
        """(draws, experts): which experts run on the second unit, given each one's times on both, (draws, experts).

        A group moves a run of its spaces, in order of their tokens, to the first unit.
        """
        shape = (len(tokens), self.groups, self.experts // self.groups)
        spaces = min(self.spaces, shape[2])
        space_of = np.arange(shape[2]) * spaces // shape[2]
        starts = np.flatnonzero(np.diff(space_of, prepend=-1))

        def of_spaces(values: NDArray[Any]) -> NDArray[Any]:
            return np.add.reduceat(values.reshape(shape), starts, axis=2)

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
        return np.asarray(stays[:, :, space_of].reshape(tokens.shape))


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
