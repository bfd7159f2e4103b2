"""The link between devices of attention and of experts: what of routed tokens' vectors passes, and how long that takes.

A token's vector goes to the devices of its experts, and comes back. Devices of attention share the sending evenly; at
the experts', the device that has most to receive counts. Both sides are busy at the same time, and the slower one sets
the time (MegaScale-Infer, arXiv 2504.02263, section 4: the maximum over both sides), beside a fixed latency. Which
device gets how much is what popularities and places of experts make expect, layer by layer; the draw of a step does not
change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from pimserve.arrays import FloatArray
from pimserve.device_models.expert_picks import expert_share

Direction = Literal["dispatch", "combine"]
DIRECTIONS: tuple[Direction, ...] = ("dispatch", "combine")
LinkKey = tuple[Direction, Literal["bytes", "tokens"]]
_FS_PER_US, _FS_PER_S = 10**9, 10**15


class Copies(NamedTuple):
    """Of a token's vector in a MoE layer, in the mean over the layers, to devices at one end of the link, and back.

    `routed`: to all of them, for routed experts; `to_all`: and for shared ones, there and back; `busiest`: those of the
    device that gets most in its layer, likewise. `hits`: for routed experts to each device, or group of devices that
    split experts.
    """

    routed: float
    to_all: tuple[float, float]
    busiest: tuple[float, float]
    hits: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """Devices of experts of one kind.

    Args:
        holders: slots of each device, or group of devices that split experts, in order.
        slices: devices of such a group, all of which get the vector.
        vector_bytes: of a vector that is dispatched to them, and of one that comes back.
        gb_per_s: of a device, one way.
        shared_by: devices of which a token needs all, as they share experts that all tokens take; 0: there are none.
        turns: data-parallel groups of these, which take turns with the tokens.
        back: share of a vector that comes back for a copy of a routed one, where devices add it up among themselves.
    """

    holders: tuple[int, ...]
    slices: int
    vector_bytes: tuple[float, float]
    gb_per_s: float
    shared_by: int = 0
    turns: int = 1
    back: float = 1.0

    def copies(self, hits: FloatArray, *, per_pick: bool) -> Copies:
        """Given how often a token goes to each holder, (laws, holders).

        Devices with shared experts need every token whose turn is theirs, also those without a routed expert of it.
        """
        routed, busiest = float(hits.sum(axis=1).mean()) * self.slices, float(hits.max(axis=1).mean())
        each = tuple(hits.mean(axis=0).tolist())
        needed = []
        for share in (1.0, self.back):
            to_all, most = routed * share, busiest * share
            if self.shared_by and per_pick:
                to_all, most = to_all + self.shared_by, most + 1 / self.turns
            elif self.shared_by:
                without = 1 - share * sum(each) / len(each)
                to_all, most = to_all + self.shared_by * without, most + (1 - most) / self.turns
            needed.append((to_all, most))
        there, back = needed
        return Copies(routed, (there[0], back[0]), (there[1], back[1]), each)


@dataclass(frozen=True, slots=True)
class RoutedLink:
    """The link, as far as it hangs on routed experts.

    Args:
        layers: MoE layers, each of which dispatches and combines.
        top_k: experts that a token picks.
        per_pick: a vector goes to a device for each expert, else once.
        senders: devices of attention.
        gb_per_s: of one of these, one way.
        latency_us: of a dispatch, and of a combine.
        ends: hot experts' devices, where there are some, then the experts'.
        copies: of a token's vector to each of them, as popularities and places of experts have it (`at`).
    """

    layers: int
    top_k: int
    per_pick: bool
    senders: int
    gb_per_s: float
    latency_us: float
    ends: tuple[LinkEnd, ...]
    copies: tuple[Copies, ...] = ()

    def at(self, weights: Sequence[Sequence[float]], slots: Sequence[Sequence[int]]) -> RoutedLink:
        """The link while experts are as popular, and where they are.

        Args:
            weights: popularity of each expert, a row for all MoE layers or for each.
            slots: the expert in each slot, likewise; empty: experts in order.
        """
        shares = [share for end in self.ends for share in end.holders]
        hits = _hits(weights, self.top_k, slots, shares, per_pick=self.per_pick)
        upto = np.cumsum([len(end.holders) for end in self.ends])[:-1]
        both = zip(self.ends, np.split(hits, upto, axis=1), strict=True)
        return replace(self, copies=tuple(end.copies(of_end, per_pick=self.per_pick) for end, of_end in both))

    def time_fs(self, direction: Direction) -> tuple[int, int]:
        """Of all layers: (of a step, of each of its tokens)."""
        way, ends = DIRECTIONS.index(direction), list(zip(self.ends, self.copies, strict=True))
        moved = [end.vector_bytes[way] * copies.to_all[way] for end, copies in ends]
        sent = sum(moved) / self.senders / self.gb_per_s
        received = max(end.vector_bytes[way] * copies.busiest[way] / end.gb_per_s for end, copies in ends)
        fixed = round(self.layers * self.latency_us * _FS_PER_US)
        return fixed, round(self.layers * max(sent, received) / 1e9 * _FS_PER_S)

    def passing(self, direction: Direction) -> list[tuple[float, float]]:
        """(vectors of a token in all layers, bytes of each) to each end."""
        way, both = DIRECTIONS.index(direction), zip(self.ends, self.copies, strict=True)
        return [(self.layers * copies.to_all[way], end.vector_bytes[way]) for end, copies in both]

    def to_devices(self, direction: Direction, end: int, devices: int) -> list[float]:
        """Copies of a token's vector that each of so many devices at an end gets in a MoE layer, or sends."""
        way, copies = DIRECTIONS.index(direction), self.copies[end]
        hits, needed = copies.hits, copies.to_all[way]
        of_routed = copies.routed * (1.0, self.ends[end].back)[way]
        even = of_routed * len(hits) / devices / sum(hits)  # devices of a holder share its copies
        routed = [hits[device * len(hits) // devices] * even for device in range(devices)]
        if needed == of_routed:
            return routed
        if self.per_pick:
            return [of_device + (needed - of_routed) / devices for of_device in routed]
        more = (needed - of_routed) / (devices - of_routed)
        return [of_device + more * (1 - of_device) for of_device in routed]

    def sent(self) -> dict[LinkKey, float]:
        """What passes for a token in all layers, to all ends."""
        found: dict[LinkKey, float] = {}
        for direction in DIRECTIONS:
            passing = self.passing(direction)
            found[direction, "bytes"] = sum(vectors * size for vectors, size in passing)
            found[direction, "tokens"] = sum(vectors for vectors, _ in passing)
        return found


def _hits(
    weights: Sequence[Sequence[float]],
    top_k: int,
    slots: Sequence[Sequence[int]],
    shares: Sequence[int],
    *,
    per_pick: bool,
) -> FloatArray:
    """(laws, holders): how often a token goes to each device, or group of them, that holds experts, so many slots each;
    at most once, or per pick.

    A pick of an expert with copies goes to any of them alike. The chance that no pick leads to one is the ratio of
    elementary symmetric polynomials of the weights with and without what leads there (as in `pick_probabilities`).
    """
    laws, holder = max(len(weights), len(slots)), np.repeat(np.arange(len(shares)), shares)
    rows = np.array([weights[min(law, len(weights) - 1)] for law in range(laws)], float)
    leads = np.zeros((laws, len(shares), rows.shape[1]))
    for law in range(laws):
        places = np.asarray(slots[min(law, len(slots) - 1)] if slots else range(rows.shape[1]))
        np.add.at(leads[law], (holder, places), 1)
        leads[law] /= leads[law].sum(axis=0)
    if per_pick:
        picks = [np.asarray(expert_share(row, top_k)) for row in rows.tolist()]
        return np.stack([lead @ share for lead, share in zip(leads, picks, strict=True)])
    return np.asarray(1 - _symmetric(rows[:, None] * (1 - leads), top_k) / _symmetric(rows, top_k)[:, None])


def _symmetric(weights: FloatArray, degree: int) -> FloatArray:
    """Elementary symmetric polynomial of the last axis."""
    sums = np.zeros((*weights.shape[:-1], degree + 1))
    sums[..., 0] = 1.0
    for weight in np.moveaxis(weights, -1, 0):
        sums[..., 1:] += weight[..., None] * sums[..., :-1].copy()
    return np.asarray(sums[..., degree])
