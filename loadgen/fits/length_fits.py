"""Laws of lengths out of lengths: the simplest of a few that is near enough."""

import heapq
import math
from itertools import pairwise
from typing import Any

import numpy as np

from pimserve.arrays import FloatArray, IntArray
from pimserve.loadgen.length_figures import rank_correlation

_FEW_VALUES = 40  # that are listed with their counts
_LOGNORMAL_KS = 0.015  # up to which two parameters will do
_CORRELATED = 0.1  # rank correlation from which on input and output are drawn together
_STRATA, _IN_STRATUM = 32, 32  # of pairs that are drawn together
_MARKS = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)  # that are knots in any case
_NEAR, _MOST_PLACES = 0.015, 60
_STEP = 0.002  # of lengths that as many requests have exactly
_P_DIGITS = 7


def fit_lengths(inputs: IntArray, outputs: IntArray) -> dict[str, Any]:
    """As a workload's `lengths`: together where they hang together, else each by itself."""
    correlation = rank_correlation(inputs, outputs)
    if correlation is None or abs(correlation) < max(_CORRELATED, 2 / math.sqrt(len(inputs))):
        return {"input": fit_length(inputs), "output": fit_length(outputs)}
    return {"joint": {"kind": "pairs", "pairs": _some_pairs(inputs, outputs)}}


def fit_length(tokens: IntArray) -> dict[str, Any]:
    """A law of lengths, (n,) of which are there."""
    values, counts = np.unique(tokens, return_counts=True)
    if len(values) == 1:
        return {"kind": "fixed", "tokens": int(values[0])}
    if len(values) <= _FEW_VALUES:
        return {"kind": "empirical", "values": values.tolist(), "weights": [float(count) for count in counts.tolist()]}
    shares = np.cumsum(counts) / len(tokens)
    return _lognormal(tokens, values, shares) or {"kind": "quantiles", "knots": _knots(values, shares)}


def _some_pairs(inputs: IntArray, outputs: IntArray) -> list[list[int]]:
    """All rows where these are few; else of strata of inputs as many rows each, evenly by their outputs."""
    order = np.argsort(inputs, kind="stable")
    if len(order) > _STRATA * _IN_STRATUM:
        strata = [each[np.argsort(outputs[each], kind="stable")] for each in np.array_split(order, _STRATA)]
        evenly = (np.arange(_IN_STRATUM) + 0.5) / _IN_STRATUM
        order = np.concatenate([each[(evenly * len(each)).astype(np.int64)] for each in strata])
    pairs: list[list[int]] = np.stack([inputs[order], outputs[order]], axis=1).tolist()
    return pairs


def _lognormal(tokens: IntArray, values: IntArray, shares: FloatArray) -> dict[str, Any] | None:
    """By the moments of the logarithms; None where the sample is no such one."""
    logs = np.log(tokens)
    mean, sigma = float(logs.mean()), float(logs.std())
    expected = [0.5 * math.erfc((mean - log) / sigma / math.sqrt(2)) for log in np.log(values + 0.5).tolist()]
    if np.abs(expected - shares).max() > _LOGNORMAL_KS:
        return None
    law = {"kind": "lognormal", "median": float(f"{math.exp(mean):.5g}"), "sigma": float(f"{sigma:.5g}")}
    return law | {"min": int(values[0]), "max": int(values[-1])}


def _knots(values: IntArray, shares: FloatArray) -> list[list[float]]:
    """Of the inverse CDF: at some lengths, added where the straight line between them is furthest off.

    Off by how much is told in standard deviations of a share, sqrt(p (1 - p)), so that tails count. At each length the
    CDF may step: it has a share below, and one up to it.
    """
    below = np.concatenate([[0.0], shares[:-1]])
    places = sorted({min(int(np.searchsorted(shares, mark)), len(values) - 1) for mark in _MARKS})
    worst: list[tuple[float, int, int, int]] = []
    for begin, end in pairwise(places):
        _note(worst, values, below, shares, (begin, end))
    chosen = set(places)
    while worst and len(chosen) < _MOST_PLACES and -worst[0][0] > _NEAR:
        _, begin, at, end = heapq.heappop(worst)
        chosen.add(at)
        _note(worst, values, below, shares, (begin, at))
        _note(worst, values, below, shares, (at, end))
    knots: list[list[float]] = []
    for place in sorted(chosen):
        ends = [float(below[place]), float(shares[place])]
        stepped = ends[1] - ends[0] > _STEP or place in {0, len(values) - 1}
        for p in ends if stepped else [sum(ends) / 2]:
            _append(knots, round(p, _P_DIGITS), int(values[place]))
    return knots


def _append(knots: list[list[float]], p: float, tokens: int) -> None:
    """Add a knot, behind those before it, and before 1 unless it is the last."""
    least = round(knots[-1][0] + 10**-_P_DIGITS, _P_DIGITS) if knots else 0.0
    if least > 1 and knots:
        knots[-1][1] = tokens
        return
    knots.append([max(p, least), tokens])


def _note(
    worst: list[tuple[float, int, int, int]],
    values: IntArray,
    below: FloatArray,
    shares: FloatArray,
    ends: tuple[int, int],
) -> None:
    """Push where between two lengths the line is furthest off, and by how much."""
    begin, end = ends
    if end - begin < 2:
        return
    inner = slice(begin + 1, end)
    line = np.interp(values[inner] + 0.5, values[[begin, end]], [shares[begin], below[end]])
    off = np.abs(line - shares[inner]) / np.sqrt(shares[inner] * (1 - shares[inner]))
    at = int(off.argmax())
    heapq.heappush(worst, (-float(off[at]), begin, begin + 1 + at, end))
