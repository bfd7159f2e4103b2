"""Long tables as short series: samples as a curve, what changes over time as mean, least and most of each bin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pimserve.arrays import FloatArray
from pimserve.cluster.report.inputs import ReportRun
from pimserve.device_models.plan import FS_PER_S
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.requests import FINISHED, REJECTED

GAUGE_BINS = 300  # of three values each: about a thousand points in a picture
RATE_BINS = 120  # wider, as a rate over few requests is mostly noise
_BODY, _TAIL = 600, 200


@dataclass(frozen=True)
class Binned:
    """A quantity over time. Args: edges: (n + 1,) of the bins, s; mean, low, high: (n,) in each bin."""

    edges: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray


def cdf(ordered: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Points of an empirical distribution: (values, share of samples at or below), each (m,) with m <= 802.

    Args:
        ordered: ascending samples.

    Ranks are taken evenly, and again denser towards the largest, so that the tail keeps its single samples.
    """
    n = len(ordered)
    if n <= _BODY + _TAIL:
        ranks = np.arange(n)
    else:
        tail = n - np.geomspace(1, n, _TAIL)
        ranks = np.unique(np.concatenate([np.linspace(0, n - 1, _BODY), tail, [0, n - 1]]).astype(np.int64))
    return ordered[ranks], (ranks + 1) / n


def grid(end_s: float, bins: int) -> FloatArray:
    """Edges of equal bins from 0 to the end of a run."""
    return np.linspace(0.0, end_s, bins + 1)


def spans(begin: FloatArray, end: FloatArray, values: FloatArray, edges: FloatArray) -> Binned:
    """What holds during intervals that do not overlap, and is 0 between them.

    Args:
        begin: (n,) ascending.
        end: (n,) when each interval ends.
        values: (n,) during it.
        edges: (m + 1,) of the bins.
    """
    if not len(begin):
        none = np.zeros(len(edges) - 1)
        return Binned(edges, none, none.copy(), none.copy())
    covered = np.concatenate([[0.0], np.cumsum(end - begin)])
    integral = np.concatenate([[0.0], np.cumsum((end - begin) * values)])
    knots = np.stack([begin, end], axis=1).ravel()

    def until(sums: FloatArray) -> FloatArray:
        at_knots = np.stack([sums[:-1], sums[1:]], axis=1).ravel()
        return np.asarray(np.interp(edges, knots, at_knots, left=0.0))

    width = np.diff(edges)
    idle = np.diff(until(covered)) < width * (1 - 1e-9)
    low, high = _extremes(begin, end, values, edges)
    # Sums differ in their last digits from what they add up to: the mean lies between what it is the mean of.
    low = np.where(idle, np.minimum(low, 0.0), low)
    high = np.where(idle, np.maximum(high, 0.0), high)
    return Binned(edges, np.clip(np.diff(until(integral)) / width, low, high), low, high)


