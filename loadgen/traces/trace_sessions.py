"""Sessions in a trace: which requests are turns of one, and which ones a turn waits for."""

from dataclasses import dataclass

import numpy as np

from pimserve.arrays import IntArray
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.loadgen.traces.times import TIME_LIMIT_PS

UNKNOWN = -1


@dataclass(frozen=True)
class TraceSessions:
    """Columns of a trace whose requests are turns, one entry for each row.

    `session`: (n,) its number, from 0. `parents`: rows that a turn waits for, all of them before it; none for what
    begins on its own. `think_ps`: (n,) time from the end of the last of these to the turn, as recorded. `duration_ps`:
    (n,) how long the request took where it was recorded; -1 where that is not known.
    """

    session: IntArray
    parents: Ragged
    think_ps: IntArray
    duration_ps: IntArray

    def take(self, rows: IntArray) -> "TraceSessions":
        """Those rows, in that order; a turn of which no parent is among them begins on its own."""
        number = np.full(len(self.session), -1, np.int64)
        number[rows] = np.arange(len(rows))
        taken = self.parents.take(rows)
        parents = Ragged(taken.offsets, number[taken.values])
        parents = parents.where(parents.values >= 0)
        think_ps = np.where(parents.lengths > 0, self.think_ps[rows], 0)
        return TraceSessions(self.session[rows], parents, think_ps, self.duration_ps[rows])


def of_parents(start_ps: IntArray, duration_ps: IntArray, session: IntArray, parents: Ragged) -> TraceSessions:
    """Sessions whose think times follow from when their requests started, and how long these took.

    A request of unknown duration is taken to have ended when it started, so that the think time after it is the whole
    gap. A turn that started before a parent ended thinks for no time.

    Args:
        start_ps: (n,) times.
        duration_ps: (n,) or -1.
        session: (n,) of each row.
        parents: rows that each waits for.
    """
    ends_ps = recorded_ends(start_ps, duration_ps)
    row_of = np.repeat(np.arange(len(parents)), parents.lengths)
    last_end_ps = start_ps.copy()
    begun = parents.lengths > 0
    last_end_ps[begun] = np.iinfo(np.int64).min
    np.maximum.at(last_end_ps, row_of, ends_ps[parents.values])
    return TraceSessions(session, parents, np.maximum(start_ps - last_end_ps, 0), duration_ps)


def recorded_ends(start_ps: IntArray, duration_ps: IntArray) -> IntArray:
    """(n,) when requests ended, ps: those of unknown duration when they started, none after the clock's limit.

    Args:
        start_ps: (n,) times.
        duration_ps: (n,) or -1.
    """
    # Starts and durations are within the clock's limit, their sum need not be.
    return start_ps + np.clip(duration_ps, 0, TIME_LIMIT_PS - np.maximum(start_ps, 0))


def chains(session: IntArray) -> tuple[IntArray, Ragged]:
    """Of rows in order of time and the session of each (-1: none): sessions numbered anew, and the turn before each."""
    numbered, parents = np.empty_like(session), np.full(len(session), UNKNOWN, np.int64)
    of: dict[int, int] = {}
    last: dict[int, int] = {}
    count = 0
    for row, name in enumerate(session.tolist()):
        if name < 0 or name not in of:
            number, count = count, count + 1
            if name >= 0:
                of[name] = number
        else:
            number = of[name]
            parents[row] = last[name]
        last[name] = row
        numbered[row] = number
    return numbered, _at_most_one(parents)


def trees(parent: IntArray) -> tuple[IntArray, Ragged]:
    """Of the row before each (-1: none; it may come later, which counts as none): sessions, and the same as parents."""
    parent = np.where(parent < np.arange(len(parent)), parent, UNKNOWN)
    session, count = np.empty_like(parent), 0
    for row, before in enumerate(parent.tolist()):
        session[row] = count if before < 0 else session[before]
        count += before < 0
    return session, _at_most_one(parent)


def _at_most_one(parent: IntArray) -> Ragged:
    known = parent >= 0
    return Ragged(np.concatenate([[0], np.cumsum(known)]), parent[known])
