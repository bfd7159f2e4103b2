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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.requests import NEVER, REJECTED, WAITING
from pimserve.scheduler.slo import SloSpec

MET, MISSED, CENSORED = 0, 1, 2
ALL = "all"
Outcomes = NDArray[np.int8]


def outcomes(
    columns: Mapping[str, NDArray[Any]],
    requests: NDArray[np.bool_] | NDArray[np.int64],
    slo: SloSpec,
    *,
    frontend_ps: int,
    end_ps: int,
) -> dict[str, Outcomes]:
    """MET, MISSED or CENSORED of each of these requests, (n,), by limit: "ttft", "tpot", "e2e", and "all" limits.

    Args:
        columns: of the request table.
        requests: which of them, which have arrived.
        slo: limits; those that are not set are left out, and "all" where none is.
        frontend_ps: time in front of the scheduler, which TTFT and E2E hold.
        end_ps: end of the run.
    """
    arrival, first, finish = (columns[f"{name}_ps"][requests] for name in ("arrival", "first_token", "finish"))
    rejected = columns["status"][requests] == REJECTED
    gaps = columns["output_tokens"][requests].astype(np.int64) - 1
    started, done = first != NEVER, finish != NEVER
    until_token, until_end = np.where(started, first, end_ps), np.where(done, finish, end_ps)
    streamed = np.where(started & (gaps > 0), until_end - first, 0) / PS_PER_S
    latencies = {
        "ttft": ((until_token - arrival + frontend_ps) / PS_PER_S, started),
        "tpot": (streamed / np.maximum(gaps, 1), done),
        "e2e": ((until_end - arrival + frontend_ps) / PS_PER_S, done),
    }
    found: dict[str, Outcomes] = {}
    for name, (so_far_s, known) in latencies.items():
        limit = getattr(slo, f"{name}_s")
        if limit is not None:
            missed = rejected | (so_far_s > limit)
            found[name] = np.where(missed, MISSED, np.where(known, MET, CENSORED)).astype(np.int8)
    if found:
        every = np.array(list(found.values()))
        found[ALL] = np.where((every == MISSED).any(axis=0), MISSED, every.max(axis=0)).astype(np.int8)
    return found


def cut_off(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Numbers of the requests that have arrived and not left, of a run that has ended."""
    return np.flatnonzero((columns["status"] == WAITING) & (columns["arrival_ps"] != NEVER))


def counts(found: Mapping[str, Outcomes]) -> dict[str, dict[str, int]]:
    """By limit: how many are met, missed and censored."""
    return {
        name: dict(zip(("met", "missed", "censored"), np.bincount(each, minlength=3).tolist(), strict=True))
        for name, each in found.items()
    }
