"""Which replica each router picks that goes by what replicas have of a prompt, and why."""

from math import e
from typing import Any

import pytest

from pimserve.scheduler.router import make_router, router_setting
from pimserve.scheduler.router_protocol import (
    EXPLORE,
    LOAD,
    OVERLOAD,
    PREFIX,
    SPREAD,
    ReplicaView,
    RequestView,
    restore_router,
    router_state,
)


def view(replica: int, cached: int, tokens: int, outstanding: int = 0) -> ReplicaView:
    return ReplicaView(replica, outstanding, cached_tokens=cached, prefill_tokens=tokens)


def active(replica: int, cached: int, tokens: int, blocks: int) -> ReplicaView:
    return ReplicaView(replica, cached_tokens=cached, prefill_tokens=tokens, active_blocks=blocks)


def tiered(replica: int, cached: int, blocks: int, *below: int) -> ReplicaView:
    return ReplicaView(replica, cached_tokens=cached, active_blocks=blocks, tier_tokens=below)


def loaded(replica: int, cached: int, waiting: int, usage: float) -> ReplicaView:
    return ReplicaView(replica, waiting=waiting, kv_usage=usage, cached_tokens=cached)


ASKED = RequestView(100, full_tokens=96)


@pytest.mark.parametrize(
    ("settings_of", "replicas", "place", "reason"),
    [
        ({}, [view(0, 80, 50), view(1, 0, 0), view(2, 77, 10)], 2, PREFIX),  # 80 % of 96 are 76.8
        ({}, [view(0, 76, 50), view(1, 0, 0), view(2, 64, 10)], 2, LOAD),  # 74, 100 and 46 to compute
        ({"max_tokens_in_flight_penalty": 49}, [view(0, 80, 50), view(1, 0, 0)], 0, OVERLOAD),  # though 70 is less
        ({"max_tokens_in_flight_penalty": 49}, [view(0, 80, 90), view(1, 0, 0)], 1, OVERLOAD),
        ({"max_tokens_in_flight_penalty": 50}, [view(0, 80, 50), view(1, 0, 0)], 0, PREFIX),
        ({"max_tokens_in_flight_penalty": 0}, [view(0, 80, 10**6), view(1, 0, 0)], 0, PREFIX),
        (
            {"max_tokens_in_flight_penalty": 0, "max_ttft_penalty_s": 2, "peak_prefill_tokens_per_s": 100},
            [view(0, 80, 201), view(1, 0, 0)],
            1,
            OVERLOAD,
        ),
        ({"exploration_probability": 1}, [view(0, 96, 100), view(1, 0, 0)], 1, EXPLORE),
        ({"affinity_threshold": 0}, [view(0, 96, 100), view(1, 0, 0)], 1, LOAD),
    ],
)
def test_llm_d_filters_scores_and_picks(
    settings_of: dict[str, Any], replicas: list[ReplicaView], place: int, reason: str
) -> None:
    router = make_router(router_setting({"name": "llm_d", **settings_of}), 3)
    assert router.route(ASKED, replicas) == place  # type: ignore[union-attr]
    assert router.reason == reason  # type: ignore[union-attr]


def test_of_equals_llm_d_draws_one_and_goes_on_from_its_state() -> None:
    router, other = make_router("llm_d", 3), make_router("llm_d", 3)
    alike = [view(number, 0, 5) for number in range(4)]
    drawn = [router.route(ASKED, alike) for _ in range(400)]  # type: ignore[union-attr]
    assert all(70 < drawn.count(place) < 130 for place in range(4))
    enough = make_router(router_setting({"name": "llm_d", "queue_threshold_tokens": 10}))
    unlike = [view(0, 96, 900), view(1, 96, 6), view(2, 0, 0)]  # 904 and 10 to compute, of those that have the prompt
    assert {enough.route(ASKED, unlike) for _ in range(50)} == {0, 1}  # type: ignore[union-attr]
    restore_router(other, router_state(router))
    again = [[one.route(ASKED, alike) for _ in range(20)] for one in (router, other)]  # type: ignore[union-attr]
    assert again[0] == again[1]


