"""What a scenario may say of routers that have parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pimserve.scheduler.router_protocol import ViewRouter

Blocks = Annotated[int, Field(gt=0, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[int, Field(ge=0, le=2**53)]


class RouterSpec(BaseModel):
    """Parameters of a router. Each kind has its `name`, a Literal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str

    def make(self, seed: int) -> ViewRouter:
        """The router; one that draws at random does so by `seed`."""
        raise NotImplementedError


class PrefixRouterSpec(RouterSpec):
    """Of a router that goes by what replicas have in their prefix caches."""

    tier_weights: ClassVar[tuple[str, ...]] = ()  # keys of what the first of scheduler.kv_tiers has, and those below

    prefixes: Literal["sent", "kv_events"] = Field(
        "sent",
        description="how the router knows what replicas have cached. sent: by its own record of what it sent where; "
        "kv_events: by what they say of blocks that they store and remove, with their reports",
    )
    record_blocks: Blocks | None = Field(
        None,
        description="with prefixes: sent, blocks of each replica that the record keeps; those sent least recently are "
        "forgotten. Default: as many as the replica's KV cache has",
    )

    @model_validator(mode="after")
    def _keeps_a_record(self) -> Self:
        if self.record_blocks is not None and self.prefixes != "sent":
            raise ValueError("record_blocks has no effect without prefixes: sent")
        for key in self.idle_weights(0) if self.prefixes == "sent" else ():
            raise ValueError(f"{key} has no effect without prefixes: kv_events")
        return self

    def idle_weights(self, tiers: int) -> Iterator[str]:
        """Keys that were given, of tiers that are not there where there are so many."""
        for key in self.tier_weights[tiers:]:
            if getattr(self, key) != type(self).model_fields[key].default:
                yield key


class PrefixRouter:
    """What such routers have in common."""

    def __init__(self, spec: PrefixRouterSpec) -> None:
        self.prefixes = spec.prefixes
        self.record_blocks = spec.record_blocks
        self.reason = ""
