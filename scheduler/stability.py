"""Whether a run served what came: saturated, steady, or too short to tell.

Above capacity the number of requests in the system grows for as long as requests come, and every latency is a function
of the run's length (growth, not the length of the queue: a batch that has room takes the backlog in). So the number in
the system N, waiting or running, is looked at as each request arrives, from a warm-up on to the last arrival: what it
grows by is what arrived less what was served. Growth is counted per arrival, g = 1 - served/offered: 0 in a steady
state, 1 - 1/load above capacity, so 9 % at 1.1 times the capacity.

- Warm-up: the run's own, and at least the first quarter of the time in which requests arrive.
- Noise: the rest is cut into 10 batches of as many arrivals each. Their net gains have a variance, of which follows the
  error of their sum if batches are independent (batch means: Law and Kelton, Simulation Modeling and Analysis, 9.5.3).
  Above capacity they are. Below it they are not, for what came in excess is served later; then that error is too large,
  and that of the regression of the batches' mean N on their order is the better one.
- saturated: g, less its error at 95 % (one-sided t, 9 degrees of freedom), is above 0.5 %, and the arrivals last at
  least 4 times as long as a request is in service (running, not waiting): before that a batch is still filling up. But
  not where more wait than run when the last one arrives, and the number waiting grows as clearly: far above capacity
  the arrivals are soon over, and that batch is full. (Where all arrive at once there is no rate to be above.)
- too short to tell: not that, and fewer than 30 arrivals, or arrivals that last less than 5 times the mean time in the
  system: then percentiles are of requests that found the system other than it stays.
- steady: neither, and g and the regression's slope with its error at 97.5 % are between -4 % and 4 %: what would hide
  more than a load of 1.04 in it is too short to tell. So is a backlog: more wait at the end than after the warm-up, by
  0.5 % of the arrivals, and in their second half none found the queue empty, as happens time and again below capacity.

On queues and batches whose capacity is known (tests/scheduler/test_stability.py) runs of 4,000 requests are steady up
to 0.9 times the capacity and saturated from 1.1 times on, and short ones above it are never steady.

A closed loop has its concurrency in the system at any time, and cannot be saturated: it is steady if what is measured
lasts at least 5 times the mean E2E latency, else too short to tell. Rejected requests are in no system.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.batch_means import t_quantile
from pimserve.scheduler.requests import NEVER, REJECTED, Columns
from pimserve.scheduler.window import MeasuredWindow

SATURATED, STEADY, TOO_SHORT = "saturated", "steady", "too short to tell"
STATES = (SATURATED, STEADY, TOO_SHORT)

_WARMUP = 0.25  # of the time in which requests arrive
_BATCHES = 10
_FEWEST = 30  # arrivals, three in a batch
_TIMES_IN_SERVICE, _TIMES_IN_SYSTEM = 4, 5
_GROWTH, _NO_GROWTH = 0.005, 0.04  # per arrival
_T9 = 1.833  # 95 % quantile of Student's t with 9 degrees of freedom


@dataclass(frozen=True, slots=True)
class Stability:
    """What became of the number of requests in the system.

    Args:
        state: one of `STATES`.
        in_system: at the last arrival, of which
        waiting: waited.
        growth: per arrival after the warm-up; None in a closed loop, and with too few arrivals.
        residence_times: how long requests arrive after the warm-up (in a closed loop: are measured), over the mean time
            that they are in the system; None without any.
    """

    state: str
    in_system: int
    waiting: int
    growth: float | None
    residence_times: float | None


def stability(columns: Columns, window: MeasuredWindow, end_ps: int) -> Stability:
    """The state of a run that has ended; takes a few sorts over its requests.

    Args:
        columns: of the request table.
        window: what is measured of the run.
        end_ps: the end of the run.
    """
    rows = np.flatnonzero((columns["arrival_ps"] != NEVER) & (columns["status"] != REJECTED))
    rows = rows[np.argsort(columns["arrival_ps"][rows], kind="stable")]  # those that follow on others are behind them
    arrival, scheduled, finish = (columns[f"{name}_ps"][rows] for name in ("arrival", "first_scheduled", "finish"))
    if not len(arrival):
        return Stability(TOO_SHORT, 0, 0, None, None)
    leave = np.where(finish == NEVER, end_ps, finish)
    begin, last = window.start_fs // FS_PER_PS, int(arrival.max())
    in_system = len(arrival) - int(((finish != NEVER) & (finish <= last)).sum())
    waiting = in_system - int(
        ((scheduled != NEVER) & (scheduled <= last) & ((finish == NEVER) | (finish > last))).sum()
    )
    mean_ps = float((leave - arrival).mean())
    if window.closed:
        times = (window.closes_ps(columns, end_ps) - begin) / mean_ps if mean_ps else None
        state = STEADY if times is not None and times >= _TIMES_IN_SYSTEM else TOO_SHORT
        return Stability(state, in_system, waiting, None, times)
    begin = max(begin, int(arrival[0] + _WARMUP * (last - arrival[0])))
    times = (last - begin) / mean_ps if mean_ps else None
    number = _in_number(arrival, np.sort(finish[finish != NEVER]), begin)
    started = scheduled != NEVER
    queue = _in_number(arrival, np.sort(scheduled[started]), begin)
    if len(number) < _FEWEST or times is None or not started.any():
        return Stability(TOO_SHORT, in_system, waiting, None, times)
    in_service_ps = float((leave - scheduled)[started].mean())
    generations = (last - begin) / in_service_ps if in_service_ps else np.inf
    growth, state = _judge(number, queue, generations, times)
    return Stability(state, in_system, waiting, growth, times)


def _in_number(arrival: NDArray[np.int64], left: NDArray[np.int64], begin_ps: int) -> NDArray[np.int64]:
    """Requests in the system as each arrives, itself too, from a time on; in its queue, if that is what they left."""
    first = int(np.searchsorted(arrival, begin_ps))
    found: NDArray[np.int64] = np.arange(first + 1, len(arrival) + 1) - np.searchsorted(
        left, arrival[first:], side="right"
    )
    return found


def _judge(number: NDArray[np.int64], queue: NDArray[np.int64], generations: float, times: float) -> tuple[float, str]:
    """Growth per arrival, and the state, of the numbers in the system and in its queue, (n,)."""
    n = len(number)
    growth, error = _growth(number)
    queue_growth, queue_error = _growth(queue)
    full = generations > 0 and 2 * queue[-1] > number[-1] and queue_growth - _T9 * queue_error > _GROWTH
    if growth - _T9 * error > _GROWTH and (full or generations >= _TIMES_IN_SERVICE):
        return growth, SATURATED
    backlog = queue_growth > _GROWTH and queue[n // 2 :].min() > 1  # who arrives is one
    if times < _TIMES_IN_SYSTEM or backlog:
        return growth, TOO_SHORT
    slope, slope_error = _regression(np.array([batch.mean() for batch in np.array_split(number, _BATCHES)]))
    per_arrival = _BATCHES / n
    most = max(abs(growth), (abs(slope) + t_quantile(_BATCHES - 2) * slope_error) * per_arrival)
    return growth, STEADY if most < _NO_GROWTH else TOO_SHORT


def _growth(number: NDArray[np.int64]) -> tuple[float, float]:
    """Growth per arrival, and its standard error, by batch means."""
    n = len(number)
    gains = np.diff(number[np.linspace(0, n - 1, _BATCHES + 1).astype(np.int64)])
    return float(gains.sum()) / n, float(np.sqrt(_BATCHES * gains.var(ddof=1))) / n


def _regression(values: NDArray[np.float64]) -> tuple[float, float]:
    """Slope of the values over their order, and its standard error."""
    x = np.arange(len(values)) - (len(values) - 1) / 2
    squares = float((x * x).sum())
    slope = float((x * values).sum()) / squares
    rest = values - values.mean() - slope * x
    return slope, float(np.sqrt((rest * rest).sum() / (len(values) - 2) / squares))
