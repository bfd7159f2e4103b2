"""Routers that go by what replicas have of a prompt: what they know is so, and what they choose follows from it."""

import json
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import e
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import load_scenario
from pimserve.device_models.kv_groups import KvGroups
from pimserve.errors import InputError
from pimserve.scheduler import router as router_module
from pimserve.scheduler.active_blocks import ActiveBlocks
from pimserve.scheduler.control import ChangeScheduler
from pimserve.scheduler.faults import FaultEvent, FaultSpec
from pimserve.scheduler.kv_tier_spec import KvTierSpec
from pimserve.scheduler.plugin_router import PluginViewRouter
from pimserve.scheduler.prefill_in_flight import PrefillInFlight
from pimserve.scheduler.prefix_index import CachedBlocks, SentBlocks
from pimserve.scheduler.requests import FINISHED, NEVER, REJECTED, WAITING, RequestTable
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
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.summary import digest
from tests.examples import examples

from .test_kv_tiers import TIERS
from .test_kv_tiers import tier as tier_of
from .test_prefix_cache import GROUPS, ROWS, kv_size, load, run
from .test_windows import FS_PER_MS, LENGTHS, Kept, Windows

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


@given(st.lists(st.tuples(CHAIN, st.integers(0, 2), CHAIN), max_size=30), st.integers(1, 12))
def test_a_record_is_the_last_blocks_that_were_sent(sent: list[tuple[list[int], int, list[int]]], most: int) -> None:
    record = SentBlocks()
    plain: dict[int, OrderedDict[int, None]] = {replica: OrderedDict() for replica in range(REPLICAS)}
    for chain, replica, asked in sent:
        record.sent(replica, ids(chain), most)
        for block in reversed(ids(chain)):
            plain[replica].pop(block, None)
            plain[replica][block] = None
        while len(plain[replica]) > most:
            plain[replica].popitem(last=False)
        other = SentBlocks()
        other.restore(json.loads(json.dumps(record.state())))
        for each in (record, other):
            assert each.matched(ids(asked), [2, 0]) == [leading(ids(asked), plain[place]) for place in (2, 0)]
            assert each.size(replica) == len(plain[replica])


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2), CHAIN), max_size=40))
def test_events_make_the_sets_that_replicas_have(events: list[tuple[int, int, list[int]]]) -> None:
    index = CachedBlocks()
    plain: dict[int, set[int]] = {replica: set() for replica in range(REPLICAS)}
    for block, replica, asked in events:
        index.heard(replica, [-1 - block if block in plain[replica] else block])
        plain[replica] ^= {block}
        other = CachedBlocks()
        other.restore(json.loads(json.dumps(index.state())))
        for each in (index, other):
            assert each.matched(ids(asked), [2, 0]) == [leading(ids(asked), plain[place]) for place in (2, 0)]
            assert each.size(replica) == len(plain[replica])


def told(state: Mapping[str, Any], replica: int, tier: int, interval_s: float) -> set[int]:
    """Blocks that the router takes to be there, once it has heard all that was said."""
    books = (state["clock"] if interval_s else state["shards"][0])["books"]
    index = books["tiers"][tier - 1] if tier else books["index"]
    blocks = {block for block, replicas in index[0] if replicas >> replica & 1}
    waiting = (each for *of, events in state["clock"]["events"] if of == [replica, tier] for each in events)
    engine = state["shards"][0]["engines"][replica]
    untold = engine["prefix_tiers"]["tiers"][tier - 1]["events"] if tier else engine["prefix_events"]
    for event in [*waiting, *untold]:
        if event >= 0:
            assert event not in blocks
            blocks.add(event)
        else:
            blocks.remove(-1 - event)
    return blocks


