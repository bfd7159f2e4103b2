"""Figures of lengths in tokens, and how input and output hang together."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pimserve.arrays import FloatArray, IntArray

PERCENTILES = (1, 10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class LengthFigures:
    """Of n lengths; `percentiles`: between samples by a straight line (numpy's `linear`, Hyndman and Fan's 7)."""

    n: int
    sum: int
    mean: float
    min: int
    max: int
    percentiles: Mapping[int, float]


def length_figures(tokens: IntArray) -> LengthFigures:
    """Figures of (n,) lengths, one at least."""
    values = np.percentile(tokens, PERCENTILES)
    return LengthFigures(
        n=len(tokens),
        sum=int(tokens.sum()),
        mean=float(tokens.mean()),
        min=int(tokens.min()),
        max=int(tokens.max()),
        percentiles=dict(zip(PERCENTILES, values.tolist(), strict=True)),
    )


def rank_correlation(x: IntArray, y: IntArray) -> float | None:
    """Spearman's of (n,) lengths, ties at their mean rank, from -1 to 1; None where either is always the same."""
    centred = [_centred_ranks(lengths) for lengths in (x, y)]
    size = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / size if size else None


def _centred_ranks(lengths: IntArray) -> FloatArray:
    counts = np.bincount(lengths)  # lengths are bounded, so that none need be sorted
    ends = np.cumsum(counts)
    ranks: FloatArray = (ends - (counts - 1) / 2)[lengths]
    ranks -= ranks.mean()
    return ranks
