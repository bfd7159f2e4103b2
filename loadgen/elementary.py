"""Cosine and logarithm of additions, multiplications, divisions and roots alone, which IEEE 754 rounds correctly.

numpy's own are vectorised by what the processor has, and their last bits differ between processors; arrival times must
not. Both are within 1e-15 of the true value, absolute for the cosine, relative for the logarithm.
"""

import math

import numpy as np

from pimserve.arrays import FloatArray

_SINE = [(-1) ** k / math.factorial(2 * k + 1) for k in range(11)]  # Taylor; up to a quarter turn the rest is 1e-18
_ARTANH = [1 / (2 * k + 1) for k in range(13)]  # Taylor; up to 0.172 the rest is 1e-21
_SQRT_HALF = math.sqrt(0.5)
_LN_2 = 0.6931471805599453


def cosine(turns: FloatArray) -> FloatArray:
    """cos(2 pi x) of x in turns."""
    angle = 2 * math.pi * (0.25 - np.abs(turns - np.rint(turns)))  # cos x = sin(pi/2 - |x|)
    return angle * _polynomial(_SINE, angle * angle)


def log1p(x: FloatArray) -> FloatArray:
    """ln(1 + x) of x > -1."""
    mantissa, exponent = np.frexp(1 + x)
    low = mantissa < _SQRT_HALF
    mantissa, exponent = np.where(low, 2 * mantissa, mantissa), exponent - low
    # Near 0, where 1 + x loses digits of x, the ratio below is x / (2 + x).
    above = np.where(exponent == 0, x, mantissa - 1)
    ratio = above / (2 + above)
    logarithm: FloatArray = exponent * _LN_2 + 2 * ratio * _polynomial(_ARTANH, ratio * ratio)
    return logarithm


def _polynomial(coefficients: list[float], x: FloatArray) -> FloatArray:
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value
