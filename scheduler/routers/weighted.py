"""The policy `weighted` of BLIS (inference-sim, docs/guide/routing.md), after llm-d's weighted scorers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pimserve.scheduler.router_protocol import LOAD, PREFIX, ReplicaView, RequestView
from pimserve.scheduler.router_spec import PrefixRouter, PrefixRouterSpec, Share
from pimserve.scheduler.seeded_draws import Drawing

_Weight = Annotated[float, Field(ge=0, le=1e6)]


class WeightedSpec(PrefixRouterSpec):
    """The highest sum of scores from 0 to 1, each with its weight; of equals one is drawn.

    Defaults are those of BLIS; llm-d's earlier profile had prefix 3, queue 2, kv_usage 2.
    """

    tier_weights = ("tier_hit_weight",)

    name: Literal["weighted"]
    prefixes: Literal["sent", "kv_events"] = Field("kv_events", description="as of prefix_affinity")
    prefix: _Weight = Field(
        2.0,
        description="weight of what is cached of the prompt. With kv_events from 0 for the least to 1 for the most of "
        "all replicas (precise-prefix-cache), with sent the share of the prompt (prefix-affinity)",
    )
    queue: _Weight = Field(
        1.0, description="of requests in the queue, from 1 for the fewest to 0 for the most (queue-depth)"
    )
    kv_usage: _Weight = Field(1.0, description="of 1 - the share of KV blocks in use (kv-utilization)")
    outstanding: _Weight = Field(0.0, description="of 1 / (1 + requests outstanding) (load-balance)")
    tier_hit_weight: Share = Field(
        0.0,
        description="with prefixes: kv_events, what a block that a tier of scheduler.kv_tiers has, behind those on the "
        "device, counts of one there (llm-d: weight of the cpu backend); 0: the router does not hear of tiers",
    )

    @model_validator(mode="after")
    def _weighs(self) -> Self:
        if not (self.prefix or self.queue or self.kv_usage or self.outstanding):
            raise ValueError("one of prefix, queue, kv_usage and outstanding must be above 0")
        return self

    def make(self, seed: int) -> Weighted:
        """The router."""
        return (TierWeighted if self.tier_hit_weight else Weighted)(self, seed)


class Weighted(Drawing, PrefixRouter):
    """See `WeightedSpec`.

    Args:
        spec: weights.
        seed: of draws.
    """

    def __init__(self, spec: WeightedSpec, seed: int) -> None:
        Drawing.__init__(self, seed)
        PrefixRouter.__init__(self, spec)
        self._spec = spec

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """The highest score."""
        spec = self._spec
        cached = [self.found(view) for view in replicas]
        if spec.prefixes == "kv_events":
            hits = _spread(cached)
        else:
            hits = [hit / max(1, request.full_tokens) for hit in cached]
        queues = _spread([-view.waiting for view in replicas])
        scores = [
            spec.prefix * hit
            + spec.queue * queue
            + spec.kv_usage * (1 - view.kv_usage)
            + spec.outstanding / (1 + view.outstanding)
            for hit, queue, view in zip(hits, queues, replicas, strict=True)
        ]
        most = max(scores)
        best = [place for place, score in enumerate(scores) if score == most]
        place = self._draws.one_of(best)
        self.reason = PREFIX if cached[place] and spec.prefix else LOAD
        return place

    def found(self, view: ReplicaView) -> float:
        """Tokens of the prompt that a replica has."""
        return view.cached_tokens


class TierWeighted(Weighted):
    """One that hears what tiers have, too."""

    def found(self, view: ReplicaView) -> float:
        """Tokens of the prompt that a replica has, those in tiers by their weight."""
        return view.cached_tokens + self.tier_credit(view)

    def tier_credit(self, view: ReplicaView) -> float:
        """Tokens that what tiers have of the prompt counts for."""
        return self._spec.tier_hit_weight * sum(view.tier_tokens)


def _spread(values: Sequence[float]) -> list[float]:
    """From 0 for the least to 1 for the most; 1 for all if they are equal."""
    least, most = min(values), max(values)
    return [1.0 if most == least else (value - least) / (most - least) for value in values]


SPEC = WeightedSpec
