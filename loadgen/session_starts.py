"""Recorded sessions that begin when an arrival process says, each as it was recorded from there on.

Agentic traces know when each turn of a session was sent, but not when sessions began (kv-cache-tester's `t` is from the
conversation's start; its replays add users one by one).
"""

from dataclasses import dataclass, replace

import numpy as np

from pimserve.arrays import IntArray
from pimserve.loadgen.traces import Trace
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.loadgen.traces.times import TIME_LIMIT_PS
from pimserve.loadgen.turns import Turns


@dataclass(frozen=True)
class RecordedSessions:
    """Sessions of n requests, in the order in which their first requests were sent.

    `rows`: of each session its requests, by ascending time. `place`: (n,) of each request among these.
    """

    rows: Ragged
    place: IntArray

    @classmethod
    def of(cls, turns: Turns) -> "RecordedSessions":
        """Of requests in order of time."""
        _, first, number = np.unique(turns.session, return_index=True, return_inverse=True)
        rank = np.empty_like(first)
        rank[np.argsort(first)] = np.arange(len(first))
        by_session = np.argsort(rank[number], kind="stable")
        counts = np.bincount(rank[number], minlength=len(first))
        rows = Ragged(np.concatenate([[0], np.cumsum(counts)]), by_session)
        place = np.empty_like(by_session)
        place[by_session] = np.arange(len(by_session)) - np.repeat(rows.offsets[:-1], counts)
        return cls(rows, place)

    def __len__(self) -> int:
        return len(self.rows)

    def with_requests(self, n: int) -> int:
        """How many sessions, in turn and over again, have that many requests together."""
        sizes = self.rows.lengths
        whole, rest = divmod(n, int(sizes.sum()))
        return whole * len(self) + (int(np.searchsorted(np.cumsum(sizes), rest)) + 1 if rest else 0)


def begun_at(trace: Trace, turns: Turns, sessions: RecordedSessions, starts_ps: IntArray, most: int | None) -> Trace:
    """The requests of sessions that begin at these times: those of the trace in turn, and over again.

    Where some come again their prefixes are not known: they stand for other sessions, which do not share all they say.

    Args:
        trace: n requests.
        turns: of these; what a request waits for is of its own session.
        sessions: of these turns.
        starts_ps: (k,) ascending.
        most: requests at the most, by when they would be sent as recorded.
    """
    begun = sessions.rows.take(np.arange(len(starts_ps)) % len(sessions))
    rows, session = begun.values, np.repeat(np.arange(len(begun)), begun.lengths)
    since_ps = trace.arrival_ps[rows] - trace.arrival_ps[rows[begun.offsets[:-1]]][session]
    arrival_ps = starts_ps[session] + np.minimum(since_ps, TIME_LIMIT_PS - starts_ps[session])
    parents = Ragged(turns.begins, turns.parents).take(rows)
    parent_of = np.repeat(begun.offsets[:-1][session], parents.lengths) + sessions.place[parents.values]
    anew = Turns(parents.offsets, parent_of, turns.think_ps[rows], session)
    order = np.argsort(arrival_ps, kind="stable")[:most]
    used = rows[order]
    unused = len(turns) - len(np.unique(used))
    again = len(begun) > len(sessions)
    return replace(
        trace,
        arrival_ps=arrival_ps[order],
        input_tokens=trace.input_tokens[used],
        output_tokens=trace.output_tokens[used],
        rows_dropped=trace.rows_dropped | ({"beyond num_requests or duration_s": unused} if unused else {}),
        blocks=None if again or trace.blocks is None else trace.blocks.take(used),
        sessions=None,  # of other times
        turns=anew.taken(order),
        labels=None if trace.labels is None else trace.labels.take(used),
    )
