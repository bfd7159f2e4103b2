"""Laws of lengths in tokens. Every sample is a whole number >= 1."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pimserve.arrays import FloatArray, IntArray
from pimserve.loadgen.spec import MAX_TOKENS, Spec

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Weights = tuple[Annotated[float, Field(ge=0, le=1e15)], ...]
_Knot = tuple[Annotated[float, Field(ge=0, le=1)], Tokens]
_MIN_ACCEPTED = 0.01


class FixedLength(Spec):
    """Always the same length."""

    kind: Literal["fixed"]
    tokens: Tokens = Field(description="length, tokens")

    def sample(self, _: np.random.Generator, n: int) -> IntArray:
        """Draw `n` lengths, tokens."""
        return np.full(n, self.tokens, dtype=np.int64)


class UniformLength(Spec):
    """Uniform over the whole numbers from `low` to `high`, both included."""

    kind: Literal["uniform"]
    low: Tokens = Field(description="shortest length, tokens")
    high: Tokens = Field(description="longest length, tokens")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high < self.low:
            raise ValueError(f"high ({self.high}) must be at least low ({self.low})")
        return self

    def sample(self, rng: np.random.Generator, n: int) -> IntArray:
        """Draw `n` lengths, tokens."""
        return rng.integers(self.low, self.high, n, dtype=np.int64, endpoint=True)


class _Truncated(Spec):
    """A continuous law, rounded, of which only values from `min` to `max` are kept (redrawn, not clipped)."""

    min: Tokens = Field(1, description="shortest length kept, tokens")
    max: Tokens = Field(MAX_TOKENS, description="longest length kept, tokens")

    def _check_range(self, cdf: Callable[[float], float]) -> None:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) must be at least min ({self.min})")
        kept = cdf(self.max + 0.5) - cdf(self.min - 0.5)
        if kept < _MIN_ACCEPTED:
            raise ValueError(
                f"only {kept:.2g} of the distribution lies from min ({self.min}) to max ({self.max}); "
                f"at least {_MIN_ACCEPTED:g} must"
            )

    def _redraw(self, draw: Callable[[int], FloatArray], n: int) -> IntArray:
        kept: list[IntArray] = []
        missing = n
        while missing > 0:
            values = np.rint(draw(missing))
            values = values[(values >= self.min) & (values <= self.max)]
            kept.append(values.astype(np.int64))
            missing -= len(values)
        return np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)


class NormalLength(_Truncated):
    """Normal, rounded and truncated to [min, max]; `mean` and `std` are those before truncation."""

    kind: Literal["normal"]
    mean: float = Field(gt=0, le=MAX_TOKENS, description="mean before truncation, tokens")
    std: float = Field(gt=0, le=MAX_TOKENS, description="standard deviation before truncation, tokens")

    @model_validator(mode="after")
    def _keeps_enough(self) -> Self:
        self._check_range(lambda x: _normal_cdf((x - self.mean) / self.std))
        return self

    def sample(self, rng: np.random.Generator, n: int) -> IntArray:
        """Draw `n` lengths, tokens."""
        return self._redraw(lambda size: rng.normal(self.mean, self.std, size), n)


class LognormalLength(_Truncated):
    """Log-normal, rounded and truncated to [min, max]; `median` and `sigma` are those before truncation."""

    kind: Literal["lognormal"]
    median: float = Field(gt=0, le=MAX_TOKENS, description="median before truncation, tokens")
    sigma: float = Field(gt=0, le=10, description="standard deviation of ln(length) before truncation")

    @model_validator(mode="after")
    def _keeps_enough(self) -> Self:
        self._check_range(lambda x: _normal_cdf(math.log(x / self.median) / self.sigma))
        return self

    def sample(self, rng: np.random.Generator, n: int) -> IntArray:
        """Draw `n` lengths, tokens."""
        return self._redraw(lambda size: rng.lognormal(math.log(self.median), self.sigma, size), n)


class GeometricLength(Spec):
    """Geometric from 1 up: each token is the last one with probability 1/mean."""

    kind: Literal["geometric"]
    mean: float = Field(ge=1, le=100_000, description="mean length, tokens")

    def sample(self, rng: np.random.Generator, n: int) -> IntArray:
        """Draw `n` lengths, tokens."""
        return rng.geometric(1 / self.mean, n)


class QuantilesLength(Spec):
    """Inverse CDF, piecewise linear between knots, rounded."""

    kind: Literal["quantiles"]
    knots: tuple[_Knot, ...] = Field(
        min_length=2, description="[[p, tokens], ...]: p from 0 to 1 and increasing, tokens never decreasing"
    )

    @model_validator(mode="after")
    def _is_inverse_cdf(self) -> Self:
        p, tokens = zip(*self.knots, strict=True)
        if p[0] != 0 or p[-1] != 1 or any(b <= a for a, b in pairwise(p)):
            raise ValueError("p of the knots must increase from 0 (first) to 1 (last)")
        if any(b < a for a, b in pairwise(tokens)):
            raise ValueError("tokens of the knots must not decrease")
        return self

    def sample(self, rng: np.random.Generator, n: int) -> IntArray:
        """Draw `n` lengths, tokens."""
        p, tokens = zip(*self.knots, strict=True)
        lengths: IntArray = np.rint(np.interp(rng.random(n), p, tokens)).astype(np.int64)
        return lengths


class ZipfLength(Spec):
    """Zipf's law between two ends: a length of k tokens has the weight k^-theta."""

    kind: Literal["zipf"]
    theta: float = Field(ge=0, le=20, description="exponent; 0 is uniform")
    min: Tokens = Field(1, description="shortest length, tokens")
    max: Tokens = Field(description="longest length, tokens")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) must be at least min ({self.min})")
        return self

    def sample(self, rng: np.random.Generator, n: int) -> IntArray:
        """Draw `n` lengths, tokens."""
        # Over that of the shortest, so that no weight is too small to count.
        weights = (np.arange(self.min, self.max + 1) / self.min) ** -self.theta
        return self.min + drawn(rng, weights, n)


