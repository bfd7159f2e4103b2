"""Sums of integers that may leave 64 bit."""

from __future__ import annotations

from pimserve.arrays import IntArray


def exact_sum(values: IntArray) -> int:
    """Sum of int64 values."""
    return (int((values >> 24).sum()) << 24) + int((values & 0xFFFFFF).sum())


def exact_dot(values: IntArray, weights: IntArray) -> int:
    """Sum of products of int64 values with weights from 0 to 2**31."""
    return (exact_sum((values >> 31) * weights) << 31) + exact_sum((values & 0x7FFFFFFF) * weights)
