"""A prefix cache that keeps few blocks of attention windows: what is found of them, and what that leaves room for."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.kv_groups import KvGroups
from pimserve.errors import InputError
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.retaining_prefix_cache import prefix_cache_of
from tests.cluster.documents import serve as document_of
from tests.examples import examples

from .strategies import windows
from .test_prefix_blocks_in_pools import PATHS, ids_of
from .test_reference_engine import serve

WINDOWED = {"full_groups": 1, "windowed_groups": 1, "window_tokens": 3}  # of blocks of 2: the last one before a block
LONG = list(range(1, 8))  # ids of a prompt of 14 tokens
ROOM = 2000  # blocks, so that nothing is forgotten
APART = 10**6  # ps, so that one request has left when the next one comes


def found(prompts: list[tuple[int, list[int]]], **changes: Any) -> list[int]:
    """Tokens that prompts find which come one after the other: their tokens, and the ids of their blocks."""
    requests = [(place * APART, tokens, 1) for place, (tokens, _) in enumerate(prompts)]
    settings = {**WINDOWED, "kv_capacity_blocks": ROOM, "block_size": 2, **changes}
    hits = serve(*requests, prefixes=[ids for _, ids in prompts], **settings).hit_tokens
    assert hits == found_by_ours(prompts, settings)
    return hits


def found_by_ours(prompts: list[tuple[int, list[int]]], settings: dict[str, Any]) -> list[int]:
    """The same of the engine's cache."""
    nothing = np.zeros(len(prompts), np.int64)
    table = RequestTable(nothing, np.array([tokens for tokens, _ in prompts], np.int64), nothing, 1)
    table.prefixes = Ragged.of([ids for _, ids in prompts])
    groups = KvGroups(settings["full_groups"], settings["windowed_groups"], settings["window_tokens"])
    chunk = settings.get("max_num_batched_tokens")
    size = settings["kv_capacity_blocks"], settings["block_size"]
    cache = prefix_cache_of(groups, settings.get("retention"))(*size, groups, chunk)
    cache.bind(table)
    hits = []
    for request, (tokens, _) in enumerate(prompts):
        hits.append(cache.admit(request, tokens, prompt=True))
        for computed in range(hits[-1] + (chunk or tokens), tokens, chunk or tokens):
            cache.cache(request, computed)
        cache.cache(request, tokens)
        cache.computed(request, tokens)
        cache.release(request, tokens)
    return hits


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_what_keeps_few_blocks_of_windows_finds_what_others_forget() -> None:
    """21 blocks, chunks of 4 tokens: windows hold 4 blocks while prompts are computed.

    The first prompt leaves 7 blocks of full layers and 7 of windows, or 1: that before its last block, which its last
    token is in. Of two others each takes 4 and 4. If all of the first one's were kept, 7 blocks are left beside it; the
    second prompt takes one of them more, and the third all that it had of windows, which fell first. If one is, 13 are
    left: the second prompt takes 8, of which 3 are free again, and the third as many as there are then.
    """
    others = [(8, [21, 22, 23, 24]), (8, [31, 32, 33, 34])]
    cache = {"kv_capacity_blocks": 21, "max_num_batched_tokens": 4, "max_model_len": 16}
    prompts = [(14, LONG), *others, (14, LONG)]
    assert found(prompts, **cache) == [0, 0, 0, 0]
    assert found(prompts, retention=0, **cache) == [0, 0, 0, 12]


def test_a_prompt_that_parts_from_others_shows_where_the_next_one_can() -> None:
    """The second prompt shares 5 blocks with the first, which kept the window's block before its seventh alone."""
    prompts = [(14, LONG), (14, [*LONG[:5], 21, 22]), (14, [*LONG[:5], 31, 32]), (14, [*LONG[:4], 41, 42, 43])]
    assert found(prompts) == [0, 10, 10, 8]
    assert found(prompts, retention=0) == [0, 0, 10, 0]
    assert found(prompts, retention=4) == [0, 8, 10, 8]  # at ends of 2, 4, 6 blocks


