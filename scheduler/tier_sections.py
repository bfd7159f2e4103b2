"""Section of the summary that tells of tiers below the prefix cache."""

from __future__ import annotations

from pimserve.scheduler.latency_sections import Distribution
from pimserve.scheduler.sections import Section, Share, figure, text


class KvTierUse(Section):
    """One tier, of all replicas."""

    name: str = text("as the scenario has it")
    write: str = text("through or back")
    capacity_blocks: int | None = figure("blocks", "of KV cache that it holds, of all replicas together; null: endless")
    kept_blocks: int = figure("blocks", "that it held in the end")
    queried_tokens: int = figure("tokens", "looked up in it, as neither devices nor tiers above had them")
    hit_tokens: int = figure("tokens", "of prefix_cache.hit_tokens, those that were read from it")
    preempted_hit_tokens: int = figure("tokens", "of prefix_cache.preempted_hit_tokens, likewise")
    hit_ratio: float | None = figure("1", "hit_tokens / prefix_cache.queried_tokens; null if nobody was admitted")
    read_bytes: int = figure("B", "to the device, also what the end of the run left on its way")
    written_bytes: int = figure("B", "to it, likewise")
    evicted_blocks: int = figure("blocks", "that were forgotten, as others needed them, or failed with their replica")
    link_busy_share: Share = figure("1", "share of the run in which its links worked, mean")


class KvTiersUse(Section):
    """Tiers below the prefix caches of all replicas, over the whole run."""

    tiers: list[KvTierUse] = text("from the first below the device down")
    load_wait_s: Distribution = text(
        "how long requests waited for blocks that were on their way, from when they had room"
    )
