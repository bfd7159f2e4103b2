"""Routers that go by what replicas have of a prompt: what they know in runs is so, and prompts go where it is."""

import json
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import load_scenario
from pimserve.device_models.kv_groups import KvGroups
from pimserve.errors import InputError
from pimserve.scheduler.control import ChangeScheduler
from pimserve.scheduler.faults import FaultEvent, FaultSpec
from pimserve.scheduler.kv_tier_spec import KvTierSpec
from pimserve.scheduler.prefill_in_flight import PrefillInFlight
from pimserve.scheduler.router_protocol import (
    LOAD,
    PREFIX,
    SPREAD,
)
from pimserve.scheduler.simulation import Deployment
from pimserve.scheduler.summary import digest
from tests.examples import examples

from .prefix_routing import INTERVALS, REPLICAS, SETTINGS, by_reason, served
from .test_kv_tiers import TIERS
from .test_kv_tiers import tier as tier_of
from .test_prefix_cache import GROUPS, ROWS, kv_size
from .test_windows import FS_PER_MS, LENGTHS, Kept, Windows, cut_and_continued


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


@pytest.mark.medium
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


@pytest.mark.medium
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
    cut, continued = cut_and_continued(lambda deployment: served(rows, router, deployment, **how), lengths, at)
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
