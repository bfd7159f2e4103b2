"""From the tiers of all replicas to the figures of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.distributions import distribution
from pimserve.scheduler.kv_tier import KvTier
from pimserve.scheduler.kv_tiers import KvTiers
from pimserve.scheduler.prefix_figures import PrefixFigures, together
from pimserve.scheduler.tier_sections import KvTiersUse, KvTierUse
from pimserve.scheduler.tier_states import queried_tokens


@dataclass(frozen=True, slots=True)
class ServedTiers:
    """Tiers of all replicas at the end of a run, `levels` those of one name each.

    `waits_ps` are times that requests waited, `cache` figures of the prefix caches above these tiers.
    """

    levels: tuple[tuple[KvTier, ...], ...]
    waits_ps: tuple[int, ...]
    cache: PrefixFigures

    @staticmethod
    def of(replicas: Iterable[tuple[KvTiers, PrefixFigures]]) -> ServedTiers:
        """Those of these replicas, which are alike, with the figures of their caches."""
        everywhere, caches = zip(*replicas, strict=True)
        levels = tuple(
            tuple(dict.fromkeys(tier.whole for tier in level))  # one that all share is there once
            for level in zip(*(tiers.all for tiers in everywhere), strict=True)
        )
        return ServedTiers(levels, tuple(wait for tiers in everywhere for wait in tiers.waits_ps), together(caches))


def tiers_use(served: ServedTiers, queried_in_all: int, end_fs: int, percentiles: Sequence[float]) -> KvTiersUse:
    """The section of the summary.

    Args:
        served: the tiers.
        queried_in_all: tokens that were looked up in all prefix caches.
        end_fs: when the run ended.
        percentiles: that are asked for, in per cent.
    """
    waits_s = np.array(served.waits_ps) / PS_PER_S
    hits = [sum(tier.figures.hit_tokens for tier in tiers) for tiers in served.levels]
    asked = queried_tokens(hits, served.cache)
    return KvTiersUse(
        tiers=[
            _tier_use(tiers, queried, hit, queried_in_all, end_fs)
            for tiers, queried, hit in zip(served.levels, asked, hits, strict=True)
        ],
        load_wait_s=distribution(waits_s, percentiles),
    )


def _tier_use(tiers: Sequence[KvTier], queried: int, hit: int, queried_in_all: int, end_fs: int) -> KvTierUse:
    first, figures = tiers[0], [tier.figures for tier in tiers]
    busy_fs = sum(tier.busy_fs(end_fs) for tier in tiers)
    return KvTierUse(
        name=first.spec.name,
        write=first.spec.write,
        capacity_blocks=None if first.capacity is None else first.capacity * len(tiers),
        kept_blocks=sum(tier.kept for tier in tiers),
        queried_tokens=queried,
        hit_tokens=hit,
        preempted_hit_tokens=sum(each.preempted_hit_tokens for each in figures),
        hit_ratio=hit / queried_in_all if queried_in_all else None,
        read_bytes=sum(each.read_blocks for each in figures) * first.block_bytes,
        written_bytes=sum(each.written_blocks for each in figures) * first.block_bytes,
        evicted_blocks=sum(each.evicted_blocks for each in figures),
        link_busy_share=busy_fs / (end_fs * len(tiers)) if end_fs else None,
    )
