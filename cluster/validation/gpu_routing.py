"""How tokens of a timed MoE layer fell on experts.

- `balanced`: as evenly as can be.
- `power_law_ALPHA`: as aiconfigurator's collector draws it (ai-dynamo/aiconfigurator, collector/helper.py,
  power_law_logits_v3): each expert's load from the density x^-alpha between 1 and 0.8 x tokens (0.01 and 2 where there
  are no more (token, expert) pairs than experts), scaled to the number of pairs, rounded, and no more than one pair per
  token; what is cut off goes one by one to the expert with fewest tokens. A row is one such draw, which is not known;
  ours are `DRAWS` with a fixed seed.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.validation.gpu_rows import Moe, NotCovered

DRAWS = 64
_SEED = 20


def expert_loads(shape: Moe) -> NDArray[np.int64]:
    """(draws, experts): tokens that each expert gets; one draw where the routing leaves nothing to chance.

    Raises:
        NotCovered: the routing is neither `balanced` nor `power_law_ALPHA`.
    """
    if shape.topk > shape.experts:
        raise NotCovered(f"each token chooses {shape.topk} of only {shape.experts} experts")
    if shape.routing == "balanced":
        return _levelled(np.zeros(shape.experts, np.int64), shape.tokens * shape.topk, shape.tokens)[None, :]
    kind, _, text = shape.routing.rpartition("_")
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if kind != "power_law" or not 0 < alpha < 10:
        raise NotCovered(f"routing {shape.routing!r} is unknown (known: balanced, power_law_ALPHA)")
    return _power_law_loads(shape.tokens, shape.experts, shape.topk, alpha)


@cache
def _power_law_loads(tokens: int, experts: int, top_k: int, alpha: float) -> NDArray[np.int64]:
    pairs = tokens * top_k
    low, high = (1.0, 0.8 * tokens) if pairs > experts else (0.01, 2.0)
    u = np.random.default_rng(_SEED).random((DRAWS, experts))
    if alpha == 1:
        weights = low * (high / low) ** u
    else:
        power = 1 - alpha
        weights = ((high**power - low**power) * u + low**power) ** (1 / power)
    wanted = np.rint(weights / weights.sum(axis=1, keepdims=True) * pairs).astype(np.int64)
    return np.stack([_summing_to(pairs, np.minimum(counts, tokens), tokens) for counts in wanted])


def _summing_to(pairs: int, counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Counts that sum to `pairs`: one more each for the smallest, or one less each for the largest."""
    missing = pairs - int(counts.sum())
    if missing >= 0:
        return _levelled(counts, missing, most)
    return most - _levelled(most - counts, -missing, most)


def _levelled(counts: NDArray[np.int64], more: int, most: int) -> NDArray[np.int64]:
    """`more` handed out one by one, each to the smallest count that is below `most`."""
    low, high = 0, most
    while low < high:  # the highest level to which all smaller ones can be raised
        level = (low + high + 1) // 2
        if int(np.maximum(level - counts, 0).sum()) <= more:
            low = level
        else:
            high = level - 1
    raised = np.maximum(counts, low)
    left = more - int((raised - counts).sum())
    raised[np.flatnonzero((raised == low) & (raised < most))[:left]] += 1
    return raised
