"""Figures as plain data, for JSON: rounded to where they are the same on all machines."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pimserve.arrays import IntArray
from pimserve.loadgen.arrival_figures import arrival_figures
from pimserve.loadgen.length_figures import length_figures
from pimserve.loadgen.traces.prefix_reuse import PrefixReuse

_DIGITS, _GAP_DIGITS = 6, 9  # after the point


def rounded(value: float | None, digits: int = _DIGITS) -> float | None:
    """So many digits after the point."""
    return None if value is None else round(value, digits)


def arrival_document(times_ps: IntArray, first: float | str, *, monotone: bool) -> dict[str, Any]:
    """Of arrivals.

    Args:
        times_ps: (n,) ascending.
        first: when the first one is by the clock of whoever recorded it.
        monotone: whether they were recorded in order.
    """
    figures = arrival_figures(times_ps)
    return {
        "n": figures.n,
        "first": first,
        "span_s": rounded(figures.span_s),
        "rate_rps": rounded(figures.rate_per_s),
        "gap_mean_s": rounded(figures.gap_mean_s, _GAP_DIGITS),
        "gap_cv": rounded(figures.gap_cv),
        "gap_max_s": rounded(figures.gap_max_s),
        "gap_zero_fraction": rounded(figures.gap_zero_fraction),
        **{f"idc_{width}s": rounded(value) for width, value in figures.dispersion.items()},
        "monotone": monotone,
    }


def length_document(tokens: IntArray | Sequence[int]) -> dict[str, Any]:
    """Of lengths; empty of none."""
    if not len(tokens):
        return {}
    figures = length_figures(np.asarray(tokens))
    return {
        "sum": float(figures.sum),
        "mean": rounded(figures.mean),
        "min": float(figures.min),
        "max": float(figures.max),
        **{f"p{percent}": rounded(value) for percent, value in figures.percentiles.items()},
    }


def prefix_document(prefix: PrefixReuse) -> dict[str, Any]:
    """Of prefixes, from an empty cache on, with room for everything."""
    return {
        "block_tokens": prefix.block_tokens,
        "hit_blocks": prefix.hit_blocks,
        "hit_tokens": prefix.hit_tokens,
        "requests_with_hit": prefix.requests_with_hit,
        "token_hit_ratio": rounded(prefix.token_hit_ratio),
        "total_blocks": prefix.total_blocks,
        "total_tokens": prefix.total_tokens,
        "unique_blocks": prefix.unique_blocks,
    }


def capacity_document(prefix: PrefixReuse, capacities: Sequence[int]) -> dict[str, Any]:
    """Share of tokens that caches of so many blocks have, by that number."""
    return {str(blocks): rounded(prefix.hit_ratio(blocks)) for blocks in capacities}
