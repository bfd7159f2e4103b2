"""Percentiles by nearest rank: what they are called, where they stand among samples, and how many samples they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Annotated

from pydantic import Field

Percent = Annotated[float, Field(gt=0, le=100)]
PERCENTILES = (50.0, 90.0, 99.0)
_BEYOND = 10  # samples that must lie beyond a percentile


def percentile_name(percent: float) -> str:
    """What a percentile is called: p99, p99.9."""
    return f"p{percent:.15g}"


def nearest_place(n: int, percent: float) -> int:
    """Where the nearest-rank percentile stands among n samples in ascending order, from 0."""
    return max(0, math.ceil(_exactly(percent) * n / 100) - 1)


def has_enough(n: int, percent: float) -> bool:
    """Whether ten of n samples, or more, lie beyond a percentile; with fewer it is a matter of a handful of them."""
    exact = _exactly(percent)
    return n * min(exact, 100 - exact) >= 100 * _BEYOND


def short_of_samples(n: int, percentiles: Sequence[float]) -> list[str]:
    """Names of those for which n samples, of one or more, are too few."""
    return [percentile_name(percent) for percent in percentiles if n and not has_enough(n, percent)]


@lru_cache(maxsize=256)
def _exactly(percent: float) -> Fraction:
    """99.9 as 999/10: in floating point, 99.9 % of 1000 samples are more than 999 of them."""
    return Fraction(str(percent))
