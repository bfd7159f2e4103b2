"""A tier below prefix caches that replicas share, in runs: who finds what, when, and what changes no bit."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.scheduler.faults import FaultEvent, FaultSpec
from pimserve.scheduler.kv_tier_spec import KvTierSpec
from pimserve.scheduler.kv_tiers import KvTiers
from pimserve.scheduler.prefix_cache import PrefixKvCache
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from pimserve.scheduler.windowed_prefix_cache import WindowedPrefixKvCache
from tests.examples import examples

from .test_kv_tiers import BLOCK_BYTES, PS_PER_MS, check_tier, figures, first_tokens_ms, tier
from .test_prefix_blocks_in_pools import FAILURES, hand_over
from .test_prefix_cache import GROUPS, ROWS, SPEC, check_blocks, kv_size, load, run
from .test_windows import FS_PER_MS, LENGTHS, Kept, Windows, cut_and_continued, spread

WRITES = st.sampled_from(["through", "back"])


def store(blocks: int | None = None, latency_ms: float = 0, **more: Any) -> KvTierSpec:
    """One for all replicas that reads a block in 1 ms."""
    return tier("store", blocks, latency_ms, shared=True, **more)


STORES = st.builds(store, st.none() | st.integers(0, 80), st.sampled_from([0, 0.5, 30]), write=WRITES)
TIERS = st.tuples(STORES) | st.tuples(st.builds(tier, st.just("host"), st.integers(0, 40), write=WRITES), STORES)


@pytest.mark.medium
@examples(60)
@given(
    ROWS,
    st.integers(100, 300),
    TIERS,
    LENGTHS,
    st.integers(0, 1000),
    st.sampled_from(["round_robin", "least_outstanding", "least_tokens"]),
    GROUPS,
    st.integers(1, 3),
)
def test_windows_and_interruptions_do_not_matter(
    rows: list[tuple[int, int, int]],
    kv_tokens: int,
    tiers: tuple[KvTierSpec, ...],
    lengths: list[int],
    at: int,
    router: str,
    groups: KvGroups,
    replicas: int,
) -> None:
    """Nor do routers that look at replicas."""
    workload, size = load(rows), {**kv_size(kv_tokens, groups), "replicas": replicas}
    more: dict[str, Any] = {"kv_tiers": tiers, "router": router}
    whole = run(workload, 0, run_settings=size, **more)
    for other in cut_and_continued(lambda how: run(workload, 0, how, size, **more), lengths, at):
        assert figures(other) == figures(whole)


@pytest.mark.medium
@examples(30)
@given(ROWS, st.integers(25, 100), TIERS, LENGTHS, st.integers(0, 1000), FAILURES, GROUPS)
def test_nor_in_pools_and_with_replicas_that_fail(
    rows: list[tuple[int, int, int]],
    blocks: int,
    tiers: tuple[KvTierSpec, ...],
    lengths: list[int],
    at: int,
    failures: list[tuple[int, int]],
    groups: KvGroups,
) -> None:
    """Those for prefill share it."""
    events = tuple(FaultEvent(at_s=ms / 1000, replica=one, kind="fail", for_s=0.05) for ms, one in failures)
    pools = {"replicas": 2, "decodes": 2, "faults": FaultSpec(events=events), "kv_tiers": tiers}
    if groups.windowed:
        blocks *= 2
        pools |= {"kv_groups": groups}
    expected = figures(hand_over(rows, blocks, **pools))
    for other in cut_and_continued(lambda how: hand_over(rows, blocks, how, **pools), lengths, at):
        assert figures(other) == expected


@pytest.mark.medium
@examples(60)
@given(ROWS, st.integers(100, 300), TIERS, LENGTHS, st.integers(1, 3), st.none() | st.integers(0, 400), GROUPS)
def test_blocks_are_conserved(
    rows: list[tuple[int, int, int]],
    kv_tokens: int,
    tiers: tuple[KvTierSpec, ...],
    lengths: list[int],
    replicas: int,
    fails_ms: int | None,
    groups: KvGroups,
) -> None:
    """None is lost or there twice, the store is never over its room, and what it did is what replicas did there."""
    failures = () if fails_ms is None else (FaultEvent(at_s=fails_ms / 1000, replica=0, kind="fail", for_s=0.05),)
    kept, size = Kept(), kv_size(kv_tokens, groups)
    of_run = {**size, "replicas": replicas, "faults": FaultSpec(events=failures)}
    run(load(rows), 0, Deployment(control=Windows(lengths), checkpoints=kept), of_run, kv_tiers=tiers)
    spec, blocks_of = tiers[-1], groups.pool_blocks(size["kv_capacity_tokens"], SPEC.block_size)
    for text, _ in kept.saved:
        shard = json.loads(text)["shards"][0]
        there = shard["shared_tier"]["tier"]
        carried_fs, asked_fs = check_tier(there, spec, groups)
        assert carried_fs == asked_fs
        parts = [state["prefix_tiers"]["tiers"][-1]["figures"] for state in shard["engines"]]
        assert there["figures"] == {name: sum(part[name] for part in parts) for name in there["figures"]}
        for state in shard["engines"]:
            check_blocks(state, blocks_of, groups)


@examples(40)
@given(ROWS, st.integers(100, 300), TIERS)
def test_of_one_replica_it_is_as_its_own(
    rows: list[tuple[int, int, int]], kv_tokens: int, tiers: tuple[KvTierSpec, ...]
) -> None:
    """Where one request runs at a time: what others hold would be room that it need not ask for."""
    own = (*tiers[:-1], tiers[-1].model_copy(update={"shared": False}))
    shared = run(load(rows), kv_tokens, kv_tiers=tiers, max_num_seqs=1)
    assert figures(shared) == figures(run(load(rows), kv_tokens, kv_tiers=own, max_num_seqs=1))


@examples(40)
@given(ROWS, st.integers(100, 300), WRITES, st.integers(1, 3))
def test_a_store_without_room_changes_no_bit(
    rows: list[tuple[int, int, int]], kv_tokens: int, write: str, replicas: int
) -> None:
    size = {"replicas": replicas}
    without = run(load(rows), kv_tokens, run_settings=size)
    empty = run(load(rows), kv_tokens, run_settings=size, kv_tiers=(store(0, write=write),))
    assert (digest(empty), empty.prefixes) == (digest(without), without.prefixes)


def of_two(rows: list[tuple[int, int, int]], *tiers: KvTierSpec, kv_tokens: int = 400, **more: Any) -> Served:
    """Requests in turn on two replicas, each with room for four prompts."""
    return run(load(rows), kv_tokens, run_settings={"replicas": 2, **more}, kv_tiers=tiers)


def test_a_replica_finds_what_another_one_wrote() -> None:
    """Ten blocks of 1 ms from the store, after which 10 tokens are computed in a step."""
    rows = [(0, 0, 2), (1000, 0, 2)]
    assert first_tokens_ms(of_two(rows, tier("host"))) == [10, 10]
    served = of_two(rows, tier("host"), store(latency_ms=2.5))
    assert first_tokens_ms(served) == [10, 22.5]
    assert served.tiers is not None
    (hosts, stores) = served.tiers.levels
    assert (len(hosts), len(stores)) == (2, 1)
    assert [host.figures.hit_tokens for host in hosts] == [0, 0]
    assert stores[0].figures.hit_tokens == 40
    assert stores[0].figures.written_blocks == 12 + 2  # what is in the store already is not written again


@pytest.mark.parametrize(("at_ms", "found", "waits_ms"), [(9, 0, 10), (10, 40, 32), (11, 40, 31)])
def test_blocks_are_found_from_the_end_of_the_step_that_computes_them(at_ms: int, found: int, waits_ms: int) -> None:
    """At 10 ms the first replica's step ends; 12 blocks are written until 22 ms, ten read until 32, a step is 10 ms."""
    served = of_two([(0, 0, 2), (at_ms, 0, 2)], store())
    assert served.prefixes is not None
    assert served.prefixes.hit_tokens == found
    assert first_tokens_ms(served) == [10, waits_ms]


