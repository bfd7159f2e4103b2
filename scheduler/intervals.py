"""95 % confidence intervals of a run's latencies, rates and energy, from its own requests and steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pimserve.arrays import FloatArray, IntArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.batch_means import of_mean, of_percentile, of_ratio
from pimserve.scheduler.distributions import half_widths
from pimserve.scheduler.gap_batches import NS_PER_S
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.interval_sections import (
    Ci95,
    EnergyIntervals,
    HalfWidths,
    LatencyIntervals,
    SloIntervals,
    ThroughputIntervals,
)
from pimserve.scheduler.latencies import Latencies
from pimserve.scheduler.simulation import Served
from pimserve.scheduler.steplog import StepLog

_NJ_PER_J = 10**9
_SLOTS = 40  # two to a batch


@dataclass(frozen=True, slots=True)
class Samples:
    """What intervals are made of.

    Args:
        latencies: of the measured requests, in the order in which they arrived.
        itl: gaps between tokens that end in the measured window.
        finished_at_ps: when requests finished in the measured window; None: none could.
        good_at_ps: when those of the measured requests arrived that met the SLO; None without an SLO.
        passive_joules: passive energy, by pool.
    """

    latencies: Latencies
    itl: DurationHistogram
    finished_at_ps: IntArray | None
    good_at_ps: IntArray | None
    passive_joules: Sequence[float]


def intervals(served: Served, samples: Samples, percentiles: Sequence[float]) -> Ci95:
    """Half the widths of the intervals, each at the place that its figure has in the summary; None: too few samples.

    Args:
        served: the run.
        samples: of it.
        percentiles: of latencies, in per cent.
    """
    rate, energy = _of_tokens(served, samples.passive_joules)
    devices = sum(pool.plan.devices * pool.replicas for pool in served.pools)
    finished, goodput = (
        None if at_ps is None else of_mean(_per_s(at_ps, served.window_s))
        for at_ps in (samples.finished_at_ps, samples.good_at_ps)
    )
    known_s = {name: samples.latencies[name].known_s for name in samples.latencies.names}
    return Ci95(
        throughput=ThroughputIntervals(
            output_tokens_per_s=rate,
            output_tokens_per_s_per_device=None if rate is None else rate / devices,
            requests_per_s=finished,
        ),
        latency_s=LatencyIntervals(
            itl=_of_gaps(served, samples.itl, percentiles),
            **{
                name: half_widths(of_mean(known), percentiles, partial(of_percentile, known))
                for name, known in known_s.items()
            },
        ),
        slo=SloIntervals(goodput_requests_per_s=goodput),
        energy=EnergyIntervals(joules_per_output_token=energy),
    )


def _of_gaps(served: Served, itl: DurationHistogram, percentiles: Sequence[float]) -> HalfWidths:
    """Of inter-token latency, by the stretches of all replicas.

    A percentile's interval is that between the percentiles of which one has the least, and the other the largest share
    that gaps up to its own length may have (Woodruff, Confidence intervals for medians and other position measures,
    Journal of the American Statistical Association 47, 1952).
    """
    by_pool = [[served.logs[replica].batches.gaps for replica in pool.numbers] for pool in served.pools]
    n, sums_ns = (
        [np.concatenate([gaps.totals()[part] for gaps in pool]).astype(np.float64) for pool in by_pool]
        for part in (0, 1)
    )

    def of(percent: float) -> float | None:
        if not itl.count:
            return None
        place = itl.bin_of_percentile(percent)
        up_to = [np.concatenate([gaps.up_to(place, itl) for gaps in pool]) for pool in by_pool]
        off = of_ratio(up_to, n)
        if off is None or not 0 < percent - 100 * off < percent + 100 * off < 100:
            return None
        low, high = (itl.percentile_s(percent + sign * 100 * off) for sign in (-1, 1))
        return None if low is None or high is None else (high - low) / 2

    mean_ns = of_ratio(sums_ns, n)
    return half_widths(None if mean_ns is None else mean_ns / NS_PER_S, percentiles, of)


def _of_tokens(served: Served, passive_joules: Sequence[float]) -> tuple[float | None, float | None]:
    """Of output tokens/s, in the measured window, and of energy per output token, in all of the run."""
    end_ps = served.end_fs // FS_PER_PS
    window_ps = served.start_fs // FS_PER_PS, min(served.ends_fs) // FS_PER_PS
    tokens, times, energies, all_tokens = [], [], [], []
    for pool, joules in zip(served.pools, passive_joules, strict=True):
        watts = joules / (pool.replicas * served.end_s) if served.end_s else 0.0  # of a replica
        parts = np.concatenate([_batches(served.logs[replica], end_ps) for replica in pool.numbers], axis=1)
        begins_ps, lasted_ps, emitted, energy_nj = parts
        inside = (begins_ps >= window_ps[0]) & (begins_ps + lasted_ps <= window_ps[1])
        tokens.append(emitted[inside])
        times.append(lasted_ps[inside] / PS_PER_S)
        energies.append(energy_nj / _NJ_PER_J + watts * lasted_ps / PS_PER_S)
        all_tokens.append(emitted)
    rate = of_ratio(tokens, times)
    return None if rate is None else rate * len(served.logs), of_ratio(energies, all_tokens)


def _per_s(times_ps: IntArray, window_s: tuple[float, float]) -> FloatArray:
    """Events per second in equal slots of the window, (_SLOTS,)."""
    begin, end = window_s
    if end <= begin:
        return np.zeros(0)
    counts, _ = np.histogram(times_ps / PS_PER_S, bins=_SLOTS, range=(begin, end))
    return np.asarray(counts / ((end - begin) / _SLOTS))


def _batches(log: StepLog, end_ps: int) -> FloatArray:
    """(4, k): when the batches of a replica's steps begin, how long they last, ps, their tokens and energy, nJ."""
    begins, tokens, energy = log.batches.table()
    lasted: Any = np.diff(np.append(begins, end_ps))
    return np.stack([begins, lasted, tokens, energy]).astype(np.float64)
