"""Prefix hits of all capacities at once, against a cache that is played block by block."""

from collections import OrderedDict
from time import process_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.loadgen.traces.prefix_reuse import prefix_reuse, stack_distances
from pimserve.loadgen.traces.ragged import Ragged

PROMPTS = st.lists(st.lists(st.integers(0, 9), max_size=6, unique=True), min_size=1, max_size=30)


def played(prompts, block_tokens, inputs, capacity):
    """Tokens hit by a cache of that many blocks which drops the least recently used."""
    cache, hits = OrderedDict(), 0
    for blocks, tokens in zip(prompts, inputs, strict=True):
        run, leading = 0, True
        for block in blocks:
            leading = leading and block in cache
            run += leading
            cache[block] = None
            cache.move_to_end(block)
            if len(cache) > capacity:
                cache.popitem(last=False)
        hits += min(run * block_tokens, tokens)
    return hits


@given(PROMPTS, st.data())
def test_hits_are_those_of_a_cache_that_is_played(prompts, data):
    inputs = [max(1, 4 * len(blocks) - data.draw(st.integers(0, 3))) for blocks in prompts]
    reuse = prefix_reuse(Ragged.of(prompts), 4, np.array(inputs))
    for capacity in range(1, 12):
        expected = played(prompts, 4, inputs, capacity)
        assert reuse.hit_ratio(capacity) == expected / sum(inputs)
    assert reuse.hit_tokens == played(prompts, 4, inputs, 100)
    assert reuse.token_hit_ratio == reuse.hit_ratio(100)
    assert reuse.unique_blocks == len({block for blocks in prompts for block in blocks})
    assert reuse.total_blocks == sum(map(len, prompts))


@given(st.lists(st.integers(0, 12), max_size=80))
def test_a_distance_counts_the_distinct_ids_since_the_last_use(ids):
    expected = []
    for place, each in enumerate(ids):
        before = [earlier for earlier in range(place) if ids[earlier] == each]
        expected.append(len(set(ids[before[-1] : place])) if before else 0)
    assert stack_distances(np.array(ids, np.int64)).tolist() == expected


def test_a_hit_ends_where_the_prompt_does():
    reuse = prefix_reuse(Ragged.of([[1, 2], [1, 2]]), 512, np.array([700, 600]))
    assert (reuse.hit_blocks, reuse.hit_tokens, reuse.requests_with_hit) == (2, 600, 1)
    assert reuse.hit_ratio(1) == 0
    assert reuse.hit_ratio(2) == 600 / 1300


def test_prompts_without_blocks_hit_nothing():
    reuse = prefix_reuse(Ragged.of([[], []]), 16, np.array([5, 7]))
    assert (reuse.total_blocks, reuse.token_hit_ratio, reuse.hit_ratio(10)) == (0, 0, 0)


@pytest.mark.deep
def test_millions_of_blocks_take_seconds():
    ids = np.random.default_rng(1).zipf(1.2, 4_000_000) % 500_000
    begin = process_time()
    stack_distances(ids)
    assert process_time() - begin < 60
