"""The policy `cache_aware` of sglang's gateway, and of vllm-project/router (src/policies/cache_aware.rs)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from pimserve.scheduler.router_protocol import LOAD, OVERLOAD, PREFIX, SPREAD, ReplicaView, RequestView
from pimserve.scheduler.router_spec import PrefixRouter, PrefixRouterSpec, Share


class CacheAwareSpec(PrefixRouterSpec):
    """While requests outstanding are balanced, where most of the prompt is cached, else where the fewest are.

    They are not if the most are more than `balance_abs_threshold` above the fewest, and more than
    `balance_rel_threshold` times as many. A prompt of which nobody has more than `cache_threshold` goes to the replica
    with the fewest blocks cached.
    """

    name: Literal["cache_aware"]
    cache_threshold: Share = Field(0.3, description="share of the prompt's full blocks, above which a match counts")
    balance_abs_threshold: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        64, description="requests outstanding by which the most may be above the fewest"
    )
    balance_rel_threshold: Annotated[float, Field(ge=1, le=1e6)] = Field(
        1.5, description="how many times as many as the fewest the most may be"
    )

    def make(self, seed: int) -> CacheAware:
        """The router."""
        return CacheAware(self)


class CacheAware(PrefixRouter):
    """See `CacheAwareSpec`. Of equals the first, as there."""

    def __init__(self, spec: CacheAwareSpec) -> None:
        super().__init__(spec)
        self._spec = spec

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """By load, by the match, or by room."""
        loads = [view.outstanding for view in replicas]
        hits = [view.cached_tokens for view in replicas]
        least, most = min(loads), max(loads)
        matched = max(hits) > self._spec.cache_threshold * request.full_tokens
        if most - least > self._spec.balance_abs_threshold and most > self._spec.balance_rel_threshold * least:
            place = loads.index(least)
            self.reason = OVERLOAD if matched and hits[place] < max(hits) else LOAD
            return place
        if matched:
            self.reason = PREFIX
            return hits.index(max(hits))
        self.reason = SPREAD
        sizes = [view.known_blocks for view in replicas]
        return sizes.index(min(sizes))


SPEC = CacheAwareSpec