def test_outputs_are_kept_where_the_interval_ends() -> None:
    """A prompt of 6 tokens with 9 more, of which 14 are in the cache, goes on as one of 15.

    Full layers have 7 blocks when it has left, windows the last two of these at most, and that before the prompt's end.
    The second prompt shows that one can go on behind the seventh; the third one parts before it.
    """
    asked = [(0, 6, 9), (APART, 15, 1), (2 * APART, 15, 1)]
    cache = {**WINDOWED, "kv_capacity_blocks": ROOM, "prefixes": [[*LONG], [*LONG], [*LONG[:6], 21]]}
    assert serve(*asked, **cache).hit_tokens == [0, 14, 12]
    assert serve(*asked, **cache, retention=0).hit_tokens == [0, 4, 4]
    assert serve(*asked, **cache, retention=12).hit_tokens == [0, 12, 12]


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.medium
@examples(60)
@given(PATHS, st.integers(1, 4), windows(30), st.integers(1, 6), st.sampled_from([None, 5]))
def test_fewer_blocks_of_windows_never_find_more_where_there_is_room(
    paths: list[tuple[int, int, int]], size: int, groups: Any, blocks: int, chunk: int | None
) -> None:
    """Of prompts; all of what full layers have is found where all is kept, or at every block's end."""
    prompts = [(tokens, ids[: tokens // size]) for (*_, tokens), ids in zip(paths, ids_of(paths, size), strict=True)]
    settings = {
        "block_size": size,
        "full_groups": groups.full,
        "windowed_groups": groups.windowed,
        "window_tokens": groups.window_tokens,
        "max_num_batched_tokens": chunk,
    }
    plain = found(prompts, block_size=size, max_num_batched_tokens=chunk, windowed_groups=0, window_tokens=0)
    every, none, some, each = [
        found(prompts, **settings, retention=retention) for retention in (None, 0, blocks * size, size)
    ]
    assert every == each == plain
    assert all(0 <= least <= more <= most for least, more, most in zip(none, some, every, strict=True))


@examples(40)
@given(PATHS, st.integers(1, 4), windows(30))
def test_who_comes_again_finds_all_but_the_block_of_the_last_token(
    paths: list[tuple[int, int, int]], size: int, groups: Any
) -> None:
    """And who is third to begin like others finds all of that."""
    prompts = [(tokens, ids[: tokens // size]) for (*_, tokens), ids in zip(paths, ids_of(paths, size), strict=True)]
    settings = {
        "block_size": size,
        "full_groups": groups.full,
        "windowed_groups": groups.windowed,
        "window_tokens": groups.window_tokens,
    }
    twice = [prompt for prompt in prompts for _ in range(2)]
    assert found(twice, **settings, retention=0)[1::2] == [(tokens - 1) // size * size for tokens, _ in prompts]
    tokens, ids = prompts[0]
    alike = [(tokens + size, [*ids, 1000 + number]) for number in range(3)]
    if tokens % size == 0:
        assert found(alike, **settings, retention=0)[2] == tokens


# --- settings --------------------------------------------------------------------------------------------------------

CACHED = ["scheduler.enable_prefix_caching=true", "scheduler.block_size=16"]
RETENTION = "scheduler.prefix_cache_retention_interval"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([f"{RETENTION}=0"], "prefix_cache_retention_interval needs enable_prefix_caching: true"),
        ([*CACHED, f"{RETENTION}=24"], r"\(24\) must be 0 or a multiple of block_size \(16\)"),
        ([*CACHED, f"{RETENTION}=-16"], "greater than or equal to 0|at least 0"),
    ],
)
def test_an_interval_that_means_nothing_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_scenario(None, settings)


def summary_of(model: str, interval: int | None) -> dict[str, Any]:
    settings = [
        f"model={model}",
        "cluster={device: h200, tensor_parallel: 1, devices_per_node: 1}",
        "workload.num_requests=40",
        "workload.arrival.rate_per_s=0.1",
        "workload.prefix={groups: 4, prompts_per_group: 10, shared_tokens: 1600, own_tokens: 100, order: shuffled}",
        "workload.lengths={output: {kind: fixed, tokens: 200}}",
        *CACHED,
        *([] if interval is None else [f"{RETENTION}={interval}"]),
    ]
    return document_of(prepare(load_scenario(None, settings)))[0]


def test_gpt_oss_finds_what_its_prompts_share_from_the_third_of_a_group_on() -> None:
    every, none = summary_of("gpt-oss-120b", None), summary_of("gpt-oss-120b", 0)
    assert every["prefix_cache"]["hit_tokens"] == 36 * 1600
    assert none["prefix_cache"]["hit_tokens"] == 32 * 1600
    assert none["prefix_cache"]["cached_blocks"] < every["prefix_cache"]["cached_blocks"]
    assert summary_of("gpt-oss-120b", 1600)["prefix_cache"]["hit_tokens"] == 36 * 1600


def test_models_without_windows_keep_all_and_are_told_of_it() -> None:
    plain, none, some = [summary_of("llama-3.1-8b", interval) for interval in (None, 0, 1600)]
    for summary in (none, some):
        assert summary["digest"] == plain["digest"]
        assert summary["prefix_cache"] == plain["prefix_cache"]
    told = [RETENTION in warning for summary in (plain, none, some) for warning in summary["warnings"]]
    assert sum(told) == sum(RETENTION in warning for warning in some["warnings"]) == 1