def _extremes(
    begin: FloatArray, end: FloatArray, values: FloatArray, edges: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Least and most value in each bin, over intervals that reach into it; 0 where none does."""
    bins = len(edges) - 1
    first = np.clip(np.searchsorted(edges, begin, side="right") - 1, 0, bins - 1)
    last = np.clip(np.searchsorted(edges, end, side="left") - 1, first, bins - 1)
    reach = last - first + 1
    bin_of = np.repeat(first, reach) + np.arange(int(reach.sum())) - np.repeat(np.cumsum(reach) - reach, reach)
    value_in = np.repeat(values, reach)
    low, high = np.full(bins, np.inf), np.full(bins, -np.inf)
    np.minimum.at(low, bin_of, value_in)
    np.maximum.at(high, bin_of, value_in)
    none = ~np.isfinite(low)
    low[none] = high[none] = 0.0
    return low, high


def level(up: ArrayLike, down: ArrayLike, edges: FloatArray) -> Binned:
    """How many are there, given when they come and go.

    Args:
        up: (n,) times at which one comes.
        down: (m,) times at which one goes.
        edges: of the bins.
    """
    up, down = np.asarray(up, float), np.asarray(down, float)
    times = np.concatenate([up, down])
    order = np.argsort(times, kind="stable")  # who comes and goes at one moment was there
    times = times[order]
    count = np.cumsum(np.concatenate([np.ones(len(up)), -np.ones(len(down))])[order])
    inside = (times[1:] > times[:-1]) if len(times) else np.zeros(0, bool)
    begin, end, values = times[:-1][inside], times[1:][inside], count[:-1][inside]
    if len(times) and times[-1] < edges[-1]:
        begin, end, values = np.append(begin, times[-1]), np.append(end, edges[-1]), np.append(values, count[-1])
    return spans(begin, end, values, edges)


def rate(times: ArrayLike, edges: FloatArray) -> FloatArray:
    """(bins,) events per second."""
    return np.asarray(np.histogram(np.asarray(times, float), edges)[0] / np.diff(edges))


def mean_of(parts: list[Binned]) -> Binned:
    """Mean over replicas, with the least and most of any of them."""
    return Binned(
        parts[0].edges,
        np.mean([part.mean for part in parts], axis=0),
        np.min([part.low for part in parts], axis=0),
        np.max([part.high for part in parts], axis=0),
    )


@dataclass(frozen=True)
class RequestSeries:
    """From requests.npy. Rates are (bins,) requests per second over `edges`."""

    edges: FloatArray
    arrived: FloatArray
    finished: FloatArray
    waiting: Binned
    running: Binned


def request_series(run: ReportRun) -> RequestSeries | None:
    """Arrivals, departures and queue of a run; None without its requests, or where no time passed."""
    table, end_s = run.requests, run.end_s
    if table is None or end_s <= 0:
        return None
    edges, fine = grid(end_s, RATE_BINS), grid(end_s, GAUGE_BINS)
    served = table[(table["arrival_ps"] >= 0) & (table["status"] != REJECTED)]
    arrived = table["arrival_ps"][table["arrival_ps"] >= 0] / PS_PER_S
    came, began = (_seconds(served, name) for name in ("arrival_ps", "first_scheduled_ps"))
    finished = _seconds(table[table["status"] == FINISHED], "finish_ps")
    return RequestSeries(
        edges, rate(arrived, edges), rate(finished, edges), level(came, began, fine), level(began, finished, fine)
    )


def _seconds(table: NDArray[Any], name: str) -> FloatArray:
    times = table[name]
    return np.asarray(times[times >= 0] / PS_PER_S)


@dataclass(frozen=True)
class StepSeries:
    """From steps.npy. `output` and `prompt` are (bins,) tokens per second over `edges`.

    `batch` is requests in a step and `kv` the share of a replica's KV blocks in use: means over replicas, with the
    least and most of any of them.
    """

    edges: FloatArray
    output: FloatArray
    prompt: FloatArray
    batch: Binned
    kv: Binned


def step_series(run: ReportRun) -> StepSeries | None:
    """Tokens, batch and KV use of a run; None without its steps, or where no time passed."""
    history, end_s = run.history, run.end_s
    if history is None or end_s <= 0:
        return None
    edges, fine = grid(end_s, RATE_BINS), grid(end_s, GAUGE_BINS)
    output, prompt = np.zeros(RATE_BINS), np.zeros(RATE_BINS)
    batches, caches = [], []
    blocks = history.prepared.kv_blocks
    for table, all_blocks in zip(history.spans, blocks, strict=True):
        begin = table["begin_ps"] / PS_PER_S
        # Rounding must not make a span begin before the one before it ends.
        end = np.minimum(begin + table["duration_fs"] / FS_PER_S, np.append(begin[1:], np.inf))
        length = np.maximum(end - begin, 1e-15)
        output += spans(begin, end, table["outputs"] * table["steps"] / length, edges).mean
        prompt += spans(begin, end, table["prefill_tokens"] * table["steps"] / length, edges).mean
        batches.append(spans(begin, end, (table["decodes"] + table["chunks"]).astype(float), fine))
        peak = spans(begin, end, table["blocks_end"] / all_blocks, fine)
        mean = spans(begin, end, (table["blocks_begin"] + table["blocks_end"]) / (2 * all_blocks), fine)
        caches.append(replace(mean, high=peak.high))
    return StepSeries(edges, output, prompt, mean_of(batches), mean_of(caches))
