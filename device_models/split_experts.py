"""Routed experts on two kinds of devices: hot ones, which most tokens pick, on one, and cold ones on the other.

Both kinds work at once, each on its own experts, and a layer waits for the slower of them. Which expert is where is a
permutation, of all layers or of each: the slots of the hot side, then those of the cold one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts
from pimserve.device_models.expert_layout import Slots
from pimserve.device_models.experts import FEATURES, MORE_UNITS, ExpertTerm, features_of

# After all others: what each side's own devices take. The layer waits for the slower side; what of the energies is not
# of the hot side is of the cold one.
SIDE_FEATURES = ("hot_fs", "cold_fs", "hot_dram_pj", "hot_compute_pj")
_PLACES = ("first", "second", *MORE_UNITS)
Side = ExpertTerm | CrossbarExperts


@dataclass(frozen=True, slots=True)
class SideUnit:
    """A unit of devices of one side."""

    unit: str


@dataclass(frozen=True, slots=True)
class SplitExperts:
    """Hot and cold routed experts, as `RoutedExperts`.

    Args:
        experts: of a layer, on both sides.
        top_k: experts that a token picks, of both.
        hot: those of one side, as if there were no others; a token picks none to all of its own from them.
        cold: those of the other side, likewise.
        units: of the hot side's devices, then of the cold side's.
        slots: the expert in each slot of the hot side, then of the cold one, for all layers or for each.
    """

    experts: int
    top_k: int
    hot: Side
    cold: Side
    units: tuple[SideUnit, ...]
    slots: tuple[Slots, ...]

    @property
    def layers(self) -> int:
        """MoE layers."""
        return self.hot.layers

    @property
    def features(self) -> tuple[str, ...]:
        """Of the units of both sides, and SIDE_FEATURES."""
        return (*features_of(len(self.units)), *SIDE_FEATURES)

    @property
    def physical_experts(self) -> int:
        """Slots of both sides."""
        return self.hot.physical_experts + self.cold.physical_experts

    @property
    def weight_stationary(self) -> bool:
        """Whether weights stay where they are on both sides."""
        return self.hot.weight_stationary and self.cold.weight_stationary

    def least_fs(self, tokens: int) -> int:
        """One of both sides has at least half of the picks."""
        return min(self.hot.least_fs(tokens // 2), self.cold.least_fs(tokens // 2))

    def most_pj(self, tokens: int) -> int:
        """As if tokens picked as many as they can from both."""
        return self.hot.most_pj(tokens) + self.cold.most_pj(tokens)

    def layer_features(self, tokens: IntArray) -> IntArray:
        """(draws, features) of layers."""
        hot, cold = np.split(tokens, [self.hot.physical_experts], axis=1)
        return self.merged(self.hot.layer_features(hot), self.cold.layer_features(cold))

    def merged(self, hot: IntArray, cold: IntArray) -> IntArray:
        """(draws, features) of layers, given what each side takes, (draws, its features): the time of the slower side;
        energies add up. Busy times are of each side's own devices, in the mean and of the group that it waits for."""
        columns = [dict(zip(FEATURES, side.T, strict=True)) for side in (hot, cold)]
        times = [side["time_fs"] for side in columns]
        found = {"time_fs": np.maximum(*times)} | dict(zip(SIDE_FEATURES, times, strict=False))
        for name in ("dram_pj", "compute_pj"):
            found[f"hot_{name}"] = columns[0][name]
            found[name] = columns[0][name] + columns[1][name]
        for place, (side, own) in zip(_PLACES, self._own_units(), strict=False):
            for what in ("busy", "of_busiest"):
                found[f"{place}_{what}_fs"] = columns[side][f"{own}_{what}_fs"]
        nothing = np.zeros_like(found["time_fs"])
        return np.column_stack([found.get(name, nothing) for name in self.features])

    def _own_units(self) -> Iterator[tuple[int, str]]:
        """(side, place among its units) of each unit."""
        for side, term in enumerate((self.hot, self.cold)):
            for place, _ in zip(_PLACES, term.units, strict=False):
                yield side, place


def sides_of(term: Side | SplitExperts) -> tuple[Side, ...]:
    """Routed experts of devices of one kind each: hot ones and cold ones, or all of them."""
    return (term.hot, term.cold) if isinstance(term, SplitExperts) else (term,)


def hottest(weights: Sequence[Sequence[float]], count: int) -> tuple[tuple[Slots, Slots], ...]:
    """(hot, cold) experts by number, for each row of weights: so many of the most popular, and all others.

    Of equal ones, the first count as more popular.
    """
    split = []
    for row in weights:
        order = np.argsort(-np.asarray(row, float), kind="stable").tolist()
        split.append((tuple(sorted(order[:count])), tuple(sorted(order[count:]))))
    return tuple(split)