def test_at_one_time_replicas_go_by_their_numbers() -> None:
    """The second one's step ends when the first one looks: that comes first, and finds nothing."""
    served = of_two([(0, 0, 2), (0, 1, 2), (10, 1, 2)], store())
    assert served.prefixes is not None
    assert served.prefixes.hit_tokens == 0


def test_replicas_wait_for_each_other_at_its_link() -> None:
    """Each wants ten blocks of 1 ms that the other computed."""
    served = of_two([(0, 0, 2), (0, 1, 2), (1000, 1, 2), (1001, 0, 2)], store())
    assert first_tokens_ms(served) == [10, 10, 20, 29]
    assert served.tiers is not None
    assert served.tiers.waits_ps == (10 * PS_PER_MS, 19 * PS_PER_MS)


def test_it_stays_when_a_replica_fails() -> None:
    failure = FaultEvent(at_s=0.5, replica=0, kind="fail", for_s=0.2)
    rows = [(0, 0, 2), (1000, 0, 2), (2000, 0, 2)]
    served = of_two(rows, store(), faults=FaultSpec(events=(failure,)))
    assert first_tokens_ms(served) == [10, 20, 20]  # the third one on the first replica, which has lost its cache
    assert served.tiers is not None
    (whole,) = served.tiers.levels[0]
    assert (whole.figures.hit_tokens, whole.figures.evicted_blocks) == (80, 0)


