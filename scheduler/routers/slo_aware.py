"""A replica on which the request meets its limit of TTFT, as far as can be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from pimserve.scheduler.least_in_turn import LeastInTurn
from pimserve.scheduler.router_protocol import LOAD, OVERLOAD, PREFIX, ReplicaView, RequestView
from pimserve.scheduler.router_spec import PrefixRouter, PrefixRouterSpec


class SloAwareSpec(PrefixRouterSpec):
    """Of replicas on which the first token is predicted to come in time, the one with most of the prompt cached.

    TTFT is predicted as the tokens to compute before it, those in flight there and those of the request that are not
    cached there, over a throughput (as Mooncake's conductor does, FAST'25, and llm-d's affinity filter). If it comes in
    time nowhere, or the request has no limit, it goes where it comes first. Of equals, the fewest outstanding.
    """

    name: Literal["slo_aware"]
    prefill_tokens_per_s: Annotated[float, Field(gt=0, le=1e12)] | None = Field(
        None,
        description="tokens of prompts that a replica computes per second; default: as the router has seen of each "
        "replica, tokens that were to be computed before first tokens over the time until these came",
    )

    def make(self, seed: int) -> SloAware:
        """The router."""
        return SloAware(self)


class SloAware(PrefixRouter):
    """See `SloAwareSpec`."""

    def __init__(self, spec: SloAwareSpec) -> None:
        super().__init__(spec)
        self._rate = spec.prefill_tokens_per_s
        self._least = LeastInTurn()

    def state(self) -> int:
        """Whose turn it was."""
        return self._least.state()

    def restore(self, state: int) -> None:
        """Go on after that one."""
        self._least.restore(state)

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """In time, where most of it is cached; else as soon as it can."""
        tokens = [view.prefill_tokens + request.prompt_tokens - view.cached_tokens for view in replicas]
        rates = [self._rate or view.prefill_tokens_per_s for view in replicas]
        # Nothing is known of a replica that has answered nobody yet: it is taken to answer at once.
        ttft_s = [count / rate if rate else 0.0 for count, rate in zip(tokens, rates, strict=True)]
        limit_s, least_s = request.ttft_limit_s, min(ttft_s)
        if limit_s is None or least_s > limit_s:
            self.reason = LOAD if limit_s is None else OVERLOAD
            return self._of([found == least_s for found in ttft_s], replicas)
        in_time = [found <= limit_s for found in ttft_s]
        most = max(view.cached_tokens for view, fits in zip(replicas, in_time, strict=True) if fits)
        self.reason = PREFIX if most else LOAD
        best = [fits and view.cached_tokens == most for view, fits in zip(replicas, in_time, strict=True)]
        return self._of(best, replicas)

    def _of(self, best: Sequence[bool], replicas: Sequence[ReplicaView]) -> int:
        """Of those, the one with the fewest requests outstanding."""
        most = max(view.outstanding for view in replicas)
        return self._least.least(
            [view.outstanding if fits else most + 1 for view, fits in zip(replicas, best, strict=True)]
        )


SPEC = SloAwareSpec
