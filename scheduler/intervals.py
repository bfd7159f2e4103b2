"""95 % confidence intervals of a run's main figures, from its own requests and steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pimserve.arrays import FloatArray, IntArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.batch_means import of_mean, of_percentile, of_ratio
from pimserve.scheduler.simulation import Served
from pimserve.scheduler.steplog import StepLog
from pimserve.scheduler.summary_sections import (
    Ci95,
    EnergyIntervals,
    HalfWidths,
    LatencyIntervals,
    SloIntervals,
    ThroughputIntervals,
)

_NJ_PER_J = 10**9
_SLOTS = 40  # two to a batch


def intervals(
    served: Served,
    latencies: Mapping[str, FloatArray],
    percentiles: Sequence[int],
    good_at_ps: IntArray | None,
    passive_joules: Sequence[float],
) -> Ci95:
    """Half the widths of the intervals, each at the place that its figure has in the summary; None: too few samples.

    Args:
        served: the run.
        latencies: by name, s, in the order in which their requests arrived.
        percentiles: of latencies, in per cent.
        good_at_ps: when those of the measured requests arrived that met the SLO; None without an SLO.
        passive_joules: passive energy, by pool.
    """
    rate, energy = _of_tokens(served, passive_joules)
    devices = sum(pool.plan.devices * pool.replicas for pool in served.pools)
    goodput = None if good_at_ps is None else of_mean(_per_s(good_at_ps, served.window_s))
    widths = {
        name: HalfWidths(
            mean=of_mean(samples), **{f"p{percent}": of_percentile(samples, percent) for percent in percentiles}
        )
        for name, samples in latencies.items()
    }
    return Ci95(
        throughput=ThroughputIntervals(
            output_tokens_per_s=rate, output_tokens_per_s_per_device=None if rate is None else rate / devices
        ),
        latency_s=LatencyIntervals(**widths),
        slo=SloIntervals(goodput_requests_per_s=goodput),
        energy=EnergyIntervals(joules_per_output_token=energy),
    )


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
