"""How far a run's own figures may be off: 95 % confidence intervals from batch means.

What follows each other in a run is alike (a queue that is long stays long), so the deviation of single samples says too
little. Batch means cut the run into k stretches and take the figure of each: these hardly hang on each other, and
Student's t with k - 1 degrees of freedom gives the interval (Law, Simulation Modeling and Analysis, 5th ed., 9.5.3; 10
to 30 batches: Schmeiser, Batch size effects in the analysis of simulation output, Operations Research 30, 1982). For
percentiles, deviations are taken from the percentile of all samples, so that the bias of few samples widens the
interval in place of moving it (sectioning: Asmussen and Glynn, Stochastic Simulation, 2007, III.5a).
"""

from __future__ import annotations

import math

import numpy as np

from pimserve.arrays import FloatArray
from pimserve.scheduler.percentiles import nearest_place

_MOST, _LEAST = 20, 10  # batches
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom (Abramowitz and Stegun, table 26.10).
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_Z = 1.959964


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t; above 30 degrees of freedom its series in 1/degrees (A. and S. 26.7.5)."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    return _Z + (_Z**3 + _Z) / (4 * degrees) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * degrees**2)


def of_mean(samples: FloatArray) -> float | None:
    """Half the width of the interval of the samples' mean; None with too few of them.

    Args:
        samples: (n,), in the order in which they came.
    """
    if len(samples) < 2 * _LEAST:
        return None
    means = np.array([part.mean() for part in np.array_split(samples, min(_MOST, len(samples) // 2))])
    return _half_width(means - samples.mean())


def of_percentile(samples: FloatArray, percent: float) -> float | None:
    """The same of a nearest-rank percentile."""
    if len(samples) < 2 * _LEAST:
        return None
    tail = min(percent, 100 - percent) / 100
    batches = _MOST if len(samples) * tail >= _MOST else _LEAST
    estimates = np.array([nearest_rank(part, percent) for part in np.array_split(samples, batches)])
    return _half_width(estimates - nearest_rank(samples, percent))


def of_ratio(above: list[FloatArray], below: list[FloatArray]) -> float | None:
    """The same of a ratio of two sums, such as energy over tokens.

    Args:
        above, below: of each kind of replicas, (k,) what its batches add to either sum.
    """
    total, degrees = math.fsum(map(np.sum, below)), sum(len(part) - 1 for part in below if len(part))
    if degrees < _LEAST - 1 or not total:
        return None
    ratio = math.fsum(map(np.sum, above)) / total
    variance = 0.0
    for one, other in zip(above, below, strict=True):
        rest = one - ratio * other
        if len(rest) > 1:
            variance += float(((rest - rest.mean()) ** 2).sum()) * len(rest) / (len(rest) - 1)
    return t_quantile(degrees) * math.sqrt(variance) / total


def nearest_rank(samples: FloatArray, percent: float) -> float:
    """Nearest-rank percentile of one sample or more, in any order."""
    place = nearest_place(len(samples), percent)
    return float(np.partition(samples, place)[place])


def _half_width(deviations: FloatArray) -> float:
    k = len(deviations)
    return t_quantile(k - 1) * math.sqrt(float((deviations**2).sum()) / (k * (k - 1)))
