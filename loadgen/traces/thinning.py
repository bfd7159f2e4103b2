"""Changes of a trace by lot: fewer requests on the same axis of time, and times within the ticks of a coarse clock."""

from typing import Literal

import numpy as np

from pimserve.arrays import IntArray
from pimserve.loadgen.streams import Streams
from pimserve.loadgen.traces.trace_sessions import TraceSessions

TickJitter = Literal["none", "uniform", "even"]


def sampled(rows: IntArray, sessions: TraceSessions | None, ratio: float, streams: Streams) -> IntArray:
    """Those of the rows that are kept with probability `ratio`, each on its own, or all turns of a session together."""
    if ratio >= 1:
        return rows
    rng = streams.rng("trace sampling")
    if sessions is None:
        return rows[rng.random(len(rows)) < ratio]
    drawn = rng.random(int(sessions.session.max(initial=-1)) + 1)
    return rows[drawn[sessions.session[rows]] < ratio]


def spread_in_ticks(times_ps: IntArray, jitter: TickJitter, streams: Streams) -> IntArray:
    """Times of a clock that shows ticks, spread within these: at random, or evenly from the tick's beginning on.

    A tick is as long as most are (the median gap between times that differ), but ends with the next time. The order of
    the requests stays.

    Args:
        times_ps: (n,) ascending.
        jitter: how.
        streams: of what is drawn.
    """
    if jitter == "none" or len(times_ps) < 2:
        return times_ps
    begins, first, counts = np.unique(times_ps, return_index=True, return_counts=True)
    if len(begins) < 2:
        return times_ps
    gaps = np.diff(begins)
    usual = int(np.median(gaps))
    lengths = np.minimum(np.append(gaps, usual), usual)
    tick = np.repeat(np.arange(len(begins)), counts)
    if jitter == "even":
        share = (np.arange(len(times_ps)) - first[tick]) / counts[tick]
    else:
        share = streams.rng("trace ticks").random(len(times_ps))
        share = share[np.lexsort((share, tick))]
    spread: IntArray = times_ps + np.floor(share * lengths[tick]).astype(np.int64)
    return spread
