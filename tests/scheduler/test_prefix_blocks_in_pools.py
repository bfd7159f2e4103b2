"""Prefix caches on both sides of a hand-over: block by block against the reference, then whole runs."""

import json
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.scheduler.faults import FaultEvent, FaultSpec
from pimserve.scheduler.kv_tier_spec import KvTierSpec
from pimserve.scheduler.prefix_cache import PrefixKvCache
from pimserve.scheduler.prefix_figures import PrefixFigures
from pimserve.scheduler.requests import FINISHED, RequestTable
from pimserve.scheduler.router import router_setting
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.summary import digest
from tests.examples import examples

from .pool_runs import LINK
from .pools import Decode
from .reference_prefix import PhysicalBlocks
from .test_kv_tiers import TIERS, figures, tier
from .test_prefix_cache import GROUPS, ROWS, SPEC, load, run
from .test_simulation import PLAN, seconds
from .test_windows import LENGTHS, Kept, Windows, spread

PATHS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6), st.integers(1, 25)), min_size=1, max_size=8)
OPS = st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["go on", "bring", "send", "leave"])), max_size=60)


def ids_of(paths: Sequence[tuple[int, int, int]], size: int) -> list[list[int]]:
    """Of prompts that go along an earlier one for some blocks, and then have their own, in blocks of `size`."""
    rows: list[list[int]] = []
    for number, (other, common, tokens) in enumerate(paths):
        along = rows[other % number][:common] if number else []
        own = range(100 * number, 100 * number + (tokens + 20) // size)
        rows.append([*along, *own][: (tokens + 20) // size])
    return rows


class Both:
    """The cache and the reference, of which requests are asked the same."""

    def __init__(self, paths: Sequence[tuple[int, int, int]], size: int, blocks: int) -> None:
        self.prompts = [tokens for *_, tokens in paths]
        ids = ids_of(paths, size)
        nothing = np.zeros(len(ids), np.int64)
        table = RequestTable(nothing, nothing, nothing, 1)
        table.prefixes = Ragged.of(ids)
        self.ours, self.reference = PrefixKvCache(blocks, size), PhysicalBlocks(blocks, size, ids)
        self.ours.bind(table)
        self.computed: dict[int, int] = {}  # tokens of those that run
        self.sending: list[int] = []

    def step(self, request: int, what: str) -> None:
        prompt, tokens = self.prompts[request], self.computed.get(request)
        if tokens is None and what in {"go on", "bring"}:
            self.admit(request, prompt, brings=what == "bring")
        elif tokens is None and what == "send" and request in self.sending:
            self.sending.remove(request)
            self.ours.sent(request)
            self.reference.sent(request)
        elif tokens is not None and tokens < prompt:
            now = min(prompt, tokens + 5)
            self.ours.cache(request, now)
            self.reference.computed(request, tokens, now)
            self.computed[request] = now
        elif tokens is not None and what == "go on":
            self.grow(request, tokens)
        elif tokens == prompt and what == "send":
            self.sending.append(request)
            self.ours.send(request, tokens)
            self.reference.send(request)
            del self.computed[request]
        elif tokens is not None and what == "leave":
            self.ours.release(request, tokens)
            self.reference.leave(request, prompt, tokens)
            del self.computed[request]

    def admit(self, request: int, prompt: int, *, brings: bool) -> None:
        tokens = prompt + 1 if brings else prompt
        there = self.ours.admit(request, tokens, prompt=not brings)
        assert (there >= 0) == self.reference.fits(request, tokens)
        if there < 0:
            return
        if brings:
            self.ours.cache(request, prompt)
            self.reference.bring(request, tokens)
        else:
            assert self.reference.admit(request, prompt) == (there, 0)
        self.computed[request] = tokens if brings else there

    def grow(self, request: int, tokens: int) -> None:
        size, free = self.ours.block_size, self.ours.blocks - self.ours.used
        more = -(-(tokens + 1) // size) + tokens // -size
        if more <= free and tokens < self.prompts[request] + 20:
            self.ours.used += more
            self.reference.grow({request: tokens + 1})
            self.computed[request] = tokens + 1

    def check(self) -> None:
        reference, figures = self.reference, self.ours.prefix_figures()
        assert self.ours.used == len(reference.held)
        assert astuple(figures) == reference.figures


@examples(300)
@given(PATHS, st.integers(1, 4), st.integers(0, 30), OPS)
def test_blocks_that_are_sent_on_and_received_are_those_of_the_reference(
    paths: list[tuple[int, int, int]], size: int, more: int, ops: list[tuple[int, str]]
) -> None:
    both = Both(paths, size, 46 // size + more)
    for request, what in ops:
        both.step(request % len(paths), what)
        both.check()
        if what == "go on":
            state = both.ours.state()
            both.ours.restore(state)
            assert both.ours.state() == state


def hand_over(
    rows: list[tuple[int, int, int]],
    blocks: int,
    deployment: Deployment = Deployment(),  # noqa: B008 frozen
    **settings: Any,
) -> Served:
    """Serve (arrival in ms, group, output tokens), as `load` has them; replicas have so many blocks of 4 tokens."""
    groups, tiers = settings.get("kv_groups", NO_WINDOWS), settings.pop("kv_tiers", ())
    decode = Decode(PLAN, 4 * blocks, settings.pop("decodes", 1), LINK, groups)
    spec = {"router": settings.pop("router", SPEC.router), "report_interval_s": 0.05, "kv_tiers": tiers}
    return run(load(rows), 4 * blocks, deployment, {"decode": decode, **settings}, **spec)


def test_only_the_rest_is_computed_and_all_is_sent() -> None:
    served = hand_over([(0, 0, 2), (1000, 0, 2), (2000, 1, 2)], 100)
    assert served.prefixes == PrefixFigures(150, hit_tokens=40, evicted_blocks=0, cached_blocks=26 + 26)
    assert [log.computed_tokens for log in served.logs] == [150 - 40, 3]
    assert served.handovers is not None
    assert served.handovers.bytes == 3 * LINK.size(50)
    assert seconds(served, "finish_ps") == [0.075, 1.075, 2.075]


def test_who_computes_prompts_reads_from_tiers_and_who_decodes_has_none() -> None:
    """The first prompt is forgotten for the others, and 10 blocks of it come from the tier, 1 ms each."""
    rows = [(0, 0, 2), (1000, 1, 2), (2000, 2, 2), (3000, 0, 2)]
    served = hand_over(rows, 26, kv_tiers=(tier(),))
    without = hand_over(rows, 26)
    assert served.tiers is not None
    ((host,),) = served.tiers.levels
    assert host.figures.hit_tokens == 40
    assert served.tiers.waits_ps == (10 * 10**9,)
    assert [log.prompt_tokens for log in served.logs] == [200 - 40, 0]
    assert [log.prompt_tokens for log in without.logs] == [200, 0]
    assert served.tiers.cache.queried_tokens == 200


@pytest.mark.parametrize(("groups", "shared"), [((0, 0), 10), ((0, 1), 0)])
def test_decode_replicas_hold_once_what_requests_share(groups: tuple[int, int], shared: int) -> None:
    """When the first has all but one of its 80 tokens, the second, whose cache came 50 ms later, is 5 steps behind."""
    served = hand_over([(0, groups[0], 30), (0, groups[1], 30)], 100)
    assert served.logs[1].peak_blocks == 20 + 19 - shared


@pytest.mark.medium
def test_a_router_that_goes_by_events_hears_nothing_of_who_decodes() -> None:
    """Which forgets blocks, too, also those that it had before it was asked for the first time."""
    kept = Kept()
    served = hand_over(
        [(100 * number, number % 4, 30) for number in range(12)],
        26,
        Deployment(control=Windows([10**13]), checkpoints=kept),
        router=router_setting({"name": "dynamo", "prefixes": "kv_events"}),
    )
    assert served.prefixes is not None
    assert served.prefixes.evicted_blocks > 100
    states = [json.loads(text) for text, _ in kept.saved]
    assert any(state["clock"]["books"]["index"][1] for state in states)
    for state in states:
        assert {replica for replica, _ in state["clock"]["books"]["index"][1]} <= {0}
        assert state["shards"][0]["engines"][1]["prefix_events"] is None


def test_what_nobody_shares_changes_nothing_in_pools() -> None:
    rows = [(100 * number, number, 1 + number % 7) for number in range(12)]
    served, plain = hand_over(rows, 60), run(
        load(rows), 240, run_settings={"decode": Decode(PLAN, 240, 1, LINK)}, report_interval_s=0.05,
        enable_prefix_caching=False,
    )  # fmt: skip
    assert digest(served) == digest(plain)
    assert served.prefixes is not None
    assert served.prefixes.hit_tokens == 0


FAILURES = st.lists(st.tuples(st.integers(0, 600), st.integers(0, 3)), max_size=2)


@pytest.mark.medium
@examples(12)
@given(ROWS, st.integers(25, 100), LENGTHS, FAILURES, st.integers(0, 1000), st.just(()) | TIERS, GROUPS)
def test_windows_shards_and_interruptions_do_not_matter(
    rows: list[tuple[int, int, int]],
    blocks: int,
    lengths: list[int],
    failures: list[tuple[int, int]],
    at: int,
    tiers: tuple[KvTierSpec, ...],
    groups: KvGroups,
) -> None:
    events = tuple(FaultEvent(at_s=ms / 1000, replica=one, kind="fail", for_s=0.05) for ms, one in failures)
    pools = {"replicas": 2, "decodes": 2, "faults": FaultSpec(events=events), "kv_tiers": tiers}
    if groups.windowed:
        blocks *= 2
        pools |= {"kv_groups": groups}
    whole = hand_over(rows, blocks, **pools)
    expected = figures(whole)
    kept = Kept()
    for shards, kept_by in ((1, kept), (3, None)):
        deployment = Deployment(shards=spread(shards), control=Windows(lengths), checkpoints=kept_by)
        cut = hand_over(rows, blocks, deployment, **pools)
        assert figures(cut) == expected
    kept.first = at
    continued = Deployment(shards=spread(1), control=Windows([10**15]), checkpoints=kept)
    assert figures(hand_over(rows, blocks, continued, **pools)) == expected
    table = whole.table
    assert (table["status"] == FINISHED).all()
    assert whole.prefixes is not None
    assert whole.prefixes.cached_blocks <= 4 * blocks * groups.full
    if not events and not table["preemptions"].any():
        computed = sum(log.prompt_tokens for log in whole.logs)
        assert computed == table["input_tokens"].sum() - whole.prefixes.hit_tokens
