"""Attention instances for each FFN instance (arXiv 2601.21351), by its formula and by search.

With `requests` B of mean context c in a micro-batch of each of r attention instances, and T = B c tokens of context,

    t_A = a_A T + b_A,    t_C,    t_F = a_F r B + b_F,    tau = max(t_A, t_C, t_F),

an instance yields r B / ((r + 1) tau) tokens per time. Below the r at which the FFN becomes the slowest, more attention
is more throughput; above it, r / ((r + 1) (a_F r B + b_F)) is greatest at sqrt(b_F / (a_F B)). So the best ratio is the
largest of the three.
"""

from __future__ import annotations

from math import sqrt
from typing import ClassVar

import numpy as np

from pimserve.cluster.validation.disaggregation_formula import Count, Formula, NotNegative, Positive
from pimserve.cluster.validation.targets import Method

_SEARCHED = np.geomspace(1e-4, 1e6, 10_001)  # ratios 0.23 % apart


class _Balance(Formula):
    """Affine times of the three stages of one micro-batch in one layer.

    `context_tokens`: of a request, on the mean; prompt plus output for geometric outputs.
    """

    attention_us_per_token: Positive
    attention_us: NotNegative = 0.0
    transfer_us: NotNegative = 0.0
    ffn_us_per_request: Positive
    ffn_us: NotNegative = 0.0
    requests: Count
    context_tokens: Positive

    @property
    def attention_stage_us(self) -> float:
        """t_A, us."""
        return self.attention_us_per_token * self.requests * self.context_tokens + self.attention_us


class BestRatio(_Balance):
    """Best ratio of attention to FFN instances, by formula. 0: attention cannot be little enough."""

    def value(self) -> float:
        """max((t_A - b_F) / (a_F B), (t_C - b_F) / (a_F B), sqrt(b_F / (a_F B)))."""
        per_instance_us = self.ffn_us_per_request * self.requests
        longest_us = max(self.attention_stage_us, self.transfer_us)
        return max((longest_us - self.ffn_us) / per_instance_us, sqrt(self.ffn_us / per_instance_us))


class SearchedRatio(_Balance):
    """Best ratio of attention to FFN instances, by trying ratios from 0.0001 to 1,000,000."""

    method: ClassVar[Method] = "search"

    def value(self) -> float:
        """The ratio with the highest r B / ((r + 1) tau)."""
        ffn_us = self.ffn_us_per_request * _SEARCHED * self.requests + self.ffn_us
        stage_us = np.maximum(ffn_us, max(self.attention_stage_us, self.transfer_us))
        per_instance = _SEARCHED * self.requests / ((_SEARCHED + 1) * stage_us)
        return float(_SEARCHED[per_instance.argmax()])
