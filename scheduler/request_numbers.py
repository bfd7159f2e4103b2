"""Numbers of requests, which stay, and their rows in the request table, which is by arrival and into which others come.

The n requests of the workload are 0 to n - 1, by arrival; those that are injected follow in the order in which people
were told of them. Only who talks to people has numbers: all else of a run names a request by its row.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from pimserve.arrays import IntArray


def _nothing() -> IntArray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class RequestNumbers:
    """The numbers of the requests of a table; does not change.

    Args:
        workload: requests of the workload.
        end: all numbers below are taken; also those of requests that a run which goes on from a checkpoint has yet to
            inject again.
        rows: (m,) of the requests that were injected.
        injected: (m,) their numbers.
    """

    workload: int
    end: int
    rows: IntArray = field(default_factory=_nothing)
    injected: IntArray = field(default_factory=_nothing)

    @classmethod
    def of_workload(cls, requests: int) -> Self:
        """Of a table into which nothing was injected."""
        return cls(requests, requests)

    @classmethod
    def of_state(cls, requests: int, state: dict[str, Any]) -> Self:
        """Of a table of so many requests, from `state`."""
        rows, injected = (np.array(state[name], np.int64) for name in ("rows", "injected"))
        return cls(requests - len(rows), state["end"], rows, injected)

    def state(self) -> dict[str, Any]:
        """What `of_state` needs, as JSON can hold it."""
        return {"end": self.end, "rows": self.rows.tolist(), "injected": self.injected.tolist()}

    def row_of(self, number: int) -> int | None:
        """The row of the request of that number; None: it is to be injected again, and is not in the table yet.

        Raises:
            IndexError: no request has that number.
        """
        if not 0 <= number < self.end:
            raise IndexError(number)
        if number >= self.workload:
            at = np.flatnonzero(self.injected == number)
            return int(self.rows[at[0]]) if len(at) else None
        before = np.sort(self.rows) - np.arange(len(self.rows))  # requests of the workload before each injected one
        return number + int(np.searchsorted(before, number, side="right"))

    def by_row(self) -> IntArray:
        """(n,) number of each row."""
        numbers = np.zeros(self.workload + len(self.rows), np.int64)
        of_workload = np.ones(len(numbers), np.bool_)
        of_workload[self.rows] = False
        numbers[of_workload] = np.arange(self.workload)
        numbers[self.rows] = self.injected
        return numbers

    def inserted(self, at: int, count: int, first: int | None = None) -> RequestNumbers:
        """The same after so many requests were injected before row `at`.

        They have the numbers from `first` on; None: from `end`.
        """
        first = self.end if first is None else first
        rows = np.where(self.rows >= at, self.rows + count, self.rows)
        return RequestNumbers(
            self.workload,
            max(self.end, first + count),
            np.concatenate([rows, np.arange(at, at + count)]),
            np.concatenate([self.injected, np.arange(first, first + count)]),
        )

    def taken_to(self, end: int) -> RequestNumbers:
        """The same where numbers below `end` are taken."""
        return replace(self, end=max(self.end, end))
