"""Requests that are sent when others have ended: turns of sessions, and the steps of agents, as an acyclic graph.

A request without parents arrives at its own time, whatever becomes of others. One with parents is sent when the last
of them has ended, and its think time (of a user, or of a tool) has passed. Where a trace is to be replayed at the times
that it recorded, no request has parents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from pimserve.arrays import BoolArray, IntArray

NOT_YET_PS = -1
"""Arrival time of a request with parents, before anything is simulated, ps."""


@dataclass(frozen=True, eq=False)
class Turns:
    """Which requests depend on which, of n requests.

    `begins` (n + 1,): the parents of request i are `parents[begins[i] : begins[i + 1]]`, requests before i. `think_ps`
    (n,): from the end of the last parent until the request is sent, ps; not used of a request without parents.
    `session` (n,): number of the session that it belongs to, from 0 up.

    Raises:
        ValueError: lengths do not fit, or a parent is not before its follower.
    """

    begins: IntArray
    parents: IntArray
    think_ps: IntArray
    session: IntArray

    def __post_init__(self) -> None:
        n = len(self.session)
        if len(self.begins) != n + 1 or len(self.think_ps) != n or self.begins[-1] != len(self.parents):
            raise ValueError(f"begins, parents and think_ps do not fit {n} requests")
        if (self.parents >= self.followers_by_edge).any() or (self.parents < 0).any():
            raise ValueError("the parents of a request must be before it")

    @classmethod
    def of(cls, parents: Sequence[Sequence[int]], think_ps: IntArray, session: IntArray) -> Self:
        """From the parents of each request, (n) lists."""
        begins = np.concatenate([[0], np.cumsum([len(some) for some in parents], dtype=np.int64)])
        flat = np.array([parent for some in parents for parent in some], np.int64)
        return cls(begins, flat, think_ps, session)

    @classmethod
    def chains(cls, previous: IntArray, think_ps: IntArray, session: IntArray) -> Self:
        """Of sessions in which each turn follows one other: `previous` (n,), -1 for the first turns."""
        begins = np.concatenate([[0], np.cumsum(previous >= 0)]).astype(np.int64)
        return cls(begins, previous[previous >= 0], think_ps, session)

    def __len__(self) -> int:
        return len(self.session)

    @property
    def followers(self) -> BoolArray:
        """(n,): whether a request has parents."""
        return np.diff(self.begins) > 0

    @property
    def followers_by_edge(self) -> IntArray:
        """(edges,): the request that has each of `parents`."""
        return np.repeat(np.arange(len(self.session)), np.diff(self.begins))

    def children(self) -> tuple[IntArray, IntArray]:
        """(begins (n + 1,), followers): the graph the other way round."""
        order = np.argsort(self.parents, kind="stable")
        counts = np.bincount(self.parents, minlength=len(self))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), self.followers_by_edge[order]

    def complete(self, wanted: BoolArray) -> BoolArray:
        """(n,): which of the requests that are `wanted` have all their ancestors among these."""
        kept = wanted.copy()
        begins, parents = self.begins, self.parents
        for request in np.flatnonzero(wanted & self.followers).tolist():
            kept[request] = kept[parents[begins[request] : begins[request + 1]]].all()
        return kept

    def taken(self, rows: IntArray) -> Turns:
        """The same of these requests, (m,), in this order; all their parents are among them, and before them."""
        place = np.full(len(self), -1, np.int64)
        place[rows] = np.arange(len(rows))
        counts = np.diff(self.begins)[rows]
        begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        edges = np.repeat(self.begins[rows] - begins[:-1], counts) + np.arange(begins[-1])
        return Turns(begins, place[self.parents[edges]], self.think_ps[rows], self.session[rows])


def by_arrival(arrival_ps: IntArray, turns: Turns) -> IntArray:
    """(n,): the order that a workload has: requests without parents by arrival, then all others as they are."""
    followers = turns.followers
    first = np.flatnonzero(~followers)
    return np.concatenate([first[np.argsort(arrival_ps[first], kind="stable")], np.flatnonzero(followers)])
