"""Speed-up of moving a mixture of experts to devices of its own, as FastAFD has it (Hao AI Lab, 2026).

A baseline step of T_v is made of attention, dense layers and experts. M attention nodes then share N expert nodes, so
each holds more requests (B_a against B_v), and works without experts:

    S = (B_a / B_v) (M / (M + N)) (T_v / T_a),    T_a ~ 1.5 T_FMHA + 2 T_dense,

with 1.5 for half as many requests more, and 2 for dense layers that fetch their weights for each of two micro-batches.
"""

from __future__ import annotations

from math import floor
from typing import Annotated, Self

from pydantic import Field, model_validator

from pimserve.cluster.validation.disaggregation_formula import Count, Formula, NotNegative, Positive, Share

_ROUNDING = 1e-9
_PositiveShare = Annotated[float, Field(ge=1e-6, le=1)]


class FastAfdSpeedup(Formula):
    """Throughput per device over the baseline's. `attention_share`, `dense_share`: of the baseline's step."""

    baseline_requests: Positive
    requests: Positive
    attention_nodes: Count
    ffn_nodes: Count
    attention_share: _PositiveShare
    dense_share: Share
    attention_factor: Positive = 1.5
    dense_factor: Positive = 2.0

    @model_validator(mode="after")
    def _shares_of_one_step(self) -> Self:
        if self.attention_share + self.dense_share > 1 + _ROUNDING:
            total = self.attention_share + self.dense_share
            raise ValueError(f"attention_share and dense_share must be at most 1 together (got {total:g})")
        return self

    def value(self) -> float:
        """(B_a / B_v) (M / (M + N)) (T_v / T_a)."""
        step = self.attention_factor * self.attention_share + self.dense_factor * self.dense_share
        attention = self.attention_nodes / (self.attention_nodes + self.ffn_nodes)
        return self.requests / self.baseline_requests * attention / step


class OffloadSpeedup(Formula):
    """Projected speed-up where `offloaded_share` of a step goes to other devices, and these cost nothing."""

    offloaded_share: Share

    def value(self) -> float:
        """1 / (1 - f)."""
        return 1 / (1 - self.offloaded_share)


class LargestAttentionGroup(Formula):
    """Most attention nodes whose experts are no slower than they, T_e <= T_a; 0 if even one is too many.

    T_e = `ffn_us` + `ffn_us_per_node` M, in one layer, as is `attention_us`.
    """

    attention_us: Positive
    ffn_us: NotNegative
    ffn_us_per_node: Positive

    def value(self) -> float:
        """(T_a - fixed part) / part per node, rounded down."""
        return max(0, floor((self.attention_us - self.ffn_us) / self.ffn_us_per_node + _ROUNDING))
