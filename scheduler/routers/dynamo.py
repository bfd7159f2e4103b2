"""Dynamo's KV router: the least cost of blocks to compute and to decode with (ai-dynamo/dynamo, router-concepts.md).

Its mode `kv` with `router_selection_policy` linear, no queue, and no decay of the credit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Annotated, Literal

from pydantic import Field

from pimserve.scheduler.router_protocol import LOAD, PREFIX, ReplicaView, RequestView
from pimserve.scheduler.router_spec import PrefixRouter, PrefixRouterSpec, Share
from pimserve.scheduler.seeded_draws import Drawing

_Weight = Annotated[float, Field(ge=0, le=1e6)]
_DRAW = 2**53


class DynamoSpec(PrefixRouterSpec):
    """The least `prefill_load_scale` x max(0, prefill blocks - credit) + decode blocks.

    Prefill blocks are those of prompts in flight there, less what was cached of them, and of the request's prompt; the
    credit is `overlap_score_credit` for each of its blocks that is cached there, and for those behind these that a tier
    has, `host_cache_hit_weight` in the first one and `disk_cache_hit_weight` in those below. Decode blocks are those of
    prompts there that have not left, with the request's, blocks that they share counted once.
    """

    tier_weights = ("host_cache_hit_weight", "disk_cache_hit_weight")

    name: Literal["dynamo"]
    prefixes: Literal["sent", "kv_events"] = Field("kv_events", description="as of prefix_affinity")
    overlap_score_credit: _Weight = Field(
        1.0, description="credit for a block that is cached on the device (--router-kv-overlap-score-credit)"
    )
    host_cache_hit_weight: Share = Field(
        0.75,
        description="with prefixes: kv_events, credit for a block that the first of scheduler.kv_tiers has, behind "
        "those on the device (--router-host-cache-hit-weight)",
    )
    disk_cache_hit_weight: Share = Field(
        0.25, description="likewise for a block in a tier below the first one (--router-disk-cache-hit-weight)"
    )
    prefill_load_scale: _Weight = Field(
        1.0, description="weight of blocks to compute (--router-prefill-load-scale); blocks to decode with weigh 1"
    )
    temperature: _Weight = Field(
        0.0,
        description="0: the least cost, of equals one that is drawn; above: drawn with exp(-cost / (temperature x the "
        "span of costs)) (--router-temperature)",
    )

    def make(self, seed: int) -> Dynamo:
        """The router."""
        return Dynamo(self, seed)


class Dynamo(Drawing, PrefixRouter):
    """See `DynamoSpec`.

    Args:
        spec: its parameters.
        seed: of draws.
    """

    counts_blocks = True

    def __init__(self, spec: DynamoSpec, seed: int) -> None:
        Drawing.__init__(self, seed)
        PrefixRouter.__init__(self, spec)
        self._spec = spec

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """The least cost, or near it."""
        size, credit, scale = request.block_size, self._spec.overlap_score_credit, self._spec.prefill_load_scale
        costs = [
            scale * max(0.0, view.prefill_tokens + request.prompt_tokens - credited) / size + view.active_blocks
            for view in replicas
            for credited in [credit * view.cached_tokens + self.tier_credit(view)]
        ]
        place = self._drawn(costs)
        chosen = replicas[place]
        self.reason = PREFIX if chosen.cached_tokens or any(chosen.tier_tokens) else LOAD
        return place

    def tier_credit(self, view: ReplicaView) -> float:
        """Tokens that what tiers have of the prompt counts for; also as less to compute, once it is sent there."""
        if not view.tier_tokens:
            return 0.0
        host, *disks = view.tier_tokens
        return self._spec.host_cache_hit_weight * host + self._spec.disk_cache_hit_weight * sum(disks)

    def _drawn(self, costs: Sequence[float]) -> int:
        least = min(costs)
        span, temperature = max(costs) - least, self._spec.temperature
        if temperature and span:
            weights = [exp((least - cost) / (span * temperature)) for cost in costs]
            at = self._draws.below(_DRAW) / _DRAW * sum(weights)
            for place, weight in enumerate(weights):
                at -= weight
                if at < 0:
                    return place
        best = range(len(costs)) if temperature else [place for place, cost in enumerate(costs) if cost == least]
        return self._draws.one_of(best)


SPEC = DynamoSpec
