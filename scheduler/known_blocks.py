"""Which full KV blocks the tokens of requests fill, as far as is known what they begin with."""

from __future__ import annotations

import numpy as np

from pimserve.scheduler.requests import RequestTable


class KnownBlocks:
    """Ids of blocks by row of a table: equal ones mean that all tokens up to their ends are equal.

    Args:
        table: requests of the run, and the ids of those whose beginnings are known (`RequestTable.prefixes`).
    """

    def __init__(self, table: RequestTable) -> None:
        self._table = table
        known = table.prefixes
        self._known = 0 if known is None else len(known)
        self._offsets = memoryview((np.zeros(1, np.int64) if known is None else known.offsets).data)
        self._values = memoryview((np.zeros(0, np.int64) if known is None else known.values).data).toreadonly()
        self._bind()

    def _bind(self) -> None:
        self._bound_to = self._table.numbers
        self._numbers = memoryview(np.ascontiguousarray(self._bound_to.by_row()).data)

    def ids(self, request: int, first: int, end: int) -> memoryview:
        """Those of a request from its block `first` on, before `end`; all different, and fewer where few are known."""
        if self._table.numbers is not self._bound_to:  # others were put into the table
            self._bind()
        number = self._numbers[request]
        if number >= self._known:  # it was injected
            return self._values[:0]
        begin, last = self._offsets[number], self._offsets[number + 1]
        return self._values[begin + first : min(begin + end, last)]
