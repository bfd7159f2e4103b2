"""What the service says of prefix caches and the tiers below them, as plain Python."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefixCacheState:
    """What a replica's prefix cache was asked for so far, and holds."""

    queried_tokens: int
    hit_tokens: int
    evicted_blocks: int
    cached_blocks: int
    preempted_queried_tokens: int
    preempted_hit_tokens: int

    @property
    def hit_ratio(self) -> float | None:
        """Share of the tokens that were cached; None: nothing was looked up."""
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else None


@dataclass(frozen=True, slots=True)
class KvTierState:
    """What a tier of a replica was asked for so far, and holds; `capacity_blocks` is None where that is endless."""

    name: str
    queried_tokens: int
    hit_tokens: int
    read_bytes: int
    written_bytes: int
    evicted_blocks: int
    kept_blocks: int
    capacity_blocks: int | None
    link_busy_s: float

    @property
    def hit_ratio(self) -> float | None:
        """Share of the tokens looked up in it that it had; None: nothing was looked up."""
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else None


@dataclass(frozen=True, slots=True)
class KvTiersState:
    """All of them, from the first below the device down; how many requests waited for their blocks, and how long."""

    tiers: tuple[KvTierState, ...]
    load_waits: int
    load_wait_s: float
