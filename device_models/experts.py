"""Routed experts of one MoE layer: time, busy units and energy, given how many tokens each expert got.

The slowest group of devices sets the layer's time. Inside a group the experts run one after the other on one unit,
or on two units side by side (expert co-processing, arXiv 2409.01141, section VI). Which expert runs where is decided
from a deliberately crude table (`decision`), kept apart from the time that it then takes (`terms`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

Selection = Literal["first", "second", "faster", "co_processing"]
FEATURES = ("time_fs", "first_busy_fs", "second_busy_fs", "dram_pj", "compute_pj")


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

    def table(self, tokens: IntArray) -> NDArray[np.float64]:
        """The decision table's time, in units of one expert's weight read by the first unit; any shape."""
        floor, slope = self.decision
        return np.asarray(np.maximum(floor, slope * tokens))

    def dram_pj(self, tokens: IntArray) -> IntArray:
        """DRAM energy of one expert with `tokens` tokens; any shape."""
        return np.where(tokens > 0, self.weight_pj + self.token_dram_pj * tokens, 0)


@dataclass(frozen=True, slots=True)
class ExpertTerm:
    """The routed experts of a plan: `layers` alike layers, each with its own routing.

    `units` holds one or two units; `selection` says how they are used. `spaces` is the number of memory spaces that
    a device's experts are laid out in: experts of one space run on one unit.
    """

    layers: int
    experts: int
    top_k: int
    groups: int
    spaces: int
    units: tuple[ExpertUnit, ...]
    selection: Selection

    def layer_features(self, tokens: IntArray) -> IntArray:
        """Cost of layers with given routing.

        Args:
            tokens: (draws, experts), tokens that each expert got.

        Returns:
            (draws, 5), columns as in FEATURES. Busy times are means over the devices, energy is for all devices.
        """
        draws = tokens.shape[0]
        if self.selection == "co_processing":
            on_second = self._co_processing(tokens)
        elif self.selection == "faster":
            on_second = np.repeat(self._faster_second(tokens)[:, None], self.experts, axis=1)
        else:
            on_second = np.full(tokens.shape, self.selection == "second")
        time = np.zeros((draws, self.groups), np.int64)
        busy = np.zeros((draws, 2), np.int64)
        energy = np.zeros((draws, 2), np.int64)
        for index, unit in enumerate(self.units):
            mine = on_second if index else ~on_second
            per_group = np.where(mine, unit.time_fs(tokens), 0).reshape(draws, self.groups, -1).sum(axis=2)
            np.maximum(time, per_group, out=time)  # one group never uses both units but in co-processing, side by side
            busy[:, index] = per_group.sum(axis=1) // self.groups
            energy[:, 0] += np.where(mine, unit.dram_pj(tokens), 0).sum(axis=1)
            energy[:, 1] += np.where(mine, unit.token_compute_pj * tokens, 0).sum(axis=1)
        return np.column_stack([time.max(axis=1), busy, energy])

    def _faster_second(self, tokens: IntArray) -> NDArray[np.bool_]:
        """(draws,): whether the second unit runs the whole layer sooner."""
        first, second = (
            unit.time_fs(tokens).reshape(len(tokens), self.groups, -1).sum(axis=2).max(axis=1) for unit in self.units
        )
        return np.asarray(second < first)

    def _co_processing(self, tokens: IntArray) -> NDArray[np.bool_]:
        """(draws, experts): which experts run on the second unit.

        All start there; spaces move to the first unit, most tokens first, while the table's makespan falls.
        """
        draws = len(tokens)
        per_group = self.experts // self.groups
        spaces = min(self.spaces, per_group)
        space_of = np.arange(per_group) * spaces // per_group
        starts = np.flatnonzero(np.diff(space_of, prepend=-1))
        shape = (draws, self.groups, per_group)
        in_space = np.add.reduceat(tokens.reshape(shape), starts, axis=2)
        first = np.add.reduceat(self.units[0].table(tokens).reshape(shape), starts, axis=2)
        second = np.add.reduceat(self.units[1].table(tokens).reshape(shape), starts, axis=2)
        order = np.argsort(-in_space, axis=2, kind="stable")
        moved_first = np.cumsum(np.take_along_axis(first, order, axis=2), axis=2)
        moved_second = np.cumsum(np.take_along_axis(second, order, axis=2), axis=2)
        left = moved_second[:, :, -1:] - moved_second
        makespan = np.concatenate([moved_second[:, :, -1:], np.maximum(moved_first, left)], axis=2)
        falls = np.diff(makespan, axis=2) < 0
        moves = np.cumprod(falls, axis=2).sum(
            axis=2
        )  # (draws, groups): spaces that move before the first that does not help
        rank = np.argsort(order, axis=2, kind="stable")
        stays = rank >= moves[:, :, None]
        return np.asarray(stays[:, :, space_of].reshape(tokens.shape))
