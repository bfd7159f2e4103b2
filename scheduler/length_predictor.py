"""What a predictor says of the outputs of requests: the true length times a random factor, drawn before the run.

Policies see nothing but this, so that how good their predictor is can be told, and varied, in one number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.loadgen.streams import Streams

_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class LengthPredictor:
    """Draws predictions; their factors have the median 1.

    Args:
        error: standard deviation of the factor's logarithm (lognormal); None: nothing is predicted.
        seed: of the run.
    """

    error: float | None
    seed: int

    def predict(self, output_tokens: NDArray[Any], stream: str = "predicted output lengths") -> IntArray:
        """(n,) predictions for true lengths (n,), tokens, at least 1; 0 where nothing is predicted.

        `stream` names the random numbers.
        """
        if self.error is None:
            return np.zeros(len(output_tokens), np.int64)
        factor = np.exp(self.error * Streams(self.seed).rng(stream).standard_normal(len(output_tokens)))
        predicted: IntArray = np.clip(np.rint(output_tokens * factor), 1, _MOST).astype(np.int64)
        return predicted

    def predict_injected(self, output_tokens: NDArray[Any], first_request: int) -> IntArray:
        """The same for requests that are injected, the first of which has that number."""
        return self.predict(output_tokens, f"predicted output lengths of requests injected from {first_request}")
