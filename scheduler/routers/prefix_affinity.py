"""The replica that has most of the prompt's beginning."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Literal

from pydantic import Field

from pimserve.scheduler.least_in_turn import LeastInTurn
from pimserve.scheduler.router_protocol import LOAD, PREFIX, SPREAD, ReplicaView, RequestView
from pimserve.scheduler.router_spec import PrefixRouter, PrefixRouterSpec, Share


class PrefixAffinitySpec(PrefixRouterSpec):
    """Where the longest beginning of the prompt is cached; of equals, who has the fewest requests outstanding.

    A prompt of which nobody has `min_share` is cold (10 % in Ray Serve's PrefixCacheAffinityRouter).
    """

    name: Literal["prefix_affinity"]
    min_share: Share = Field(0.1, description="share of the prompt's full blocks from which on a match counts")
    cold: Literal["load", "least_recent"] = Field(
        "load",
        description="where cold prompts go. load: to who has the fewest requests outstanding; "
        "least_recent: to who had such a prompt least recently (llm-d's no-hit-lru-scorer)",
    )

    def make(self, seed: int) -> PrefixAffinity:
        """The router."""
        return PrefixAffinity(self)


class PrefixAffinity(PrefixRouter):
    """See `PrefixAffinitySpec`."""

    def __init__(self, spec: PrefixAffinitySpec) -> None:
        super().__init__(spec)
        self._least = LeastInTurn()
        self._min_share = spec.min_share
        self._spreads = spec.cold == "least_recent"
        self._cold: list[int] = []  # replicas that had a cold prompt, the last one last

    def state(self) -> dict[str, Any]:
        """Whose turn it was, and who had cold prompts."""
        return {"turn": self._least.state(), "cold": self._cold}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._least.restore(state["turn"])
        self._cold = list(state["cold"])

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """The longest match."""
        most = max(view.cached_tokens for view in replicas)
        if most < self._min_share * request.full_tokens:
            most = 0
        if most or not self._spreads:
            self.reason = PREFIX if most else LOAD
            best = [not most or view.cached_tokens == most for view in replicas]
            loads = [view.outstanding if fits else inf for view, fits in zip(replicas, best, strict=True)]
            return self._least.least(loads)
        self.reason = SPREAD
        cold = self._cold
        place = min(range(len(replicas)), key=lambda place: _recency(cold, replicas[place].replica))
        replica = replicas[place].replica
        if replica in cold:
            cold.remove(replica)
        cold.append(replica)
        return place


def _recency(cold: Sequence[int], replica: int) -> int:
    """The later a replica had a cold prompt, the more; -1 if it never had any."""
    return cold.index(replica) if replica in cold else -1


SPEC = PrefixAffinitySpec