@examples(40)
@given(ROWS, LENGTHS, INTERVALS, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 2)), max_size=2), TIERS, GROUPS)
def test_what_is_told_of_blocks_is_what_caches_and_tiers_have(
    rows: list[tuple[int, int, int]],
    lengths: list[int],
    interval_s: float,
    failures: list[tuple[int, int]],
    tiers: tuple[KvTierSpec, ...],
    groups: KvGroups,
) -> None:
    """Also when a replica fails, and its cache with it. Nothing is told of blocks of attention windows."""
    events = tuple(FaultEvent(at_s=at / 1000, replica=replica, kind="fail", for_s=0.05) for at, replica in failures)
    kept = Kept()
    deployment = Deployment(control=Windows(lengths), checkpoints=kept)
    router = {"name": "dynamo", "prefixes": "kv_events"}
    of_run = {"faults": FaultSpec(events=events), **kv_size(400, groups)}
    served(rows, router, deployment, of_run, report_interval_s=interval_s, kv_tiers=tiers)
    assert kept.saved
    for text, _ in kept.saved:
        state = json.loads(text)
        for replica, engine in enumerate(state["shards"][0]["engines"]):
            free = {block for block, _ in engine["prefix_free"] if block >= 0}
            assert told(state, replica, 0, interval_s) == free | {block for block, _ in engine["prefix_holders"]}
            for tier, there in enumerate(engine["prefix_tiers"]["tiers"], 1):
                assert told(state, replica, tier, interval_s) == {block for block in there["blocks"] if block >= 0}


@examples(40)
@given(ROWS, SETTINGS, INTERVALS, TIERS | st.just(()), LENGTHS, st.integers(0, 1000))
def test_windows_and_interruptions_do_not_matter(
    rows: list[tuple[int, int, int]],
    router: Any,
    interval_s: float,
    tiers: tuple[KvTierSpec, ...],
    lengths: list[int],
    at: int,
) -> None:
    how = {"report_interval_s": interval_s, "kv_tiers": tiers}
    whole = served(rows, router, **how)
    kept = Kept()
    cut = served(rows, router, Deployment(control=Windows(lengths), checkpoints=kept), **how)
    kept.first = at
    on = Deployment(control=Windows([10**15]), checkpoints=kept)
    continued = served(rows, router, on, **how)
    assert digest(whole) == digest(cut) == digest(continued)
    assert whole.decisions == cut.decisions == continued.decisions
    assert whole.decisions.total() == len(rows)
    for replica in range(REPLICAS):
        counted = sum(count for (one, _), count in whole.decisions.items() if one == replica)
        assert counted == (whole.table["replica"] == replica).sum()


def test_prompts_that_begin_alike_go_where_the_first_went() -> None:
    rows = [(100 * number, number % 4, 2) for number in range(20)]
    for router in ("prefix_affinity", "llm_d", {"name": "llm_d", "prefixes": "kv_events"}):
        found = served(rows, router)
        assert found.prefixes is not None
        assert found.prefixes.hit_tokens == 16 * 40
        assert by_reason(found) == {LOAD: 4, PREFIX: 16}


def test_a_prompt_goes_where_a_tier_has_it() -> None:
    """Of twelve prompts of each replica it has room for seven. Those in tiers count for 3/4, also while in flight."""
    rows = [(100 * number, number % 36, 2) for number in range(72)]
    tokens: list[int] = []
    with patch.object(PrefillInFlight, "sent", lambda _, __, ___, count, ____: tokens.append(count)):
        found = served(rows, "dynamo", kv_tiers=(tier_of(write="back"),))
    assert found.prefixes is not None
    assert found.tiers is not None
    in_tiers = sum(each.figures.hit_tokens for each in found.tiers.levels[0])
    on_devices = 36 * 40 - in_tiers
    assert found.prefixes.hit_tokens == 36 * 40
    assert 0 < on_devices < in_tiers
    assert tokens[:36] == [50] * 36
    assert sum(tokens[36:]) == 36 * 50 - on_devices - 0.75 * in_tiers
    unheard = served(rows, {"name": "dynamo", "host_cache_hit_weight": 0}, kv_tiers=(tier_of(write="back"),))
    assert unheard.prefixes is not None
    assert unheard.prefixes.hit_tokens < 30 * 40


