"""Runs with routers that go by what replicas have of a prompt, and prompts as chains of blocks."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from hypothesis import strategies as st

from pimserve.scheduler.router import router_setting
from pimserve.scheduler.simulation import Deployment, Served

from .test_prefix_cache import load, run

REPLICAS = 3
INTERVALS = st.sampled_from([0.0, 0.03])
CHAIN = st.lists(st.integers(0, 2), min_size=1, max_size=5)  # which way a prompt goes at each of its blocks
SETTINGS = st.sampled_from(
    [
        *(
            {"name": name, "prefixes": prefixes}
            for name in ("llm_d", "prefix_affinity")
            for prefixes in ("sent", "kv_events")
        ),
        {"name": "llm_d", "record_blocks": 12, "max_tokens_in_flight_penalty": 20, "exploration_probability": 0.2},
        {"name": "prefix_affinity", "cold": "least_recent"},
        *({"name": name} for name in ("dynamo", "cache_aware", "weighted", "slo_aware")),
        {"name": "weighted", "tier_hit_weight": 0.5},
        {"name": "dynamo", "prefixes": "sent", "temperature": 0.5},
        {"name": "cache_aware", "balance_abs_threshold": 1},
    ]
)


def served(
    rows: list[tuple[int, int, int]],
    router: Any,
    deployment: Deployment = Deployment(),  # noqa: B008 frozen
    of_run: Mapping[str, Any] = MappingProxyType({}),
    **more: Any,
) -> Served:
    settings_of_run = {"replicas": REPLICAS, **of_run}
    return run(load(rows), 400, deployment, settings_of_run, router=router_setting(router), **more)


def by_reason(found: Served) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for (_, reason), count in found.decisions.items():
        counts[reason] += count
    return dict(counts)


def ids(chain: list[int]) -> list[int]:
    """Ids of the blocks of a prompt: one for each way to get there."""
    numbers, here = [], 1
    for step in chain:
        here = 3 * here + step
        numbers.append(here)
    return numbers


def leading(blocks: list[int], known: Any) -> int:
    """Blocks before the first that is not known."""
    return next((number for number, block in enumerate(blocks) if block not in known), len(blocks))
