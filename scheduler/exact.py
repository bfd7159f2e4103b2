"""Sums of integers that may leave 64 bit."""

from __future__ import annotations

import numpy as np

from pimserve.arrays import IntArray

_SHORT = 64  # values, up to which Python's own integers are the quicker way
_sum = np.add.reduce  # as `sum`, with half the calls: a step log adds up dozens of columns at a time


def exact_sum(values: IntArray) -> int:
    """Sum of int64 values (n,)."""
    if len(values) <= _SHORT:
        return sum(values.tolist())
    return (int(_sum(values >> 24)) << 24) + int(_sum(values & 0xFFFFFF))


def exact_dot(values: IntArray, weights: IntArray) -> int:
    """Sum of products of int64 values with weights from 0 to 2**31."""
    return (exact_sum((values >> 31) * weights) << 31) + exact_sum((values & 0x7FFFFFFF) * weights)
