"""The longest gap between two tokens of each request, to the femtosecond, without work per token.

A request that decodes has a token in every step, so its longest gap is the longest of the steps from when it joined to
when it left: the most of a range of spans, as requests join and leave between spans only. The step log knows how long
each step takes, a block of spans at a time: ranges inside a block are looked up in a sparse table (Bender and
Farach-Colton, The LCA problem revisited, 2000); of what came before, only spans that are longer than all later ones are
kept, which is all that a range up to now can ask for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pimserve.arrays import IntArray


class LongestGaps:
    """Of the requests of one replica; `wanted`: whether anybody asks."""

    def __init__(self, *, wanted: bool = True) -> None:
        self.wanted = wanted
        self._asked: list[tuple[int, int, int]] = []  # request, and its steps: from, to
        self._found: list[tuple[IntArray, IntArray]] = []  # requests, and gaps of theirs
        # Spans that are longer than all later ones: their first steps, and their longest step.
        self._kept = np.zeros((2, 0), np.int64)

    def decoded(self, request: int, step: int, steps: int) -> None:
        """The request had a token in each of so many steps before `step`, the next one."""
        if steps > 0:
            self._asked.append((request, step - steps, step))

    def waited(self, request: int, gap_fs: int) -> None:
        """Between two tokens of the request was a gap that no step shows."""
        self._found.append((np.array([request], np.int64), np.array([gap_fs], np.int64)))

    def take(self, first_steps: IntArray, step_fs: IntArray, begins: IntArray) -> None:
        """Take spans in their order.

        Args:
            first_steps: (n,) numbers of their first steps.
            step_fs: (steps,) how long each step took.
            begins: (n,) where in these each span begins.
        """
        if not self.wanted or not len(begins):
            return
        longest_fs = np.maximum.reduceat(step_fs, begins)
        self._answer(first_steps, longest_fs)
        spans = np.concatenate([self._kept, np.stack([first_steps, longest_fs])], axis=1)
        later = np.maximum.accumulate(spans[1, ::-1])[::-1]
        self._kept = spans[:, np.append(spans[1, :-1] > later[1:], True)]

    @classmethod
    def of_all(cls, replicas: Iterable[LongestGaps], n: int) -> IntArray | None:
        """(n,) the longest gap of each request of a run, fs, wherever it was; 0 of one without. None: nobody asks."""
        wanted = [each for each in replicas if each.wanted]
        longest = np.zeros(n, np.int64)
        for each in wanted:
            each._answer(np.zeros(0, np.int64), np.zeros(0, np.int64))
            for requests, gaps_fs in each._found:
                np.maximum.at(longest, requests, gaps_fs)
        return longest if wanted else None

    def state(self) -> dict[str, Any]:
        """What it holds, as JSON can hold it."""
        self._answer(np.zeros(0, np.int64), np.zeros(0, np.int64))
        found = np.concatenate([np.zeros((2, 0), np.int64), *map(np.stack, self._found)], axis=1)
        return {"kept": self._kept.tolist(), "found": found.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Hold what `state` says."""
        self._asked = []
        self._kept = np.array(state["kept"], np.int64).reshape(2, -1)
        self._found = [(np.array(state["found"][0], np.int64), np.array(state["found"][1], np.int64))]

    def _answer(self, first_steps: IntArray, longest_fs: IntArray) -> None:
        """Look up all that was asked, of which these spans are the last ones."""
        if not self._asked:
            return
        requests, begins, ends = np.array(self._asked, np.int64).T
        low, high = np.searchsorted(first_steps, begins), np.searchsorted(first_steps, ends)
        found = _range_max(longest_fs, low, high)
        earlier = begins < (first_steps[0] if len(first_steps) else np.iinfo(np.int64).max)
        kept = np.searchsorted(self._kept[0], begins[earlier])
        found[earlier] = np.maximum(found[earlier], self._kept[1, kept])
        self._found.append((requests, found))
        self._asked = []


def _range_max(values: IntArray, low: IntArray, high: IntArray) -> IntArray:
    """(n,) the most of values[low:high] for each of n ranges; 0 of an empty one."""
    found = np.zeros(len(low), np.int64)
    lengths = high - low
    table, width = values, 1  # table[i] is the most of values[i : i + width]
    while width <= lengths.max(initial=0):
        mine = (lengths >= width) & (lengths < 2 * width)
        found[mine] = np.maximum(table[low[mine]], table[high[mine] - width])
        table = np.maximum(table[:-width], table[width:])
        width *= 2
    return found
