"""Laws of gaps between arrivals, of mean 1, in operational time."""

import math
from collections.abc import Callable

import numpy as np

from pimserve.arrays import FloatArray

UnitGaps = Callable[[np.random.Generator, int], FloatArray]

_WEIBULL_SHAPES = (0.1, 2000.0)  # pragma: no mutate: any whose CV is beyond 0.001 and 100


def equal() -> UnitGaps:
    """All alike."""
    return lambda _, n: np.ones(n)


def exponential() -> UnitGaps:
    """Of a Poisson process."""
    return lambda rng, n: rng.standard_exponential(n)


def gamma(shape: float) -> UnitGaps:
    """Gamma, whose coefficient of variation is 1 / sqrt(shape)."""
    return lambda rng, n: rng.standard_gamma(shape, n) / shape


def weibull(shape: float) -> UnitGaps:
    """Weibull: exponential ones to the power of 1 / shape."""
    mean = math.gamma(1 + 1 / shape)
    return lambda rng, n: rng.weibull(shape, n) / mean


def weibull_shape(cv: float) -> float:
    """The shape whose coefficient of variation is `cv` (0.001 to 100).

    cv^2 = Gamma(1 + 2/shape) / Gamma(1 + 1/shape)^2 - 1, which falls with shape.
    """
    low, high = _WEIBULL_SHAPES
    while (middle := math.sqrt(low * high)) not in {low, high}:
        spread = math.expm1(math.lgamma(1 + 2 / middle) - 2 * math.lgamma(1 + 1 / middle))
        low, high = (middle, high) if spread > cv * cv else (low, middle)
    return high
