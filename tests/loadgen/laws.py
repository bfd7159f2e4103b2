"""Laws that arrival processes are held to: gaps of mean 1, dispersion of counts, and integrated rates."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Law = Callable[[Array], Array]


def ks(sample: Array, cdf: Law) -> float:
    """Kolmogorov-Smirnov distance of a sample from a law."""
    x = cdf(np.sort(sample))
    i = np.arange(len(x))
    return float(max(np.max(x - i / len(x)), np.max((i + 1) / len(x) - x)))


def exponential(x: Array) -> Array:
    """CDF of exponential gaps."""
    return -np.expm1(-x)


def gamma(shape: float) -> Law:
    """CDF of Gamma gaps of mean 1: the density, integrated over a power of y that takes a pole at 0 away."""
    power = min(shape, 1.0)
    u = np.linspace(0, (shape + 60) ** power, 400_001)
    density = u ** ((shape - power) / power) * np.exp(-(u ** (1 / power))) / (power * math.gamma(shape))
    mass = np.concatenate(([0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(u))))
    return lambda x: np.interp((shape * x) ** power, u, mass)


def gamma_moments(shape: float) -> tuple[float, float]:
    """Second and third moment of Gamma gaps of mean 1."""
    return 1 + 1 / shape, (1 + 1 / shape) * (1 + 2 / shape)


def weibull(shape: float) -> Law:
    """CDF of Weibull gaps of mean 1."""
    scale = 1 / math.gamma(1 + 1 / shape)
    return lambda x: -np.expm1(-((x / scale) ** shape))


def weibull_moments(shape: float) -> tuple[float, float]:
    """Second and third moment of Weibull gaps of mean 1."""
    mean = math.gamma(1 + 1 / shape)
    return math.gamma(1 + 2 / shape) / mean**2, math.gamma(1 + 3 / shape) / mean**3


def renewal_dispersion(second: float, third: float, width: float) -> float:
    """Variance over mean of counts in a stretch of many mean gaps, met at a moment in time (Cox 1962, 4.5)."""
    variance = second - 1
    skewed = third - 3 * second + 2
    return variance + (1 / 6 + variance**2 / 2 - skewed / 3) / width


def mmpp_gaps(rates: list[float], dwells: list[float]) -> tuple[float, Law]:
    """(CV, CDF in seconds) of gaps of an MMPP of two states (Fischer and Meier-Hellstern 1993)."""
    leave = 1 / np.array(dwells)
    hidden = np.diag(rates) + np.array([[leave[0], -leave[0]], [-leave[1], leave[1]]])  # Lambda - Q
    first = np.array(dwells) * rates / np.dot(dwells, rates)  # state after an arrival
    inverse = np.linalg.inv(hidden)
    mean, square = (first @ inverse).sum(), 2 * (first @ inverse @ inverse).sum()
    values, vectors = np.linalg.eig(hidden)
    weights = (first @ vectors) * (np.linalg.inv(vectors) @ np.ones(2))
    return math.sqrt(square / mean**2 - 1), lambda x: 1 - np.exp(-np.outer(x, values)) @ weights


def mmpp_dispersion(rates: list[float], dwells: list[float], width_s: float) -> float:
    """Variance over mean of counts of a two-state MMPP (Fischer and Meier-Hellstern 1993)."""
    share = [dwell / sum(dwells) for dwell in dwells]
    mean = sum(rate * p for rate, p in zip(rates, share, strict=True))
    leave = 1 / dwells[0] + 1 / dwells[1]
    long = 2 * (rates[0] - rates[1]) ** 2 * share[0] * share[1] / (mean * leave)
    return 1 + long * (1 - -math.expm1(-leave * width_s) / (leave * width_s))


def dispersion(counts: Array, means: Array) -> tuple[float, float]:
    """Mean square of counts around their means over the mean, and its standard error from twenty batches."""
    squares = (counts - means) ** 2 / means.mean()
    batches = [batch.mean() for batch in np.array_split(squares, 20)]
    return float(squares.mean()), float(np.std(batches, ddof=1) / math.sqrt(20))


def series_integral(points: list[tuple[float, float]]) -> Law:
    """A rate series integrated, which repeats."""
    t, rate = np.array(points, float).T
    areas = np.concatenate(([0], np.cumsum(np.diff(t) * (rate[1:] + rate[:-1]) / 2)))

    def integral(x: Array) -> Array:
        cycle, within = np.divmod(x, t[-1])
        total = cycle * areas[-1]
        for begin, end, low, high in zip(t, t[1:], rate, rate[1:], strict=False):
            inside = np.clip(within - begin, 0, end - begin)
            total += low * inside + (high - low) / max(end - begin, 1e-300) * inside**2 / 2
        return total

    return integral


def ramp_integral(start: float, end: float, duration: float, *, exponential: bool) -> Law:
    """A ramp integrated, and the rate that stays."""

    def integral(x: Array) -> Array:
        on = np.minimum(x, duration)
        growth = math.log(end / start) / duration
        climbed = (
            np.expm1(growth * on) * start / growth if exponential else start * on + (end - start) / duration * on**2 / 2
        )
        return climbed + np.maximum(x - duration, 0) * end

    return integral


def diurnal_integral(mean: float, period: float, amplitude: float, phase: float) -> Law:
    """A sine of a rate integrated."""
    turn = 2 * math.pi / period
    return lambda x: mean * (x - amplitude / turn * (np.cos(turn * (x - phase)) - math.cos(turn * phase)))
