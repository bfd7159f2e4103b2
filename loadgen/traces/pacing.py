"""When turns of a recorded session are sent in a replay: think times from the end of what they wait for."""

from typing import Literal

import numpy as np

from pimserve.arrays import IntArray
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.loadgen.traces.times import TIME_LIMIT_PS
from pimserve.loadgen.traces.trace_sessions import TraceSessions, recorded_ends
from pimserve.loadgen.turns import Turns

Timing = Literal["think_only", "api_scaled", "absolute"]


def paced_turns(
    sessions: TraceSessions, start_ps: IntArray, timing: Timing, api_time_scale: float, max_idle_gap_s: float | None
) -> Turns | None:
    """Turns with think times, ps; None where all are sent at the times that were recorded (`absolute`).

    think_only: as recorded. api_scaled: these and what the request before took when it was recorded, times
    `api_time_scale` (the delays of kv-cache-tester's strategies of those names); nothing where that is not known, since
    the think time is the whole gap then.

    Args:
        sessions: of n requests, in order of time.
        start_ps: (n,) when these were sent, as recorded.
        timing: how they are sent.
        api_time_scale: with api_scaled.
        max_idle_gap_s: the longest think time as recorded.

    Raises:
        InputError: api_scaled, and of no request it is known how long it took.
    """
    if timing == "absolute":
        return None
    think_ps = sessions.think_ps
    if max_idle_gap_s is not None:
        think_ps = np.minimum(think_ps, round(max_idle_gap_s * PS_PER_S))
    if timing == "api_scaled":  # the sum within the clock's limit, which 64 bits hold
        taken_ps = np.rint(np.minimum(_taken_before(sessions, start_ps) * api_time_scale, TIME_LIMIT_PS))
        think_ps = think_ps + np.minimum(taken_ps.astype(np.int64), TIME_LIMIT_PS - think_ps)
    parents = sessions.parents
    return Turns(parents.offsets, parents.values, think_ps, sessions.session)


def _taken_before(sessions: TraceSessions, start_ps: IntArray) -> IntArray:
    """(n,) how long the parent took that ended last, ps; 0 of requests without parents."""
    parents, duration_ps = sessions.parents, sessions.duration_ps
    if len(parents.values) and (duration_ps < 0).all():
        message = "api_scaled needs to know how long requests took, which the trace does not say"
        raise InputError("workload.trace.timing", message)
    ends_ps = recorded_ends(start_ps, duration_ps)[parents.values]
    row_of = np.repeat(np.arange(len(parents)), parents.lengths)
    order = np.lexsort((ends_ps, row_of))  # of each row's parents the last to end is the last
    follows = parents.lengths > 0
    taken_ps = np.zeros(len(parents), np.int64)
    taken_ps[follows] = np.maximum(duration_ps, 0)[parents.values[order[parents.offsets[1:][follows] - 1]]]
    return taken_ps
