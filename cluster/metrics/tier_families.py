"""The metric families of tiers below prefix caches; no series in runs without such."""

from __future__ import annotations

from pimserve.cluster.metrics.family import ENGINE, TIER, Family

TIER_FAMILIES: tuple[Family, ...] = (
    Family(
        "pimserve_kv_tier_queried_tokens_total",
        "counter",
        "Tokens of admitted requests, looked up in the tier, as neither devices nor tiers above it had them.",
        TIER,
    ),
    Family(
        "pimserve_kv_tier_hit_tokens_total",
        "counter",
        "Of these, those that were read from it, and not computed; among those of the prefix cache, too.",
        TIER,
    ),
    Family("pimserve_kv_tier_read_bytes_total", "counter", "Read from the tier, or on the way from it.", TIER),
    Family("pimserve_kv_tier_written_bytes_total", "counter", "Written to the tier, or on the way to it.", TIER),
    Family(
        "pimserve_kv_tier_evicted_blocks_total",
        "counter",
        "Blocks that the tier has forgotten, as others needed them, or failed with their replica.",
        TIER,
    ),
    Family("pimserve_kv_tier_blocks", "gauge", "Blocks that the tier holds; of a shared one, all of it.", TIER),
    Family(
        "pimserve_kv_tier_usage_ratio",
        "gauge",
        "Blocks that the tier holds over those that it has room for; of a shared one, all of it; absent where endless.",
        TIER,
    ),
    Family(
        "pimserve_kv_tier_link_busy_seconds_total",
        "counter",
        "Time in which the tier's link worked, for the replica.",
        TIER,
    ),
    Family(
        "pimserve_kv_load_waits_total",
        "counter",
        "Admissions of requests that had to wait for blocks on their way from tiers.",
        ENGINE,
    ),
    Family(
        "pimserve_kv_load_wait_seconds_total",
        "counter",
        "How long these waited for them, from when they had room; counted at once.",
        ENGINE,
    ),
)
KV_TIERS = {  # families of tiers, and what of `TierState` they show
    "pimserve_kv_tier_queried_tokens_total": "queried_tokens",
    "pimserve_kv_tier_hit_tokens_total": "hit_tokens",
    "pimserve_kv_tier_read_bytes_total": "read_bytes",
    "pimserve_kv_tier_written_bytes_total": "written_bytes",
    "pimserve_kv_tier_evicted_blocks_total": "evicted_blocks",
    "pimserve_kv_tier_blocks": "kept_blocks",
    "pimserve_kv_tier_usage_ratio": "usage",
    "pimserve_kv_tier_link_busy_seconds_total": "link_busy_s",
}
KV_LOADS = {  # families of all tiers of a replica, and what of `TiersState` they show
    "pimserve_kv_load_waits_total": "load_waits",
    "pimserve_kv_load_wait_seconds_total": "load_wait_s",
}
