"""Which points of a sweep no other beats, and which are no candidates: fronts that know how uncertain figures are.

A point beats another that is worse in one axis and better in none. Figures that differ by less than their noise are
equal: two estimates with half widths a and b of their 95 % intervals differ if they are more than hypot(a, b) apart.
The half widths are those of the runs themselves (batch means), or, where a point has several runs, of their mean.
Equality within noise is not transitive, so points may beat each other in a ring; of a ring that nobody else beats,
those are on the front whom the fewest beat.

What is offered sets the throughput of whoever can serve it: with one offered rate for all points, more of it is no
merit, and points are compared by what it costs to serve that rate, and how well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.base.figures import share
from pimserve.loadgen.workload import WorkloadSpec
from pimserve.scheduler.stability import STEADY
from pimserve.scheduler.summary_sections import Figures

SLO_SHARE = 0.99  # of the requests that must meet the SLO: limits are for p99, as MLPerf's are


@dataclass(frozen=True, slots=True)
class Axis:
    """Something that points are compared by: the key of a figure, and whether more of it is better."""

    key: str
    more: bool = False


THROUGHPUT = Axis("output_tokens_per_s_per_device", more=True)
ENERGY = Axis("joules_per_output_token")
_LATENCIES = (Axis("ttft_p99_s"), Axis("tpot_p99_s"))
_FREE_RATE = (THROUGHPUT, *_LATENCIES, ENERGY)
_FIXED_RATE = (
    *(ENERGY, *_LATENCIES, Axis("silicon_mm2"), Axis("devices")),
    Axis("goodput_requests_per_s", more=True),
)


def why_not_on_a_front(summary: Figures) -> str | None:
    """Why a run is no candidate for a front; None if it is one."""
    if summary.stability != STEADY:
        return summary.stability
    requests = summary.requests
    if requests.rejected > (1 - SLO_SHARE) * requests.total:
        return f"rejects {share(requests.rejected / requests.total)} of the requests"
    attainment = summary.slo.attainment
    if attainment is not None and attainment < SLO_SHARE:
        return f"misses its SLO: {share(attainment)} of the requests meet it"
    missed = [key for key, limit in (summary.slo.at_percentiles or {}).items() if limit.passed is False]
    if missed:
        return f"misses its SLO at a percentile: {', '.join(missed)}"
    return None


def fixed_rate(workloads: Sequence[WorkloadSpec], offered: Sequence[float | None]) -> float | None:
    """The one rate that all points are offered, requests/s; None where there are several, or closed loops.

    Args:
        workloads: of the points.
        offered: what each got, requests/s, which differs by chance where seeds do.
    """
    arrivals = {repr((workload.mode, workload.arrival or workload.trace or workload.preset)) for workload in workloads}
    rates = [rate for rate in offered if rate is not None]
    return math.fsum(rates) / len(rates) if len(arrivals) == 1 and rates else None


def axes_at(rate: float | None) -> tuple[Axis, ...]:
    """What points are compared by: with one rate for all of them, or without."""
    return _FREE_RATE if rate is None else _FIXED_RATE


@dataclass(frozen=True, slots=True)
class Front:
    """The front of some points, by their place.

    Args:
        axes: that they were compared by.
        members: points that no other beats.
        beaten_by: of the others, a point that beats it, one of the front where there is one.
    """

    axes: tuple[Axis, ...]
    members: frozenset[int]
    beaten_by: Mapping[int, int]


def front(points: Sequence[Mapping[str, Mapping[str, float | None]]], axes: Sequence[Axis]) -> Front:
    """The front of candidates; what not all of them have is no axis.

    Args:
        points: figures by their key, each with its mean and ci95, the half width of its interval; None: not known.
        axes: to compare by.
    """
    known = tuple(axis for axis in axes if all(point.get(axis.key, {}).get("mean") is not None for point in points))
    if not points or not known:
        return Front((), frozenset(), {})
    signs = np.array([-1.0 if axis.more else 1.0 for axis in known])
    cost = signs * np.array([[point[axis.key]["mean"] for axis in known] for point in points], float)
    noise = np.array([[point[axis.key].get("ci95") or 0.0 for axis in known] for point in points], float)
    beats = np.array([_beats(cost, noise, index) for index in range(len(points))])
    members = _undefeated(beats)
    beaten_by = {}
    for index in sorted(set(range(len(points))) - members):
        winners = np.flatnonzero(beats[:, index]).tolist()
        beaten_by[index] = next((winner for winner in winners if winner in members), winners[0])
    return Front(known, frozenset(members), beaten_by)


def _beats(cost: NDArray[np.float64], noise: NDArray[np.float64], index: int) -> NDArray[np.bool_]:
    """Whom a point beats, (n,); `cost` and `noise` (n, axes)."""
    apart = cost - cost[index]
    least = np.hypot(noise, noise[index])
    return np.asarray((apart > least).any(axis=1) & ~(apart < -least).any(axis=1))


def _undefeated(beats: NDArray[np.bool_]) -> set[int]:
    """Points that nobody beats; where all that is left beat each other in a ring, those whom the fewest beat."""
    members: set[int] = set()
    left = np.ones(len(beats), bool)
    while left.any():
        by = beats[left][:, left].sum(axis=0)
        fresh = np.flatnonzero(left)[by == by.min()]
        members.update(fresh.tolist())
        left[fresh] = False
        reached = fresh
        while len(reached):
            reached = np.flatnonzero(left & beats[reached].any(axis=0))
            left[reached] = False
    return members
