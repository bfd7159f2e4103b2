"""Which expert is on which group of devices: slots, as many in each group, that hold an expert each.

Where there are more slots than experts, some have copies. As in DeepSeek's EPLB (github.com/deepseek-ai/EPLB, with
one group of experts), whose layouts vLLM and SGLang take: copies go one by one to the expert whose load per copy is the
highest then, and all are packed the heaviest first, each into the group with the least load among those with slots
left. Packing is the rule of the longest processing time first (Graham 1969, doi 10.1137/0117039), with bins of equal
size. Beyond EPLB, a second copy of an expert goes to a group that has it already only where no other has slots left,
no expert has more copies than there are groups, and where packing is no better than experts in order, these stay.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from pimserve.arrays import FloatArray, IntArray

ExpertOrder = Literal["contiguous", "round_robin", "popularity"]
Slots = tuple[int, ...]  # the expert of each slot, group by group
_LOADS = 2**30  # in whole parts, loads that differ by rounding alone are the same


def layout(order: ExpertOrder, load: Sequence[float], groups: int, redundant: int = 0) -> Slots:
    """The expert of each slot of a layer; of a group in ascending order.

    Args:
        order: contiguous: experts by number, then the copies; round_robin: the same, dealt to the groups in turns;
            popularity: balanced, so that no group has more load than needed.
        load: of each expert, its share of the picks.
        groups: of devices; they divide the slots.
        redundant: copies beside the first ones, at most experts x (groups - 1).
    """
    parts = _whole(load)
    copies = _copies(parts, redundant, groups)
    in_order = [*range(len(load)), *(e for e, n in enumerate(copies) for _ in range(n - 1))]
    if order == "round_robin":
        return _of_groups(in_order[first::groups] for first in range(groups))
    contiguous = _of_groups(np.reshape(in_order, (groups, -1)).tolist())
    if order == "contiguous":
        return contiguous
    packed = _of_groups(_packed(parts, copies, groups))
    # Packing is a heuristic: it may miss what lies there already.
    return min(contiguous, packed, key=lambda slots: float(group_loads(slots, parts, groups).max()))


def group_loads(slots: Slots, load: Sequence[float], groups: int) -> FloatArray:
    """(groups,): load of each group of devices, where copies share that of their expert evenly."""
    return np.asarray(layer_loads([slots], [load])[0].reshape(groups, -1).sum(axis=1))


def layer_loads(slots: Sequence[Slots], loads: Sequence[Sequence[float]]) -> FloatArray:
    """(layers, slots): load of each slot.

    Args:
        slots: a row for all layers, or one for each; empty: experts in order, a slot each.
        loads: of each expert, likewise.
    """
    given = np.asarray(loads, float)
    rows = np.array(slots) if slots else np.arange(given.shape[1])[None]
    layers = max(len(rows), len(given))
    given = np.broadcast_to(given, (layers, given.shape[1]))
    shared = given / np.stack([np.bincount(row, minlength=given.shape[1]) for row in rows])
    return np.asarray(np.take_along_axis(shared, np.broadcast_to(rows, (layers, rows.shape[1])), axis=1))


class SlotCounts:
    """Turns tokens of experts into tokens of slots: copies share those of their expert evenly, and the first ones have
    what is left over.

    Args:
        slots: a row for all layers, or one for each; empty: experts in order, a slot each.
    """

    def __init__(self, slots: Sequence[Slots]) -> None:
        self.rows = len(slots)
        # (rows, 1, slots) each: its expert, how many copies that has, and which of them this one is.
        self._expert = np.array(slots, np.int64)[:, None]
        self._copies, self._number = np.ones_like(self._expert), np.zeros_like(self._expert)
        for row, experts in enumerate(self._expert[:, 0]):
            order = np.argsort(experts, kind="stable")
            self._copies[row, 0] = np.bincount(experts)[experts]
            self._number[row, 0, order] = np.arange(len(order)) - np.searchsorted(experts[order], experts[order])

    def of(self, tokens: IntArray) -> IntArray:
        """(layers, n, slots): tokens of each slot, given those of each expert, (layers, n, experts)."""
        if not self.rows:
            return tokens
        expert = np.broadcast_to(self._expert, (*tokens.shape[:2], self._expert.shape[2]))
        whole, rest = np.divmod(np.take_along_axis(tokens, expert, axis=2), self._copies)
        return np.asarray(whole + (self._number < rest))


def _whole(load: Sequence[float]) -> list[int]:
    """Loads in whole parts of their sum."""
    weights = np.asarray(load, float)
    parts: list[int] = np.rint(weights / weights.sum() * _LOADS).astype(np.int64).tolist()
    return parts


def _copies(parts: Sequence[int], redundant: int, groups: int) -> list[int]:
    """Copies of each expert, the first one with them; of equal loads the first expert's is copied first."""
    copies = [1] * len(parts)
    heap = [(-float(part), e) for e, part in enumerate(parts)] if groups > 1 else []
    heapq.heapify(heap)
    for _ in range(redundant):
        _, e = heapq.heappop(heap)
        copies[e] += 1
        if copies[e] < groups:
            heapq.heappush(heap, (-parts[e] / copies[e], e))
    return copies


def _packed(parts: Sequence[int], copies: Sequence[int], groups: int) -> list[list[int]]:
    """Experts of each group."""
    room = sum(copies) // groups
    held: list[list[int]] = [[] for _ in range(groups)]
    heap = [(0.0, group) for group in range(groups)]
    slots = [(parts[e] / n, e) for e, n in enumerate(copies) for _ in range(n)]
    for load, e in sorted(slots, key=lambda slot: (-slot[0], slot[1])):
        passed = []
        while heap and e in held[heap[0][1]]:
            passed.append(heapq.heappop(heap))
        loaded, group = heapq.heappop(heap) if heap else passed.pop(0)
        held[group].append(e)
        if len(held[group]) < room:
            passed.append((loaded + load, group))
        for entry in passed:
            heapq.heappush(heap, entry)
    return held


def _of_groups(held: Iterable[Sequence[int]]) -> Slots:
    return tuple(e for experts in held for e in sorted(experts))