def test_a_weighted_router_hears_of_tiers_where_they_have_a_weight() -> None:
    """Of twelve prompts of each replica it has room for seven; who hears of the others sends all where they were."""
    rows = [(100 * number, number % 36, 2) for number in range(72)]
    found = []
    for weight in (0, 0.4):
        router = {"name": "weighted", "queue": 0, "kv_usage": 0, "tier_hit_weight": weight}
        run_of = served(rows, router, kv_tiers=(tier_of(write="back"),))
        assert run_of.prefixes is not None
        found.append(run_of.prefixes.hit_tokens)
    assert found[0] < 30 * 40
    assert found[1] == 36 * 40


def test_what_a_record_forgets_is_not_known() -> None:
    """Each replica has 12 blocks in mind, one prompt's: of four groups on three replicas, two keep taking turns."""
    rows = [(100 * number, number % 4, 2) for number in range(12)]
    few = served(rows, {"name": "prefix_affinity", "record_blocks": 12, "cold": "least_recent"})
    assert by_reason(few) == {SPREAD: 12}


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


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), CHAIN, st.booleans()), max_size=30))
def test_active_blocks_are_those_of_who_has_not_left(events: list[tuple[int, int, list[int], bool]]) -> None:
    table = RequestTable(np.zeros(6, np.int64), np.ones(6), np.ones(6), 10)
    books = ActiveBlocks(table)
    plain: dict[int, tuple[int, list[int]]] = {}
    for now, (request, replica, chain, leaves) in enumerate(events):
        if leaves:
            table["status"][request], table["finish_ps"][request] = FINISHED, now + 1
            books.update(now)  # it has not left yet
            assert sorted(one for one, *_ in books.state()) == sorted(plain)
            books.update(now + 1)
            plain.pop(request, None)
        else:
            table["status"][request], table["finish_ps"][request] = WAITING, NEVER
            books.sent(request, replica, ids(chain), len(chain) + 2)
            plain[request] = (replica, ids(chain))
        other = ActiveBlocks(table)
        other.restore(json.loads(json.dumps(books.state())))
        for each in (books, other):
            for place in range(REPLICAS):
                there = [blocks for one, blocks in plain.values() if one == place]
                known = {block for blocks in there for block in blocks}
                more = len(chain) + 1 - leading(ids(chain), known)
                assert each.with_prompt(place, ids(chain), len(chain) + 1) == len(known) + 2 * len(there) + more


def test_prefill_in_flight_is_seen_until_first_tokens() -> None:
    table = RequestTable(np.array([0, 10, 20]), np.ones(3), np.ones(3), 10)
    books = PrefillInFlight(table)
    books.sent(0, 1, 100, 0)
    books.sent(1, 1, 60, 35)  # 25 after it arrived
    books.sent(2, 0, 7, 20)
    books.restore(json.loads(json.dumps(books.state())))
    assert (books.on(1), books.on(0), books.tokens_per_s(1)) == (160, 7, 0.0)
    table["first_token_ps"][:2] = 50, 90
    table["status"][2] = REJECTED
    books.update(89)
    assert (books.on(1), books.on(0)) == (60, 0)
    books.update(90)
    assert books.on(1) == 0
    assert books.tokens_per_s(1) == (100 + 160) / (50 + 55) * 10**12
    assert books.tokens_per_s(0) == 0.0
    books.sent(1, 2, 60, 95)  # as its cache was lost
    assert books.on(2) == 0


@pytest.mark.parametrize("interval_s", [0.0, 0.03])
def test_a_wait_for_a_place_is_no_time_of_prefill(interval_s: float) -> None:
    """One at a time: each is sent when the one before has ended, though all arrive at once."""
    load_of_one = replace(load([(0, 0, 20)] * 4), max_concurrency=1)
    at: list[int] = []
    with patch.object(PrefillInFlight, "sent", lambda _, __, ___, ____, now_ps: at.append(now_ps)):
        more = {"router": router_setting("slo_aware"), "report_interval_s": interval_s}
        found = run(load_of_one, 400, run_settings={"replicas": REPLICAS}, **more)
    ends = sorted(found.table["finish_ps"].tolist())
    assert at[0] == 0
    assert all(0 <= sent - end <= 1 for sent, end in zip(at[1:], ends, strict=False))


