"""What all load specifications share: strict validation, and the limits of the simulated clock."""

from pydantic import BaseModel, ConfigDict

PS_PER_S = 10**12
MAX_TIME_S = 9_000_000.0
"""Latest arrival in seconds: int64 picoseconds end at 9.22e6 s (about 106 days)."""
MAX_TOKENS = 10_000_000
"""Longest input or output of one request, tokens."""
MAX_REQUESTS = 20_000_000
"""Most requests of one workload (three int64 arrays of this length take 480 MB)."""


class Spec(BaseModel):
    """Base of the load specifications: immutable, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
