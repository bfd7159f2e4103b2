"""What is measured of a run: which requests count, what is known of them, and rates inside the replicas' windows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from pimserve.arrays import BoolArray
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S, PJ_PER_J
from pimserve.loadgen.objectives import Objectives
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.intervals import Samples
from pimserve.scheduler.outcomes import ALL, MET, outcomes
from pimserve.scheduler.requests import FINISHED, REJECTED
from pimserve.scheduler.simulation import Served

_LATEST_PS = 2**63 - 1


class Measured:
    """The requests that count, masks (n,) over all of the run, and what is known of them."""

    def __init__(self, served: Served, objectives: Objectives) -> None:
        status = served.table["status"]
        self.arrived = served.table["arrival_ps"] >= 0  # a closed loop that was stopped never issued some
        self.rejected = self.arrived & (status == REJECTED)
        self.requests = in_window(served, "arrival_ps")
        self.done = self.requests & (status == FINISHED)
        self.finished_inside = (status == FINISHED) & in_window(served, "finish_ps")
        self.latencies = served.latencies(self.requests)
        self.itl = DurationHistogram.merged(log.itl for log in served.logs)
        self.outcomes = outcomes(self.latencies, objectives)
        self.good = self.done.copy()
        self.good[self.requests] &= self.outcomes[ALL] == MET if self.outcomes else False

    @property
    def some(self) -> bool:
        """Whether any request counts in the throughput, or might have."""
        return bool((self.requests | self.finished_inside).any())

    def samples(self, served: Served, drawn_pj: Sequence[int | None]) -> Samples:
        """What confidence intervals are made of; `drawn_pj`: passive energy, by pool."""
        judged = self.outcomes and self.requests.any()
        rows = np.flatnonzero(self.requests)
        by_arrival = rows[np.argsort(served.table["arrival_ps"][rows], kind="stable")]
        return Samples(
            latencies=served.latencies(by_arrival),
            itl=self.itl,
            finished_at_ps=served.table["finish_ps"][self.finished_inside] if self.some else None,
            good_at_ps=served.table["arrival_ps"][self.good] if judged else None,
            passive_joules=[(pj or 0) / PJ_PER_J for pj in drawn_pj],
        )


def in_window(served: Served, time: str) -> BoolArray:
    """Per request: whether that time of it lies in the window of its replica."""
    times = served.table[time]
    start_ps = -(-served.start_fs // FS_PER_PS)
    ends_ps = np.array([min(-(-log.window_fs[1] // FS_PER_PS), _LATEST_PS) for log in served.logs])
    return np.asarray((times >= start_ps) & (times < ends_ps[served.table["replica"]]))


def by_replica(served: Served, rows: BoolArray, column: str = "") -> list[int]:
    """How many of those requests each replica has; or, of a column of the table, their sum."""
    weights = served.table[column][rows] if column else None
    sums = np.bincount(served.table["replica"][rows], weights, minlength=len(served.logs))
    return [int(each) for each in sums]


def rate(served: Served, counts: Iterable[int]) -> float | None:
    """What replicas counted inside their windows, per second: each replica's own rate, added up; None without time."""
    lengths = [(end - served.start_fs) / FS_PER_S for end in served.ends_fs]
    if not all(lengths):
        return None
    # Replicas without clients come last, and have neither a window nor anything to count.
    return math.fsum(count / length for count, length in zip(counts, lengths, strict=False))