def cache_over(spec: KvTierSpec, blocks: int, groups: KvGroups, ids: list[list[int]]) -> PrefixKvCache:
    """The cache of a replica, in blocks of one token, with one tier below it."""
    tiers = KvTiers([spec], BLOCK_BYTES, 1, groups)
    make = WindowedPrefixKvCache if groups.windowed else PrefixKvCache
    cache = make(blocks, 1, groups, 100, tiers=tiers)
    nothing = np.zeros(len(ids), np.int64)
    table = RequestTable(nothing, nothing, nothing, 1)
    table.prefixes = Ragged.of(ids)
    cache.bind(table)
    return cache


@pytest.mark.parametrize(("spec", "there"), [(tier("host"), 2), (store(), -1)])
def test_room_is_asked_for_as_if_it_had_nothing(spec: KvTierSpec, there: int) -> None:
    """Of three blocks the first is in the tier alone, the second is held here, and there is room for two."""
    cache = cache_over(spec, 5, NO_WINDOWS, [[0], [0, 1], [], [0, 1]])
    assert cache.tiers is not None
    for request, tokens in ((0, 2), (1, 3)):
        assert cache.admit(request, tokens, prompt=True) == 0
    for request in (0, 1):
        cache.cache(request, request + 1)
    cache.tiers.end_step(1)
    cache.release(0, 2)
    assert cache.admit(2, 2, prompt=True) == 0  # and the first block is forgotten here
    cache.release(2, 2)
    cache.tiers.now_fs = FS_PER_MS
    assert cache.blocks - cache.used == 2
    assert cache.admit(3, 3, prompt=True) == there


@pytest.mark.parametrize(("spec", "there"), [(tier("host"), 5), (store(), -1)])
def test_so_is_room_for_attention_windows(spec: KvTierSpec, there: int) -> None:
    """Which, where five of six blocks are found, is for three; of all six it is for six, beside six of full groups."""
    cache = cache_over(spec, 11, KvGroups(1, 1, 3), [[0, 1, 2, 3, 4]])
    assert cache.tiers is not None
    for block in (*range(5), *range(-5, 0)):
        cache.tiers.all[0].write([block], 0)
    cache.tiers.now_fs = FS_PER_MS
    assert cache.admit(0, 6, prompt=True) == there


class Shown(Windows):
    """Keeps what replicas say of the last tier at each window's end."""

    def barrier(self, view: Any) -> None:
        super().barrier(view)
        self.last = [(state.clock_fs, state.kv_tiers.tiers[-1]) for state in view.replicas]
        for _, part in self.last:
            assert 0 <= part.link_busy_fs <= view.now_fs + 10 * FS_PER_MS
            assert part.usage is None or 0 <= part.usage <= 1


@examples(30)
@given(ROWS, st.integers(100, 300), TIERS)
def test_figures_of_replicas_are_those_of_the_store(
    rows: list[tuple[int, int, int]], kv_tokens: int, tiers: tuple[KvTierSpec, ...]
) -> None:
    """What they read and wrote adds up; blocks that are there, and room for them, are of all of it."""
    shown = Shown([100 * FS_PER_MS])
    served = run(load(rows), kv_tokens, Deployment(control=shown), {"replicas": 2}, kv_tiers=tiers)
    section = summarize(served, Objectives(), Hardware(1)).document()["kv_tiers"]["tiers"][-1]
    assert served.tiers is not None
    (whole,) = served.tiers.levels[-1]
    assert section["capacity_blocks"] == whole.capacity
    assert section["kept_blocks"] == whole.kept == whole.figures.written_blocks - whole.figures.evicted_blocks
    parts = [part for _, part in shown.last]
    for name in ("hit_tokens", "read_bytes", "evicted_blocks", "queried_tokens"):
        assert sum(getattr(part, name) for part in parts) <= section[name]
    assert all(part.kept_blocks == parts[0].kept_blocks for part in parts)


@pytest.mark.parametrize("scheduler", [{}, {"router": "least_outstanding", "report_interval_s": 0.1}])
def test_replicas_in_several_shards_are_refused(scheduler: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"scheduler.kv_tiers: store is shared.*--shards 1"):
        run(load([(0, 0, 2)]), 400, Deployment(shards=spread(2)), {"replicas": 2}, kv_tiers=(store(),), **scheduler)


@pytest.mark.parametrize(
    ("last", "remedy"),
    [("{name: host}", "put remote behind host"), ("{name: store, shared: true}", "leave shared out of remote")],
)
def test_what_makes_no_sense_is_refused(last: str, remedy: str) -> None:
    tiers = f"{{enable_prefix_caching: true, kv_tiers: [{{name: remote, shared: true}}, {last}]}}"
    with pytest.raises(InputError, match=f"only the last one may be shared; {remedy}"):
        prepare(load_scenario(None, ["model=mixtral-8x7b", "cluster.device=duplex", f"scheduler={tiers}"]))
