"""Prefix caches in other processes: they know what prompts begin with, whatever dies meanwhile and comes between."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.distributed.shards.prefix_wire import in_runs, of_runs, prefix_messages, take_prefixes
from pimserve.cluster.distributed.shards.shard_wire import blank_table
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.scheduler.control import Inject
from pimserve.scheduler.simulation import Deployment
from pimserve.scheduler.summary import digest
from tests.scheduler.test_prefix_cache import ROWS, load, run
from tests.scheduler.test_windows import LENGTHS

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
