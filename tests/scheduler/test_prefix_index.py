"""Records of blocks that were sent or are cached, against plain sets."""

import json
from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from pimserve.scheduler.prefix_index import CachedBlocks, SentBlocks

from .prefix_routing import CHAIN, REPLICAS, ids, leading


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
