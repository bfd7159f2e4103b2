"""What all load specifications share: strict validation, and the limits of the simulated clock."""

from pydantic import BaseModel, ConfigDict

from pimserve.quantity import MAX_TIME_S

__all__ = ["MAX_REQUESTS", "MAX_TIME_S", "MAX_TOKENS", "PS_PER_S", "Spec"]

PS_PER_S = 10**12
MAX_TOKENS = 10_000_000
"""Longest input or output of one request, tokens."""
MAX_REQUESTS = 20_000_000
"""Most requests of one workload (three int64 arrays of this length take 480 MB)."""


class Spec(BaseModel):
    """Base of the load specifications: immutable, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
