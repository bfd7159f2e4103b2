"""Attention of steps: decode attention in the way that ends soonest, beside or after prefill attention.

What `CostPlan.attention_fs` says of one step, for the engine's spans (the time of n steps in closed form, as long as
one way is the fastest) and for the log's columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.plan import CostPlan, DecodeWay

IntArray = NDArray[np.int64]


class DecodeTime:
    """Time of decode attention in one way. `share` is how many decoding requests the busiest group has."""

    def __init__(self, way: DecodeWay) -> None:
        terms = way.terms
        self._beside_prefill = way.beside_prefill
        self._slope = sum(term.slope for term in terms if term.window_tokens is None)
        self._windowed = [(term.slope, term.window_tokens) for term in terms if term.window_tokens is not None]
        self._per_request = sum(term.per_request for term in terms)

    def step_fs(self, decodes: int, context: int, share: int, prefill_fs: int) -> int:
        """Time of one step, with prefill attention beside it or after it."""
        time = self._slope * context + self._per_request * share
        for slope, window in self._windowed:
            time += slope * min(context, window * decodes)
        return max(time, prefill_fs) if self._beside_prefill else time + prefill_fs

    def span(self, decodes: int, context: int, share: int, steps: int) -> tuple[int, int, int]:
        """(time of the first step, what each further one takes more, steps for which that holds, at most `steps`)."""
        first, slope = self._per_request * share, self._slope
        for term_slope, window in self._windowed:
            if context >= window * decodes:
                first += term_slope * window * decodes
            else:
                slope += term_slope
                steps = min(steps, (window * decodes - context) // decodes + 1)
        return first + slope * context, slope * decodes, steps


def faster(one: tuple[int, int], other: tuple[int, int], steps: int) -> tuple[tuple[int, int], int]:
    """Of two times (of the first step, what each further one takes more) the smaller, `one` where they are equal, and
    for how many of `steps` it is.
    """
    lead = other[0] - one[0]
    lost = one[1] - other[1]  # of it, in each step
    if lead >= 0:
        return one, steps if lost <= 0 else min(steps, lead // lost + 1)
    return other, steps if lost >= 0 else min(steps, (-lead - 1) // -lost + 1)


def attention_columns(
    plan: CostPlan, decodes: IntArray, context: IntArray, prefill_fs: IntArray, steps: IntArray | None = None
) -> list[IntArray]:
    """Time of attention in each way of the plan, (n,) each.

    Args:
        plan: the plan.
        decodes: (n,), decoding requests.
        context: (n,), tokens of their contexts in the first step.
        prefill_fs: (n,), time of prefill attention.
        steps: (n,), steps that are summed up, 1 where there is prefill attention; None: 1 everywhere.
    """
    found = []
    for way in plan.decode_ways:
        decode = np.zeros_like(context)
        for term in way.terms:
            decode += term.slope * seen_columns(term.window_tokens, decodes, context, steps)
            if term.per_request:
                once = term.per_request * -(-decodes // plan.data_parallel)
                decode += once if steps is None else once * steps
        found.append(np.maximum(decode, prefill_fs) if way.beside_prefill else decode + prefill_fs)
    return found


def fastest(ways: Sequence[IntArray]) -> IntArray:
    """The least of times, element by element."""
    return ways[0] if len(ways) == 1 else np.asarray(np.minimum.reduce(ways))


def seen_columns(window: int | None, decodes: IntArray, context: IntArray, steps: IntArray | None = None) -> IntArray:
    """(n,): context tokens that layers of a window see in `steps` steps, summed over the decoding requests."""
    if steps is None:
        return context if window is None else np.minimum(context, window * decodes)
    seen = steps * context + decodes * (steps * (steps - 1) // 2)
    if window is None:
        return np.asarray(seen)
    limit = window * decodes  # a span never crosses the point where the window fills
    return np.where(context >= limit, steps * limit, seen)
