"""A prefix cache in runs: what does not change a bit, what is counted, and what is refused."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.kv_groups import NO_WINDOWS, KvGroups
from pimserve.device_models.plan import FS_PER_S
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.prefix import Prompts
from pimserve.loadgen.prefix_blocks import PromptPrefixes
from pimserve.loadgen.workload import Workload
from pimserve.scheduler.config import SchedulerSpec
from pimserve.scheduler.control import Inject
from pimserve.scheduler.faults import FaultEvent, FaultSpec
from pimserve.scheduler.prefix_figures import PrefixFigures
from pimserve.scheduler.requests import FINISHED
from pimserve.scheduler.simulation import Deployment, Served
from pimserve.scheduler.summary import digest, summarize
from pimserve.scheduler.usage import Hardware
from pimserve.scheduler.window_falls import WindowBlocks
from tests.examples import examples

from .test_simulation import serve
from .test_windows import FS_PER_MS, LENGTHS, Kept, Windows, cut_and_continued

PS_PER_MS = 10**9
SPEC = SchedulerSpec(enable_prefix_caching=True, block_size=4, max_num_seqs=8, max_num_batched_tokens=64)


def load(rows: list[tuple[int, int, int]], shared_tokens: int = 40) -> Workload:
    """Requests of (arrival in ms, group, output tokens), each with 10 tokens after what its group shares."""
    arrival, group, outputs = (np.array(column, np.int64) for column in zip(*sorted(rows), strict=True))
    inputs = np.full(len(rows), shared_tokens + 10)
    prompts = Prompts(group, np.arange(len(rows)), 0, shared_tokens)
    return Workload(
        *(arrival * PS_PER_MS, inputs, outputs, None, None, "", 0, {}),
        prefixes=PromptPrefixes(prompts, inputs),
    )


def run(
    workload: Workload,
    kv_tokens: int,
    deployment: Deployment = Deployment(),  # noqa: B008 frozen
    run_settings: Mapping[str, Any] = MappingProxyType({}),
    **changes: object,
) -> Served:
    spec = SPEC.model_copy(update=changes)
    limits = {"kv_capacity_tokens": kv_tokens, "max_model_len": 100}
    return serve([], workload=workload, spec=spec, deployment=deployment, **{**limits, **run_settings})


ROWS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=25)


GROUPS = st.sampled_from([NO_WINDOWS, KvGroups(1, 1, 20), KvGroups(2, 3, 9)])


def kv_size(kv_tokens: int, groups: KvGroups) -> dict[str, Any]:
    """Of groups of layers with room for so many tokens in full groups, beside what windows take at most."""
    blocks = groups.full * (kv_tokens // SPEC.block_size)
    blocks += groups.windowed * groups.window_blocks(SPEC.block_size, SPEC.max_num_batched_tokens)
    return {"kv_groups": groups, "kv_capacity_tokens": -(-blocks // groups.full) * SPEC.block_size}


@examples(40)
@given(ROWS, st.integers(100, 400), LENGTHS, st.integers(0, 1000), GROUPS, st.booleans())
def test_windows_and_interruptions_do_not_matter(
    rows: list[tuple[int, int, int]], kv_tokens: int, lengths: list[int], at: int, groups: KvGroups, looks: bool
) -> None:
    """Of simulated time, with attention windows too; nor does a router that looks at tokens, and cuts spans."""
    workload, more = load(rows), {"router": "least_tokens" if looks else "round_robin"}
    size = kv_size(kv_tokens, groups)
    whole = run(workload, 0, run_settings=size)
    for other in cut_and_continued(lambda how: run(workload, 0, how, size, **more), lengths, at):
        assert (digest(other), other.prefixes) == (digest(whole), whole.prefixes)


@pytest.mark.parametrize("control", [None, Windows([20 * FS_PER_MS])])
def test_a_replica_that_fails_when_all_is_over_loses_nothing(control: Windows | None) -> None:
    """The 12 full blocks of a prompt stay cached, wherever windows end."""
    faults = FaultSpec(events=(FaultEvent(at_s=1.0, replica=0, kind="fail", for_s=0.1),))
    served = run(load([(0, 0, 3)]), 400, Deployment(control=control), {"faults": faults})
    assert served.table["finish_ps"].tolist() == [30 * PS_PER_MS]
    assert served.prefixes is not None
    assert served.prefixes.cached_blocks == 12


def check_blocks(state: dict[str, Any], blocks: int, groups: KvGroups = NO_WINDOWS) -> None:
    """Each block is free or held, and held by whom it is said to be, in the state of a replica."""
    holders, free = dict(state["prefix_holders"]), dict(state["prefix_free"])
    held = Counter(block for _, of_request in state["prefix_held"] for block in of_request if block >= 0)
    assert held == holders
    assert not held.keys() & free.keys()
    assert all(count == groups.full if block >= 0 else count > 0 for block, count in free.items())
    assert sum(free.values()) == state["prefix_queued"]
    assert len(held) + sum(block >= 0 for block in free) == state["prefix_figures"]["cached_blocks"]
    # What requests grew by is taken from it later; that of a step that has yet to begin may have been taken before.
    grown = state["prefix_queued"] - (blocks - state["_used_blocks"])
    assert -len(state["running"]) * (groups.full + groups.windowed) <= grown <= state["_used_blocks"]
    loading = {request for _, request, _ in state["loading"]}
    here = {request for request, _ in state["running"]} | loading
    assert {request for request, _ in state["prefix_held"]} == here
    if groups.windowed:
        check_windows(state, groups, here)


def check_windows(state: dict[str, Any], groups: KvGroups, here: set[int]) -> None:
    """A block of windows is free or held by one request, and nobody has more than windows may need."""
    windows = {request: WindowBlocks(*window) for request, window in state["prefix_windows"]}
    assert windows.keys() == here
    held = [block for window in windows.values() for block in window.ids if block >= 0]
    keys, free = dict(state["prefix_window_keys"]), dict(state["prefix_free"])
    assert len(set(held)) == len(held)
    assert not keys.keys() & set(held)
    assert all(free[key] == groups.windowed and key < 0 for key in keys.values())
    assert len(set(keys.values())) == len(keys)
    most = groups.window_blocks(SPEC.block_size, SPEC.max_num_batched_tokens)
    assert all(len(window.ids) <= window.blocks <= most for window in windows.values())


@pytest.mark.medium
@examples(60)
@given(
    ROWS,
    st.integers(100, 400),
    LENGTHS,
    st.sampled_from(["prompt", "oracle"]),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 2)), max_size=3),
    GROUPS,
)
def test_blocks_are_conserved(
    rows: list[tuple[int, int, int]],
    kv_tokens: int,
    lengths: list[int],
    admission: str,
    replicas: int,
    failures: list[tuple[int, int]],
    groups: KvGroups,
) -> None:
    """While requests share blocks, are preempted, and lose what they had with their replica."""
    events = [FaultEvent(at_s=at / 1000, replica=one % replicas, kind="fail", for_s=0.05) for at, one in failures]
    size = kv_size(kv_tokens, groups)
    of_run: dict[str, Any] = {**size, "replicas": replicas, "faults": FaultSpec(events=tuple(events))}
    kept = Kept()
    deployment = Deployment(control=Windows(lengths), checkpoints=kept)
    run(load(rows), 0, deployment, of_run, kv_admission=admission)
    blocks = groups.pool_blocks(size["kv_capacity_tokens"], SPEC.block_size)
    for text, _ in kept.saved:
        for state in json.loads(text)["shards"][0]["engines"]:
            check_blocks(state, blocks, groups)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("control", [None, Windows([5 * FS_PER_MS])])
@pytest.mark.parametrize(("later_fs", "cached"), [(-1, 0), (0, 0), (1, 12)])
def test_a_failure_just_as_the_run_ends_is_part_of_it(
    outputs: int, control: Windows | None, later_fs: int, cached: int
) -> None:
    """Whether a prompt's step is the last one, or one that decodes, which another window would leave for the next."""
    end_fs = run(load([(0, 0, outputs)]), 400).end_fs
    failure = FaultEvent(at_s=(end_fs + later_fs) / FS_PER_S, replica=0, kind="fail")
    assert round(failure.at_s * FS_PER_S) == end_fs + later_fs
    faults = FaultSpec(events=(failure,))
    served = run(load([(0, 0, outputs)]), 400, Deployment(control=control), {"faults": faults})
    assert served.prefixes is not None
    assert (served.end_fs, served.prefixes.cached_blocks) == (end_fs, cached)