def test_a_run_may_change_to_such_a_router() -> None:
    rows = [(100 * number, number % 4, 2) for number in range(20)]
    control = Windows([1050 * FS_PER_MS], {1: ChangeScheduler(router="prefix_affinity")})
    changed = served(rows, "round_robin", Deployment(control=control))
    assert not control.refused
    assert by_reason(changed) == {"turn": 11, LOAD: 4, PREFIX: 5}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scheduler.router=llm_d"], "router llm_d goes by what replicas keep of prompts: set enable_prefix_caching"),
        (["scheduler.router={name: llm_d, affinity: 1}"], "scheduler.router.affinity: unknown key"),
        (["scheduler.router={name: llm_d, affinity_threshold: 2}"], "scheduler.router.affinity_threshold: must be"),
        (["scheduler.router={name: nobody, cold: random}"], "scheduler.router.name: must be one of"),
        (["scheduler.router={affinity_threshold: 1}"], "scheduler.router: needs `name`, one of"),
        (["scheduler.router=3"], "scheduler.router: must be"),
        (
            ["scheduler.router={name: dynamo, prefixes: sent, host_cache_hit_weight: 0.5}"],
            "scheduler.router: host_cache_hit_weight has no effect without prefixes: kv_events",
        ),
    ],
)
def test_what_is_wrong_is_told(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        load_scenario(None, ["model=mixtral-8x7b", "cluster.device=duplex", *overrides])


class Mine:
    """A router of a package that goes by what it sent where."""

    prefixes = "sent"
    record_blocks: int | None = None
    reason = ""

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        cached = [view.cached_tokens for view in replicas]
        self.reason = "known" if any(cached) else ""
        return cached.index(max(cached))


def test_a_router_of_a_package_sees_what_those_here_do() -> None:
    with patch.dict(router_module._ROUTERS, {"mine": lambda _: PluginViewRouter("router 'mine'", Mine())}):
        found = served([(100 * number, number % 4, 2) for number in range(20)], "mine")
    assert by_reason(found) == {"other": 4, "known": 16}
    assert found.prefixes is not None
    assert found.prefixes.hit_tokens == 16 * 40
    other = Mine()
    other.prefixes = "guesses"
    with pytest.raises(InputError, match="router 'mine' has prefixes 'guesses'; 'sent', 'kv_events', or nothing"):
        PluginViewRouter("router 'mine'", other)


def test_a_router_of_a_package_says_how_much_its_record_keeps() -> None:
    few = Mine()
    few.record_blocks = 1
    with patch.dict(router_module._ROUTERS, {"mine": lambda _: PluginViewRouter("router 'mine'", few)}):
        found = served([(100 * number, number % 4, 2) for number in range(20)], "mine")
    assert by_reason(found) == {"other": 20}  # of four groups, the one sent before alone is remembered
    for wrong in (0, -1, True, 1.5, "many"):
        few.record_blocks = wrong  # type: ignore[assignment]
        with pytest.raises(InputError, match=f"router 'mine' has record_blocks {wrong!r}; a whole number above 0, or"):
            PluginViewRouter("router 'mine'", few)


def test_a_router_of_a_package_that_goes_by_prefixes_needs_a_prefix_cache() -> None:
    rows = [(100 * number, number % 4, 2) for number in range(4)]
    with patch.dict(router_module._ROUTERS, {"mine": lambda _: PluginViewRouter("router 'mine'", Mine())}):
        message = "scheduler.router: router mine goes by what replicas keep of prompts: set enable_prefix_caching"
        with pytest.raises(InputError, match=message):
            served(rows, "mine", enable_prefix_caching=False)
