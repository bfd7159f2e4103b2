"""Shapes of the laws of gaps that make given gaps most likely; gaps of zero, which no such law has, are left out."""

import math
from collections.abc import Callable

import numpy as np

from pimserve.arrays import FloatArray

_GAMMA_SHAPES = (1e-4, 1e6)  # as an arrival process takes them
_WEIBULL_SHAPES = (0.1, 2000.0)
_ASYMPTOTIC = 10.0  # from which on the series of the digamma function is exact to 1e-12


def gamma_shape(gaps: FloatArray) -> float:
    """Of Gamma gaps: ln(k) - digamma(k) = ln(mean) - mean(ln), which falls with k (Minka 2002)."""
    positive = gaps[gaps > 0]
    spread = math.log(positive.mean()) - float(np.log(positive).mean())
    return _root(lambda shape: math.log(shape) - _digamma(shape) - spread, *_GAMMA_SHAPES)


def weibull_shape_of(gaps: FloatArray) -> float:
    """Of Weibull gaps: 1/k = sum(x^k ln x) / sum(x^k) - mean(ln x) (Cohen 1965)."""
    logs = np.log(gaps[gaps > 0])
    logs -= logs.max()  # x^k up to 1
    mean = float(logs.mean())

    def excess(shape: float) -> float:
        powers = np.exp(shape * logs)
        return 1 / shape - float((powers * logs).sum() / powers.sum()) + mean

    return _root(excess, *_WEIBULL_SHAPES)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function is 0, to ten digits; the nearer end where it is nowhere."""
    while high > low * (1 + 1e-10):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return math.sqrt(low * high)


def _digamma(x: float) -> float:
    """Derivative of ln Gamma, by recurrence and its asymptotic series (Abramowitz and Stegun 6.3.5, 6.3.18)."""
    below = 0.0
    while x < _ASYMPTOTIC:
        below += 1 / x
        x += 1
    square = 1 / (x * x)
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132))))
    return math.log(x) - 1 / (2 * x) - series - below