def test_a_replica_that_fails_loses_its_cache() -> None:
    rows = [(0, 0, 2), (1000, 0, 2), (3000, 0, 2), (4000, 0, 2)]
    failure = FaultEvent(at_s=2, replica=0, kind="fail", for_s=0.5)
    served = run(load(rows), 400, run_settings={"faults": FaultSpec(events=(failure,))})
    assert served.prefixes == PrefixFigures(queried_tokens=200, hit_tokens=80, evicted_blocks=0, cached_blocks=14)


@examples(50)
@given(ROWS, st.integers(100, 400), st.integers(301, 900))
def test_figures_of_a_replica_that_fails_are_those_until_then(
    rows: list[tuple[int, int, int]], kv_tokens: int, at_ms: int
) -> None:
    """Its cache is lost, unless the run is over before; just as it ends, the failure is part of it."""
    at_s = at_ms / 1000
    failure = FaultEvent(at_s=at_s, replica=0, kind="fail")
    failed = run(load(rows), kv_tokens, run_settings={"faults": FaultSpec(events=(failure,))})
    stopped = run(load(rows), kv_tokens, run_settings={"max_time_s": at_s})
    assert stopped.prefixes is not None
    over = (stopped.table["status"] == FINISHED).all() and stopped.logs[0].clock_fs < at_ms * FS_PER_MS
    assert failed.prefixes == (stopped.prefixes if over else replace(stopped.prefixes, cached_blocks=0))


