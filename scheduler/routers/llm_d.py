"""llm-d's router: a filter for prefix affinity, and a score of tokens in flight (llm-d-router, 2026).

Its plug-ins `prefix-cache-affinity-filter` and `token-load-scorer`, with `approx-prefix-cache-producer` and
`inflight-load-producer`, as the guide optimized-baseline of github.com/llm-d/llm-d sets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from pimserve.quantity import Quantity
from pimserve.scheduler.router_protocol import EXPLORE, LOAD, OVERLOAD, PREFIX, ReplicaView, RequestView
from pimserve.scheduler.router_spec import PrefixRouter, PrefixRouterSpec, Share, Tokens
from pimserve.scheduler.seeded_draws import Drawing

_DRAW = 2**32


class LlmDSpec(PrefixRouterSpec):
    """Of replicas that have most of the prompt, unless they have too much to do, the one with the fewest tokens.

    Those that have `affinity_threshold` of the prompt's full blocks are sticky. Only they are looked at, unless the
    best of them has more to do than the best of the others, by more than a penalty allows. Of those looked at, it is
    the one with the fewest tokens to compute before the request's first token: tokens in flight there, with what of
    the request's own prompt is not cached there.
    """

    name: Literal["llm_d"]
    affinity_threshold: Share = Field(
        0.8, description="share of the prompt's full blocks that a sticky replica has; 0: no filter"
    )
    max_tokens_in_flight_penalty: Tokens = Field(
        286_720,
        description="tokens in flight that the best sticky replica may have more than the best other one; 0: any",
    )
    max_ttft_penalty_s: Annotated[float, Quantity("s", most=3600)] = Field(
        0.0,
        description="the same as a time, by peak_prefill_tokens_per_s; 0: any. The plug-in's own default is 18 s, the "
        "guide sets 0",
    )
    peak_prefill_tokens_per_s: Annotated[float, Field(gt=0, le=1e12)] = Field(
        15_928.0,
        description="tokens of prompts that a replica computes per second at most; the default is llm-d's, measured "
        "with Qwen3-32B on 2 H100",
    )
    exploration_probability: Share = Field(0.0, description="probability that the filter is left out")
    queue_threshold_tokens: Annotated[int, Field(gt=0, le=2**53)] = Field(
        4_194_304, description="replicas with so many tokens, or more, count as equal"
    )

    def make(self, seed: int) -> LlmD:
        """The router."""
        return LlmD(self, seed)


class LlmD(Drawing, PrefixRouter):
    """See `LlmDSpec`. Of equals one is drawn.

    Args:
        spec: its parameters.
        seed: of the draws.
    """

    def __init__(self, spec: LlmDSpec, seed: int) -> None:
        Drawing.__init__(self, seed)
        PrefixRouter.__init__(self, spec)
        self._spec = spec
        penalties = [spec.max_tokens_in_flight_penalty, spec.max_ttft_penalty_s * spec.peak_prefill_tokens_per_s]
        self._most_more = min((penalty for penalty in penalties if penalty), default=None)

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """Filter, score, pick."""
        places = self._filtered(request, replicas)
        prompt, most = request.prompt_tokens, self._spec.queue_threshold_tokens
        views = [replicas[place] for place in places]
        loads = [min(view.prefill_tokens + prompt - view.cached_tokens, most) for view in views]
        least = min(loads)
        best = [place for place, load in zip(places, loads, strict=True) if load == least]
        return self._draws.one_of(best)

    def _filtered(self, request: RequestView, replicas: Sequence[ReplicaView]) -> Sequence[int]:
        """Places of the replicas to look at; `reason` says why these."""
        everywhere = range(len(replicas))
        wanted = self._spec.affinity_threshold * request.full_tokens
        self.reason = LOAD
        if not wanted:
            return everywhere
        chance = self._spec.exploration_probability
        if chance and self._draws.below(_DRAW) < chance * _DRAW:
            self.reason = EXPLORE
            return everywhere
        sticky = [place for place in everywhere if replicas[place].cached_tokens >= wanted]
        if not sticky:
            return everywhere
        if self._most_more is not None and len(sticky) < len(replicas):
            others = set(everywhere).difference(sticky)
            least = min(replicas[place].prefill_tokens for place in sticky)
            if least - min(replicas[place].prefill_tokens for place in others) > self._most_more:
                self.reason = OVERLOAD
                return everywhere
        self.reason = PREFIX
        return sticky


SPEC = LlmDSpec
