"""How long clients think before they send the next request: users who read and type, tools that run."""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pimserve.arrays import FloatArray, IntArray
from pimserve.loadgen.spec import MAX_TIME_S, PS_PER_S, Spec
from pimserve.quantity import PositiveSeconds, Seconds


class UniformThink(Spec):
    """Uniform from `low_s` to `high_s`."""

    kind: Literal["uniform"]
    low_s: Seconds = Field(description="shortest")
    high_s: Seconds = Field(description="longest")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high_s < self.low_s:
            raise ValueError(f"high_s ({self.high_s}) must be at least low_s ({self.low_s})")
        return self

    def seconds(self, rng: np.random.Generator, n: int) -> FloatArray:
        """Draw `n` of them, s."""
        return self.low_s + (self.high_s - self.low_s) * rng.random(n)


class ExponentialThink(Spec):
    """Exponential: as likely to end in any moment."""

    kind: Literal["exponential"]
    mean_s: PositiveSeconds = Field(description="mean")

    def seconds(self, rng: np.random.Generator, n: int) -> FloatArray:
        """Draw `n` of them, s."""
        return self.mean_s * rng.standard_exponential(n)


class LognormalThink(Spec):
    """Log-normal, as measured of users: most answer soon, some after long."""

    kind: Literal["lognormal"]
    median_s: PositiveSeconds = Field(description="median")
    sigma: float = Field(gt=0, le=5, description="standard deviation of ln(time)")

    def seconds(self, rng: np.random.Generator, n: int) -> FloatArray:
        """Draw `n` of them, s."""
        return self.median_s * rng.lognormal(0.0, self.sigma, n)


ThinkTime = (
    Seconds | Annotated[UniformThink | ExponentialThink | LognormalThink, Field(discriminator="kind")]
)  # a number: always the same


def think_times(law: ThinkTime, rng: np.random.Generator, n: int) -> IntArray:
    """Draw `n` think times, ps; none is longer than the simulated clock goes."""
    seconds = np.full(n, law) if isinstance(law, float) else law.seconds(rng, n)
    drawn: IntArray = np.rint(np.minimum(seconds, MAX_TIME_S) * PS_PER_S).astype(np.int64)
    return drawn