def test_what_is_found_is_not_computed() -> None:
    rows = [(0, 0, 2), (1000, 0, 2), (2000, 1, 2)]
    found, without = run(load(rows), 400), run(load(rows), 400, enable_prefix_caching=False)
    assert found.prefixes == PrefixFigures(queried_tokens=150, hit_tokens=40, evicted_blocks=0, cached_blocks=26)
    assert without.prefixes is None
    computed = [sum(log.computed_tokens for log in served.logs) for served in (found, without)]
    assert computed[1] - computed[0] == 40
    section = summarize(found, Objectives(), Hardware(1)).document()["prefix_cache"]
    assert section == {
        "queried_tokens": 150,
        "hit_tokens": 40,
        "hit_ratio": pytest.approx(40 / 150),
        "evicted_blocks": 0,
        "cached_blocks": 26,
        "preempted_queried_tokens": 0,
        "preempted_hit_tokens": 0,
    }
    assert "prefix_cache" not in summarize(without, Objectives(), Hardware(1)).document()


def test_who_was_used_least_recently_goes_first() -> None:
    """Room for two prompts of 13 blocks, of which groups share 10: the third one takes that of the first."""
    again = run(load([(0, 0, 2), (1000, 1, 2), (2000, 0, 2), (3000, 2, 2), (4000, 0, 2), (5000, 1, 2)]), 26 * 4)
    assert again.prefixes is not None
    assert again.prefixes.hit_tokens == 40 + 40


def test_injected_requests_share_nothing_and_the_others_keep_their_prefixes() -> None:
    workload = load([(0, 0, 2), (1000, 0, 2), (2000, 0, 2)])
    control = Windows([500 * FS_PER_MS], {1: Inject((50, 50), (2, 2), delay_s=0.1)})
    served = run(workload, 400, Deployment(control=control))
    assert not control.refused
    assert len(served.table) == 5
    assert served.prefixes == PrefixFigures(queried_tokens=250, hit_tokens=80, evicted_blocks=0, cached_blocks=16)


def test_a_workload_that_says_nothing_finds_nothing() -> None:
    served = run(replace(load([(0, 0, 2), (1000, 0, 2)]), prefixes=None), 400)
    assert served.prefixes == PrefixFigures(queried_tokens=100, hit_tokens=0, evicted_blocks=0)
