"""Times of the rows of a trace as they are read, of which those outside the time that is selected may be any."""

from array import array

import numpy as np

from pimserve.arrays import IntArray
from pimserve.loadgen.traces.rows import Selection
from pimserve.loadgen.traces.times import OUTSIDE_PS, TIME_LIMIT_PS, Clock


class TraceTimes:
    """Times in 64 bits, after that of one row: the first, or the first that is selected if others are too far from it.

    Rows that are selected lie within the simulated clock's limit of that. Others that do not are put just beyond it:
    those before the selected time before all others, those behind it behind all.

    Args:
        selection: which rows are.
        clock: how their times are written.
        sort: whether they may come in any order. Where dates are written it is not known then which are selected, since
            that counts from the earliest: all must lie within the limit.
    """

    def __init__(self, selection: Selection, clock: Clock, *, sort: bool) -> None:
        self._selection, self._from_first, self._sort = selection, clock.from_first, sort
        self.after_ps = array("q")
        self.base_ps = self.last_ps = self._zero_ps = 0
        self._begin_ps, self._end_ps = -np.inf, np.inf
        self._selected_ps: int | None = None  # the first row that is

    @property
    def selects(self) -> bool:
        """Whether it is known of each row as it is read if it is selected."""
        return not (self._sort and self._from_first)

    @property
    def clock_ps(self) -> int:
        """What the trace's clock shows at `base_ps`."""
        return self.base_ps - self._zero_ps

    def ended(self) -> bool:
        """Whether no further row is selected, where rows come by time."""
        return bool(self.after_ps) and not self._sort and self.last_ps >= self._end_ps

    def back(self, time_ps: int) -> bool:
        """Whether a row lies before the one above, where it must not."""
        return bool(self.after_ps) and not self._sort and time_ps < self.last_ps

    def too_far(self, time_ps: int) -> int:
        """1 or -1 for a row that is selected and too long after or before the first that is; else 0."""
        if self._selected_ps is None or not self._begin_ps <= time_ps < self._end_ps:
            return 0
        after_ps = time_ps - self._selected_ps
        return 0 if abs(after_ps) <= TIME_LIMIT_PS else 1 if after_ps > 0 else -1

    def add(self, time_ps: int) -> None:
        """A row that is neither `back` nor `too_far`."""
        self._start(time_ps)
        if self._begin_ps <= time_ps < self._end_ps:
            self._selected_ps = time_ps if self._selected_ps is None else self._selected_ps
            if abs(time_ps - self.base_ps) > TIME_LIMIT_PS:
                self._move(self._selected_ps)
        self.after_ps.append(self._after(time_ps))
        self.last_ps = time_ps

    def add_all(self, after_ps: IntArray, first_ps: int) -> bool:
        """Add (n,) rows, one at least, at times after `first_ps`; or none, where they must be looked at one by one."""
        begins_ps = first_ps + int(after_ps[0])
        if self.back(begins_ps) or (not self._sort and bool(np.any(after_ps[1:] < after_ps[:-1]))):
            return False
        self._start(begins_ps)
        least, most = first_ps + int(after_ps.min()), first_ps + int(after_ps.max())
        outside = most < self._begin_ps or least >= self._end_ps
        inside = self._begin_ps <= least and most < self._end_ps
        low, high = self.base_ps - TIME_LIMIT_PS, self.base_ps + TIME_LIMIT_PS
        if outside and (most < low or least > high):
            placed = np.full(len(after_ps), self._after(least))
        elif least < low or most > high or not (inside or outside or self._selected_ps is not None):
            return False
        else:  # in two steps, each of which 64 bits hold
            placed = (after_ps - after_ps[0]) + (begins_ps - self.base_ps)
        if inside and self._selected_ps is None:
            self._selected_ps = begins_ps
        self.after_ps.frombytes(placed.tobytes())
        self.last_ps = first_ps + int(after_ps[-1])
        return True

    def _start(self, time_ps: int) -> None:
        """Begin at the first row."""
        if self.after_ps:
            return
        self.base_ps, self._zero_ps = time_ps, time_ps if self._from_first else 0
        if self.selects:
            begin_ps, end_ps = self._selection.span_ps
            self._begin_ps, self._end_ps = self._zero_ps + begin_ps, self._zero_ps + end_ps

    def _after(self, time_ps: int) -> int:
        after_ps = time_ps - self.base_ps
        if abs(after_ps) <= TIME_LIMIT_PS:
            return after_ps
        return -OUTSIDE_PS if time_ps < self._begin_ps else OUTSIDE_PS

    def _move(self, base_ps: int) -> None:
        former_ps, self.base_ps = self.base_ps, base_ps
        self.after_ps = array(
            "q",
            (
                after_ps if abs(after_ps) == OUTSIDE_PS else self._after(former_ps + after_ps)
                for after_ps in self.after_ps
            ),
        )
