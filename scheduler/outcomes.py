"""Whether requests met the limits of the SLO, as far as the run tells.

A limit is met when the latency is at most the limit (<=), as vLLM's and inference-perf's goodput have it. Rejected
requests miss every limit. Who is still in the system when the run ends (run.max_time_s, or no replica is left) is cut
off, and what is not known of it is censored: neither met nor missed, unless the limit had already passed by then. So
the TTFT of a request that had its first token is known, finished or not. Its TPOT is at least the time since that token
over all tokens that were to come, and may have passed its limit. A request of one output token has no TPOT, and meets
any limit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import FloatArray
from pimserve.loadgen.objectives import Objectives
from pimserve.scheduler.latencies import Latencies
from pimserve.scheduler.requests import NEVER, WAITING, Columns

MET, MISSED, CENSORED = 0, 1, 2
ALL = "all"
Outcomes = NDArray[np.int8]


def outcomes(latencies: Latencies, objectives: Objectives) -> dict[str, Outcomes]:
    """MET, MISSED or CENSORED of each of these requests, (n,), by limit: "ttft", "tpot", "e2e", "itl_max", "all".

    Limits are those of each request's class; whoever has none
    of a name that others have meets it, unless it is rejected.

    Args:
        latencies: of the requests; with longest gaps, if there are limits of these.
        objectives: limits; those that are not set are left out, and "all" where none is.
    """
    by_limit: dict[str, Outcomes] = {}
    for key in objectives.names():
        name = key.removesuffix("_s")
        by_limit[name] = judged(latencies, name, objectives.limits_s(key, latencies.class_ids))
    if by_limit:
        stacked = np.array(list(by_limit.values()))
        by_limit[ALL] = np.where((stacked == MISSED).any(axis=0), MISSED, stacked.max(axis=0)).astype(np.int8)
    return by_limit


def judged(latencies: Latencies, name: str, limit_s: float | FloatArray) -> Outcomes:
    """MET, MISSED or CENSORED of each of these requests, (n,), by a limit of the latency of that name.

    That is one, or (n,), infinite for whoever has none.
    """
    latency = latencies[name]
    missed = latencies.rejected | (latency.seconds > limit_s)
    return np.where(missed, MISSED, np.where(latency.ended | np.isinf(limit_s), MET, CENSORED)).astype(np.int8)


def overall(latencies: Latencies, objectives: Objectives) -> Outcomes:
    """MET, MISSED or CENSORED of each of these requests, (n,), by all limits; without any, whoever finished met all."""
    by_limit = outcomes(latencies, objectives)
    if by_limit:
        return by_limit[ALL]
    return np.where(latencies.rejected, MISSED, np.where(latencies.waiting, CENSORED, MET)).astype(np.int8)


def cut_off(columns: Columns) -> NDArray[np.int64]:
    """Numbers of the requests that have arrived and not left, of a run that has ended."""
    return np.flatnonzero((columns["status"] == WAITING) & (columns["arrival_ps"] != NEVER))


def counts(by_limit: Mapping[str, Outcomes]) -> dict[str, dict[str, int]]:
    """By limit: how many are met, missed and censored."""
    return {
        name: dict(zip(("met", "missed", "censored"), np.bincount(met, minlength=3).tolist(), strict=True))
        for name, met in by_limit.items()
    }
