"""What the tiers of a replica's prefix cache were asked for so far, and hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pimserve.device_models.plan import FS_PER_S
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.kv_tiers import KvTiers
from pimserve.scheduler.prefix_figures import PrefixFigures


@dataclass(frozen=True, slots=True)
class TierState:
    """One tier; counts are of the run so far, and of what the replica did, where others share it.

    Args:
        name: as the scenario has it.
        queried_tokens: looked up in it, as neither the device nor a tier above had them.
        hit_tokens: of these, those that were read from it.
        read_bytes: to the device, also what is on its way.
        written_bytes: to it, likewise.
        evicted_blocks: that were forgotten, as others needed them, or failed with the replica.
        kept_blocks: that it holds, all of it.
        capacity_blocks: that it has room for, likewise; None: endless.
        link_busy_fs: how long its link has worked.
    """

    name: str
    queried_tokens: int
    hit_tokens: int
    read_bytes: int
    written_bytes: int
    evicted_blocks: int
    kept_blocks: int
    capacity_blocks: int | None
    link_busy_fs: int

    @property
    def usage(self) -> float | None:
        """Share of its room that is taken; None: it is endless, or has none."""
        return self.kept_blocks / self.capacity_blocks if self.capacity_blocks else None

    @property
    def link_busy_s(self) -> float:
        """How long its link has worked, s."""
        return self.link_busy_fs / FS_PER_S


@dataclass(frozen=True, slots=True)
class TiersState:
    """All of them, from the first below the device down; of the requests that waited for blocks, how many and how long.

    A request counts when it is admitted, with all that it will wait.
    """

    tiers: tuple[TierState, ...]
    load_waits: int
    load_wait_ps: int

    @property
    def load_wait_s(self) -> float:
        """How long requests waited, together, s."""
        return self.load_wait_ps / PS_PER_S


def tiers_state(tiers: KvTiers, cache: PrefixFigures, now_fs: int) -> TiersState:
    """Those of a replica, whose prefix cache has these figures, at a time when all transfers so far were asked for."""
    asked = queried_tokens([tier.figures.hit_tokens for tier in tiers.all], cache)
    states = (
        TierState(
            name=tier.spec.name,
            queried_tokens=queried,
            hit_tokens=tier.figures.hit_tokens,
            read_bytes=tier.figures.read_blocks * tier.block_bytes,
            written_bytes=tier.figures.written_blocks * tier.block_bytes,
            evicted_blocks=tier.figures.evicted_blocks,
            kept_blocks=tier.kept,
            capacity_blocks=tier.capacity,
            link_busy_fs=tier.busy_fs(now_fs),
        )
        for tier, queried in zip(tiers.all, asked, strict=True)
    )
    return TiersState(tuple(states), len(tiers.waits_ps), tiers.waited_ps)


def queried_tokens(hit_tokens: Sequence[int], cache: PrefixFigures) -> list[int]:
    """Tokens that were looked up in each tier, by how many were found in each: what was found further up was not."""
    missed = cache.queried_tokens - cache.hit_tokens
    return [missed + sum(hit_tokens[tier:]) for tier in range(len(hit_tokens))]
