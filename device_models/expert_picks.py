"""How tokens fall on experts.

The law: each token picks `top_k` distinct experts; with uniform popularity every set of k experts is equally likely.
With popularity weights w the set S has a probability proportional to the product of its weights (conditional Poisson
sampling: Chen, Dempster and Liu 1994), which is again uniform for equal weights.

Counts of T tokens are drawn exactly without looking at single tokens: walk over the experts and keep, for each r, how
many tokens have r picks left; of those a binomial number picks the present expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pimserve.arrays import FloatArray, IntArray


def pick_probabilities(weights: FloatArray, top_k: int) -> FloatArray:
    """(experts, top_k + 1): probability that a token with r picks left (column r) picks this expert.

    Ratio of elementary symmetric polynomials of the weights of this and later experts.
    """
    experts = len(weights)
    later = np.zeros((experts + 1, top_k + 1))
    later[:, 0] = 1.0
    for e in range(experts - 1, -1, -1):
        later[e, 1:] = later[e + 1, 1:] + weights[e] * later[e + 1, :-1]
    probabilities = np.zeros((experts, top_k + 1))
    for e in range(experts):
        possible = later[e, 1:] > 0
        probabilities[e, 1:][possible] = weights[e] * later[e + 1, :-1][possible] / later[e, 1:][possible]
    return np.clip(probabilities, 0.0, 1.0)


def expert_share(weights: Sequence[float], top_k: int) -> tuple[float, ...]:
    """How many of a token's picks fall on each expert of those weights; they sum to top_k."""
    picks = pick_probabilities(np.asarray(weights, float), top_k)
    left = np.zeros(top_k + 1)  # probability that r picks are left
    left[top_k] = 1.0
    share = []
    for row in picks:
        taken = left * row
        share.append(float(taken.sum()))
        left = left - taken
        left[:-1] += taken[1:]
    return tuple(share)


def mean_share(weights: Sequence[Sequence[float]], top_k: int) -> tuple[float, ...]:
    """How many of a token's picks fall on each expert, in the mean over layers with those rows of weights."""
    return tuple(np.mean([expert_share(row, top_k) for row in weights], axis=0).tolist())


def draw_counts(rng: np.random.Generator, probabilities: FloatArray, tokens: int, draws: int) -> IntArray:
    """(..., draws, experts): tokens per expert when each of `tokens` tokens picks its experts; they sum to tokens x k.

    `probabilities`: (..., experts, top_k + 1), as `pick_probabilities` gives them for one law, or of several.
    """
    *laws, experts, columns = probabilities.shape
    left = np.zeros((*laws, columns, draws), np.int64)
    left[..., columns - 1, :] = tokens
    counts = np.zeros((*laws, draws, experts), np.int64)
    for e in range(experts):
        picked = rng.binomial(left[..., 1:, :], probabilities[..., e, 1:, None])
        counts[..., e] = picked.sum(axis=-2)
        left[..., 1:, :] -= picked
        left[..., :-1, :] += picked
    return counts
