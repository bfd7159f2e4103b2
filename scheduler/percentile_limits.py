"""Whether percentiles of latencies keep to their limits, and by how much.

The percentile is that of the summary (nearest rank, <=), but that who was never served counts: rejected requests, and
those that the end of the run cut off when the limit had passed, lie above any limit. Where the percentile falls among
them it is not known, and the limit is missed. Who was cut off before that is left out, as in attainment (`outcomes`).
"""

from __future__ import annotations

import numpy as np

from pimserve.loadgen.slo import LimitAtPercentile, SloSpec
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.latencies import Latencies
from pimserve.scheduler.latency_sections import AtPercentile
from pimserve.scheduler.outcomes import MISSED, judged
from pimserve.scheduler.percentiles import has_enough, nearest_place


def at_percentiles(slo: SloSpec, latencies: Latencies, itl: DurationHistogram | None) -> dict[str, AtPercentile]:
    """Each limit at a percentile, by its key; but of gaps between tokens where these are not known.

    Args:
        slo: limits.
        latencies: of the measured requests.
        itl: gaps between tokens that end in the measured window; None: not known of these requests.
    """
    by_key = {}
    for limit in slo.at_percentiles():
        if limit.latency != "itl":
            by_key[limit.key] = _of_requests(limit, latencies)
        elif itl is not None:
            by_key[limit.key] = verdict(limit, itl.count, itl.percentile_s(limit.percent))
    return by_key


def _of_requests(limit: LimitAtPercentile, latencies: Latencies) -> AtPercentile:
    latency = latencies[limit.latency]
    missed = judged(latencies, limit.latency, limit.limit_s) == MISSED
    known = np.sort(latency.known_s)
    n = len(known) + int((missed & latency.applies & ~latency.known).sum())
    place = nearest_place(n, limit.percent)
    return verdict(limit, n, float(known[place]) if place < len(known) else None)


def verdict(limit: LimitAtPercentile, n: int, measured_s: float | None) -> AtPercentile:
    """What a limit came to, of n samples with that percentile; None: it is among those that were never served."""
    margin_s = None if measured_s is None else limit.limit_s - measured_s
    return AtPercentile(
        limit=limit.limit_s,
        measured=measured_s,
        passed=None if not n else margin_s is not None and margin_s >= 0,
        margin=margin_s,
        relative_margin=None if margin_s is None else margin_s / limit.limit_s,
        n=n,
        enough_samples=has_enough(n, limit.percent),
    )
