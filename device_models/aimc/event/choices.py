"""Random choices of tokens and experts, the same whenever they are asked for again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.expert_picks import pick_probabilities

_EXPERTS, _TOKEN_IDS = 1, 2  # tags of random streams


class ExpertChoices:
    """Each token's `top_k` distinct experts in each of `layers` layers.

    The law is that of device_models.routing; `popularity` holds a weight per expert, None for equal ones.
    """

    def __init__(
        self, experts: int, top_k: int, layers: int, popularity: NDArray[np.float64] | None, seed: int
    ) -> None:
        weights = np.ones(experts) if popularity is None else popularity / popularity.mean()
        self._probabilities = pick_probabilities(weights, top_k)
        self._layers = layers
        self._seed = seed

    def draw(self, sequence: int, step: int, tokens: int) -> list[list[list[int]]]:
        """(layers, tokens, top_k): experts of each token of a step, in random order."""
        experts, columns = self._probabilities.shape
        top_k = columns - 1
        rng = np.random.default_rng([self._seed, _EXPERTS, sequence, step])
        left = np.full(self._layers * tokens, top_k)
        chosen = np.empty((left.size, top_k), np.int64)
        for e in range(experts):
            picks = np.flatnonzero(rng.random(left.size) < self._probabilities[e, left])
            chosen[picks, top_k - left[picks]] = e
            left[picks] -= 1
        shuffled: list[list[list[int]]] = rng.permuted(chosen, axis=1).reshape(self._layers, tokens, top_k).tolist()
        return shuffled


def token_ids(seed: int, sequence: int, step: int, tokens: int, vocab: int) -> list[int]:
    """Uniform token ids of a step."""
    ids: list[int] = np.random.default_rng([seed, _TOKEN_IDS, sequence, step]).integers(vocab, size=tokens).tolist()
    return ids