class EmpiricalLength(Spec):
    """One of some values, as often as its weight says."""

    kind: Literal["empirical"]
    values: tuple[Tokens, ...] = Field(min_length=1, description="lengths, tokens; or `file`")
    weights: Weights | None = Field(None, description="how often each of them is; default: all alike")
    file: str | None = Field(
        None,
        description="values, from a CSV file, each as often as it is there (looked for in the scenario's folder, then "
        "in the working folder)",
    )
    column: str | None = Field(None, description="of that file, by name; default: the only one, without a header")

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        check_weights(self.weights, len(self.values), "values")
        check_no_file(self.file, self.column, "values")
        return self

    def sample(self, rng: np.random.Generator, n: int) -> IntArray:
        """Draw `n` lengths, tokens."""
        return np.array(self.values)[drawn(rng, self.weights or np.ones(len(self.values)), n)]


LengthSpec = Annotated[
    FixedLength
    | UniformLength
    | NormalLength
    | LognormalLength
    | GeometricLength
    | QuantilesLength
    | ZipfLength
    | EmpiricalLength,
    Field(discriminator="kind"),
]


def drawn(rng: np.random.Generator, weights: Sequence[float] | FloatArray, n: int) -> IntArray:
    """Places of `n` weights, each as likely as it is heavy."""
    cumulative = np.cumsum(weights)
    last = np.searchsorted(cumulative, cumulative[-1])  # where a product that rounds up belongs
    places: IntArray = np.minimum(np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right"), last)
    return places


def check_weights(weights: Sequence[float] | None, number: int, of: str) -> None:
    """Raises ValueError unless there are none, or one for each of a number of things, not all of them 0."""
    if weights is not None and len(weights) != number:
        raise ValueError(f"weights needs {number} numbers, one for each of {of}")
    if weights is not None and not any(weights):
        raise ValueError("weights must have one above 0")


def check_no_file(file: str | None, column: object, key: str) -> None:
    """Raises ValueError where a file is named, which was to be read before."""
    if file is not None:
        raise ValueError(f"file is read with the scenario's own file only: give {key}")
    if column is not None:
        raise ValueError("a column has no effect without file")


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