TIERED = [tiered(0, 32, 10, 32, 16, 16), tiered(1, 48, 7, 0, 0, 0), tiered(2, 16, 0, 0, 0, 0)]
ELSEWHERE = [  # settings, replicas, the place of the one that is picked, and why
    ("prefix_affinity", {}, [view(0, 32, 0, 1), view(1, 48, 0, 9), view(2, 48, 0, 7)], 2, PREFIX),
    ("prefix_affinity", {}, [view(0, 9, 0, 9), view(1, 0, 0, 8)], 1, LOAD),  # a tenth of 96 are 9.6
    ("prefix_affinity", {"min_share": 0.05}, [view(0, 9, 0, 9), view(1, 0, 0, 8)], 0, PREFIX),
    # (prefill in flight + 100 - cached) / 16 + active blocks: 13.75 + 9, 12.5 + 10 and 10.625 + 12
    ("dynamo", {}, [active(0, 80, 200, 9), active(1, 0, 100, 10), active(2, 80, 150, 12)], 1, LOAD),
    (
        "dynamo",
        {"prefill_load_scale": 4},
        [active(0, 80, 200, 9), active(1, 0, 100, 10), active(2, 80, 150, 12)],
        2,
        PREFIX,
    ),
    ("dynamo", {"overlap_score_credit": 0}, [active(0, 96, 10, 10), active(1, 0, 0, 10)], 1, LOAD),
    ("dynamo", {"overlap_score_credit": 3}, [active(0, 96, 10, 17), active(1, 0, 0, 10)], 1, LOAD),  # 0 + 17, 6.25 + 10
    # 4 x (100 - 32 - 0.75 x 32 - 0.25 x (16 + 16)) / 16 + active blocks: 9 + 10, 13 + 7 and 21 + 0
    ("dynamo", {"prefill_load_scale": 4}, TIERED, 0, PREFIX),
    ("dynamo", {"prefill_load_scale": 4, "host_cache_hit_weight": 0.5}, TIERED, 1, PREFIX),  # 11 + 10
    ("dynamo", {"prefill_load_scale": 4, "disk_cache_hit_weight": 0}, TIERED, 1, PREFIX),  # 11 + 10
    ("dynamo", {}, [active(0, 0, 0, 5), tiered(1, 0, 5, 0, 16)], 1, PREFIX),
    ("cache_aware", {}, [view(0, 28, 0, 64), view(1, 16, 0, 0)._replace(known_blocks=3)], 0, SPREAD),
    ("cache_aware", {}, [view(0, 29, 0, 64), view(1, 16, 0, 0)], 0, PREFIX),  # 30 % of 96 are 28.8
    ("cache_aware", {}, [view(0, 29, 0, 65), view(1, 16, 0, 0)], 1, OVERLOAD),
    ("cache_aware", {}, [view(0, 29, 0, 195), view(1, 16, 0, 130)], 0, PREFIX),  # 1.5 times as many
    ("cache_aware", {}, [view(0, 0, 0, 196), view(1, 16, 0, 130)], 1, LOAD),
    # 2 x cached + queue + 1 - use: 0 + 1 + 0.9, 2 + 0 + 0.8 and 1 + 0.5 + 0.7
    ("weighted", {}, [loaded(0, 0, 1, 0.1), loaded(1, 96, 3, 0.2), loaded(2, 48, 2, 0.3)], 1, PREFIX),
    ("weighted", {"prefix": 0.5}, [loaded(0, 0, 1, 0.1), loaded(1, 96, 3, 0.2), loaded(2, 48, 2, 0.3)], 0, LOAD),
    ("weighted", {"prefixes": "sent"}, [loaded(0, 0, 1, 0.1), loaded(1, 9, 3, 0.2)], 0, LOAD),  # a tenth, not all
    ("weighted", {"queue": 0, "kv_usage": 0, "outstanding": 9}, [view(0, 96, 0, 9), view(1, 0, 0, 0)], 1, LOAD),
    ("slo_aware", {"prefill_tokens_per_s": 100}, [view(0, 80, 180), view(1, 0, 0)], 0, PREFIX),  # 2 s and 1 s, of 2 s
    ("slo_aware", {"prefill_tokens_per_s": 100}, [view(0, 80, 181), view(1, 0, 0)], 1, LOAD),
    ("slo_aware", {"prefill_tokens_per_s": 100}, [view(0, 80, 181), view(1, 0, 101)], 1, OVERLOAD),
    ("slo_aware", {}, [view(0, 80, 181)._replace(prefill_tokens_per_s=101.0), view(1, 0, 0)], 0, PREFIX),
    ("slo_aware", {}, [view(0, 80, 181)._replace(prefill_tokens_per_s=99.0), view(1, 0, 0)], 1, LOAD),
]


@pytest.mark.parametrize(("name", "settings_of", "replicas", "place", "reason"), ELSEWHERE)
def test_each_picks_by_its_rule(
    name: str, settings_of: dict[str, Any], replicas: list[ReplicaView], place: int, reason: str
) -> None:
    router = make_router(router_setting({"name": name, **settings_of}), 3)
    asked = ASKED._replace(block_size=16, ttft_limit_s=2.0)
    assert router.route(asked, replicas) == place  # type: ignore[union-attr]
    assert router.reason == reason  # type: ignore[union-attr]


def test_without_a_limit_it_goes_where_it_is_served_first() -> None:
    router = make_router(router_setting({"name": "slo_aware", "prefill_tokens_per_s": 100}))
    assert router.route(ASKED, [view(0, 96, 300), view(1, 0, 100)]) == 1  # type: ignore[union-attr]
    assert router.reason == LOAD  # type: ignore[union-attr]


def test_a_temperature_draws_by_costs() -> None:
    """Costs of 10, 12 and 14 have a span of 4: with a temperature of 1/2, weights are 1, 1/e and 1/e^2."""
    router = make_router(router_setting({"name": "dynamo", "temperature": 0.5, "prefill_load_scale": 0}), 3)
    replicas = [active(0, 0, 0, 10), active(1, 0, 0, 12), active(2, 0, 0, 14)]
    drawn = [router.route(ASKED, replicas) for _ in range(2000)]  # type: ignore[union-attr]
    whole = 1 + 1 / e + 1 / e**2
    for place in range(3):
        assert drawn.count(place) / 2000 == pytest.approx(e**-place / whole, abs=0.03)
    none = make_router(router_setting({"name": "dynamo", "temperature": 0.5, "prefill_load_scale": 0}), 3)
    alike = [none.route(ASKED, [active(0, 0, 0, 3), active(1, 0, 0, 3)]) for _ in range(100)]  # type: ignore[union-attr]
    assert 30 < alike.count(0) < 70
