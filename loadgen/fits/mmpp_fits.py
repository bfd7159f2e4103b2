"""Markov-modulated Poisson processes of two states with the dispersion of a trace.

Counts of one have the dispersion 1 + a (1 - (1 - exp(-r t)) / (r t)) in bins of width t, where r is the sum of both
rates of leaving a state, and a = 2 p q d^2 / (mean rate * r) of the shares p, q of time in the states, whose rates
differ by d (Fischer and Meier-Hellstern 1993). The curve leaves open how the time is shared: several shares are
proposed.
"""

from collections.abc import Iterator

import numpy as np

from pimserve.arrays import FloatArray, IntArray
from pimserve.loadgen.arrival_figures import dispersion
from pimserve.loadgen.spec import PS_PER_S

_WIDTHS, _RATES = 14, 80  # of bins, and of leaving states, that are tried
_FEWEST_BINS = 10
_SIGMAS = 3  # of the dispersion of a Poisson process, sqrt(2 / (bins - 1)), at some width
_SHARES = (1.0, 0.75, 0.5, 0.25)  # of the largest share of time that the busy state may have


def mmpp_proposals(times_ps: IntArray) -> Iterator[dict[str, list[float]]]:
    """Rates and mean stays of processes with the dispersion of these times (n,); none if a Poisson one may have it."""
    span_s = int(times_ps[-1] - times_ps[0]) / PS_PER_S
    if not span_s or len(times_ps) <= 2 * _FEWEST_BINS:
        return
    rate = (len(times_ps) - 1) / span_s
    widths_s = np.geomspace(1 / rate, span_s / _FEWEST_BINS, _WIDTHS)
    curve = np.array([dispersion(times_ps, width_s) or 1.0 for width_s in widths_s])
    bins = np.floor(span_s / widths_s)
    if (curve <= 1 + _SIGMAS * np.sqrt(2 / (bins - 1))).all():
        return
    leaving, excess = _best(widths_s, np.maximum(curve, 1e-3), np.geomspace(1 / span_s, 10 * rate, _RATES))
    most = 2 * rate / (excess * leaving + 2 * rate)  # then the other state has no arrivals
    for share in _SHARES:
        busy = share * most
        apart = np.sqrt(excess * rate * leaving / (2 * busy * (1 - busy)))
        rates = (rate + (1 - busy) * apart, 0.0 if share == 1 else rate - busy * apart)
        stays = (1 / (leaving * (1 - busy)), 1 / (leaving * busy))
        yield {
            "rates_per_s": [float(f"{each:.5g}") for each in rates],
            "mean_dwell_s": [float(f"{each:.5g}") for each in stays],
        }


def _best(widths_s: FloatArray, curve: FloatArray, leaving: FloatArray) -> tuple[float, float]:
    """The rate of leaving, and the excess over 1, whose curve is next to the trace's by ratio."""
    found: list[tuple[float, float, float]] = []
    for each in leaving.tolist():
        x = each * widths_s
        shape = 1 + np.expm1(-x) / x
        for excess in np.geomspace(0.05, 1e4, 100):
            error = float(np.square(np.log((1 + excess * shape) / curve)).sum())
            found.append((error, each, float(excess)))
    return min(found)[1:]
