"""Prefix caches in other processes, tiers below them, routers that go by them: the same bits, whatever dies."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.distributed import recovery
from pimserve.cluster.distributed.shards import prefix_wire
from pimserve.cluster.distributed.shards.prefix_wire import (
    event_messages,
    events_of,
    in_runs,
    of_runs,
    prefix_messages,
    take_prefixes,
)
from pimserve.cluster.distributed.shards.shard_wire import blank_table
from pimserve.device_models.kv_groups import KvGroups
from pimserve.errors import InputError
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.scheduler.control import Inject
from pimserve.scheduler.faults import FaultEvent, FaultSpec
from pimserve.scheduler.kv_tier_spec import KvTierSpec
from pimserve.scheduler.simulation import Deployment
from pimserve.scheduler.summary import digest
from pimserve.v1 import shard_pb2 as pb
from tests.scheduler.prefix_routing import INTERVALS, SETTINGS, served
from tests.scheduler.test_kv_tiers import TIERS, figures
from tests.scheduler.test_prefix_cache import GROUPS, ROWS, kv_size, load, run
from tests.scheduler.test_windows import LENGTHS, Kept, Windows, spread

from .test_shards import SLOW, Killing, remote

IDS = st.lists(st.lists(st.integers(0, 12), max_size=9), max_size=8)


@given(IDS)
def test_ids_of_blocks_come_back(rows: list[list[int]]) -> None:
    runs, firsts, lengths = in_runs(Ragged.of(rows))
    again = of_runs(runs, firsts, lengths)
    assert [again[row].tolist() for row in range(len(again))] == rows
    assert (lengths > 0).all()
    assert len(firsts) == sum(1 + sum(b != a + 1 for a, b in pairwise(row)) for row in rows if row)


def test_beginnings_of_long_prompts_are_short() -> None:
    """A thousand prompts of a thousand blocks, of which ten groups share nine hundred."""
    groups, own = np.arange(9000).reshape(10, 900), np.arange(9000, 109_000).reshape(1000, 100)
    prompts = [[*groups[number % 10], *own[number]] for number in range(1000)]
    table = blank_table(len(prompts))
    assert not list(prefix_messages(table, 0))
    table.prefixes = Ragged.of(prompts)
    messages = list(prefix_messages(table, 7))
    assert {message.sequence for message in messages} == {7}
    assert sum(message.ByteSize() for message in messages) < 50_000
    there = blank_table(len(prompts))
    take_prefixes(messages, there)
    assert there.prefixes is not None
    assert (there.prefixes.values == table.prefixes.values).all()
    assert (there.prefixes.offsets == table.prefixes.offsets).all()


@SLOW
@given(ROWS, st.integers(100, 400), LENGTHS, st.sets(st.integers(1, 12), max_size=3), st.integers(1, 6))
def test_shards_that_die_find_the_same_prefixes(
    rows: list[tuple[int, int, int]], kv_tokens: int, lengths: list[int], deaths: set[int], at: int
) -> None:
    """Two that were injected come between the others, and share nothing."""
    workload, two = load(rows), Inject((50, 50), (3, 3), delay_s=0.02)
    with remote(2) as made, remote(2) as alive:
        found = []
        for shards, killed in ((None, set()), (alive, set()), (made, deaths)):
            control = Killing(lengths, made, killed)
            control.commands = {at: two}
            served = run(workload, kv_tokens, Deployment(shards=shards, control=control), {"replicas": 2})
            found.append((digest(served), served.prefixes, served.table.structured().tobytes(), len(control.refused)))
    assert found[0] == found[1] == found[2]


CHANGES = st.lists(st.integers(0, 9) | st.integers(0, 2**62), max_size=20)  # each stores a block, or removes it again


@given(st.lists(CHANGES, max_size=5), st.sets(st.integers(0, 9)), st.integers(1, 5))
def test_what_comes_of_events_comes_over_the_wire(changes: list[list[int]], before: set[int], most: int) -> None:
    events, after = [], []
    for number, blocks in enumerate(changes):
        there, told = set(before), []
        for block in blocks:
            told.append(-1 - block if block in there else block)
            there ^= {block}
        events.append((2 * number // 3, number % 3, told))
        after.append(there)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_wire, "_RUNS_PER_MESSAGE", most)
        pieces = list(event_messages(events))
    assert pieces
    assert max(sum(len(each.firsts) for each in piece) for piece in pieces) <= most
    heard = {(replica, tier): told for replica, tier, told in events_of(each for piece in pieces for each in piece)}
    for (replica, tier, _), there in zip(events, after, strict=True):
        told = heard.pop((replica, tier), ())
        assert {each for each in told if each >= 0} == there - before
        assert {-1 - each for each in told if each < 0} == before - there
        assert len(told) == len(there ^ before)
    assert not heard


def test_what_replicas_say_of_long_prompts_is_short() -> None:
    """A thousand prompts of 840 blocks each, stored from their ends, of which 500 are forgotten, and 500 others."""
    stored = [range(840 * number, 840 * (number + 1)) for number in range(1000)]
    others = [range(10**6 + 2000 * number, 10**6 + 2000 * number + 840) for number in range(500)]
    events = [block for blocks in stored for block in reversed(blocks)]
    events += [-1 - block for blocks in (*stored[::2], *others) for block in blocks]
    (piece,) = event_messages([(3, 1, events)])
    assert sum(each.ByteSize() for each in piece) < 6000
    ((replica, tier, told),) = events_of(piece)
    assert (replica, tier) == (3, 1)
    assert sorted(told) == sorted({*(block for blocks in stored[1::2] for block in blocks), *events[-420_000:]})
    with pytest.raises(InputError, match="kv_events: replica 1: needs as many firsts as lengths"):
        events_of([pb.KvEvents(replica=1, firsts=[1, 2], lengths=[1])])


@SLOW
@given(
    ROWS,
    SETTINGS,
    INTERVALS,
    TIERS | st.just(()),
    GROUPS,
    LENGTHS,
    st.sets(st.integers(1, 9), max_size=3),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 2)), max_size=1),
    st.integers(0, 1000),
)
def test_routers_by_prefixes_choose_the_same_and_tiers_find_the_same(
    rows: list[tuple[int, int, int]],
    router: Any,
    interval_s: float,
    tiers: tuple[KvTierSpec, ...],
    groups: KvGroups,
    lengths: list[int],
    deaths: set[int],
    failures: list[tuple[int, int]],
    at: int,
) -> None:
    """In one process, in three shards of it, and in two hosts that die, which go on from snapshots and checkpoints."""
    events = tuple(
        FaultEvent(at_s=at_ms / 1000, replica=replica, kind="fail", for_s=0.05) for at_ms, replica in failures
    )
    of_run = {"faults": FaultSpec(events=events), **kv_size(400, groups)}
    how = {"of_run": of_run, "report_interval_s": interval_s, "kv_tiers": tiers}
    here, kept = served(rows, router, **how), Kept()
    shards = 2 if interval_s else 1
    inside = Deployment(shards=spread(3 if interval_s else 1), control=Windows(lengths))
    found = [here, served(rows, router, inside, **how)]
    with pytest.MonkeyPatch.context() as patch, remote(shards) as made, remote(shards) as again:
        patch.setattr(recovery, "_SAVE_BYTES", 300)
        control = Killing(lengths, made, deaths)
        found.append(served(rows, router, Deployment(shards=made, control=control, checkpoints=kept), **how))
        kept.first = at
        deployment = Deployment(shards=again, control=Killing([5 * 10**13], again, {2, 4}), checkpoints=kept)
        found.append(served(rows, router, deployment, **how))
    assert [figures(each) for each in found] == [figures(here)] * 4
    assert [each.decisions for each in found] == [here.decisions] * 4
