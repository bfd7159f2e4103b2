"""Duplex-Split (arXiv 2409.01141, fig. 16): half of the devices prefill, half decode, each half with all weights.

Two stations in closed form: a prompt takes a stage of its own on the first half, then its request decodes in stages
without prompts on the second. Handing over the KV cache costs nothing; prompts do not queue for each other.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from pimserve.cluster.scenario.steady_state import ClosedLoop, Stage, stage
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.routing import ExpertPools

_ITERATIONS = 8


class SplitState:
    """What a closed loop does in the long run; `plan` is that of one half."""

    def __init__(self, plan: CostPlan, pools: ExpertPools | None, loop: ClosedLoop) -> None:
        self.plan = plan
        self.pools = pools
        self.loop = loop

    @cached_property
    def prefill(self) -> Stage:
        """A stage of the prefill half: one prompt."""
        return stage(self.plan, self.pools, decodes=0, mean_context=0, prompts=1, prompt_tokens=self.loop.input_tokens)

    @cached_property
    def decode(self) -> Stage:
        """A stage of the decode half, which holds all requests but those in prefill.

        Little's law on both stations: requests in prefill = B x prefill time / (prefill time + decode time).
        """
        loop = self.loop
        decodes = loop.requests
        decoding = self._decode_stage(decodes)
        for _ in range(_ITERATIONS):
            first = self.prefill.mean_s
            share = first / (first + (loop.output_tokens - 1) * decoding.mean_s)
            fewer = max(1, round(loop.requests * (1 - share)))
            if fewer == decodes:
                break
            decodes = fewer
            decoding = self._decode_stage(decodes)
        return decoding

    @property
    def throughput_tokens_per_s(self) -> float:
        """Output tokens per second of both halves."""
        return self.loop.requests * self.loop.output_tokens / self.mean_e2e_s()

    def tbt_s(self, quantile: float) -> float:
        """Quantile of the time between tokens."""
        return float(np.quantile(self.decode.duration_s, quantile, method="inverted_cdf"))

    def t2ft_s(self, quantile: float) -> float:
        """Quantile of the time to first token."""
        return float(np.quantile(self.prefill.duration_s, quantile, method="inverted_cdf"))

    def mean_e2e_s(self) -> float:
        """Mean time from a request's arrival to its last token."""
        return self.prefill.mean_s + (self.loop.output_tokens - 1) * self.decode.mean_s

    def _decode_stage(self, decodes: int) -> Stage:
        loop = self.loop
        return stage(
            self.plan,
            self.pools,
            decodes=decodes,
            mean_context=loop.input_tokens + loop.output_tokens / 2,
            prompts=0,
            prompt_tokens=loop.input_tokens,
        )
