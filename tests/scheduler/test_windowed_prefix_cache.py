"""A prefix cache with attention windows: what is found, what falls out of windows, and what becomes of it."""

from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.kv_groups import KvGroups
from pimserve.loadgen.traces.ragged import Ragged
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.retaining_prefix_cache import prefix_cache_of
from tests.cluster.documents import serve as document_of
from tests.examples import examples

from .prefix_strategies import prefix_cases, retentions
from .reference_blocks import ReferenceBlocks
from .reference_prefix import PhysicalBlocks
from .strategies import Case, windows
from .test_prefix_blocks_in_pools import PATHS, ids_of
from .test_reference_engine import serve

CHUNK = 5  # tokens of a prompt in a step


class Steps:
    """The cache and the reference through steps, in each of which somebody is admitted, or goes on, or leaves."""

    def __init__(
        self,
        paths: Sequence[tuple[int, int, int]],
        size: int,
        groups: KvGroups,
        spare: int,
        retention: int | None = None,
    ) -> None:
        self.prompts = [tokens for *_, tokens in paths]
        ids = ids_of(paths, size)
        nothing = np.zeros(len(ids), np.int64)
        table = RequestTable(nothing, np.array(self.prompts), nothing, 1)
        table.prefixes = Ragged.of(ids)
        blocks = groups.blocks(46, size, CHUNK) + spare
        make = prefix_cache_of(groups, retention)
        self.ours: Any = make(blocks, size, groups, CHUNK)
        self.ours.bind(table)
        counts = ReferenceBlocks(size, groups.full, groups.windowed, groups.window_tokens, CHUNK, 0, declared=False)
        of_windows = {"counts": counts, "retention": retention, "prompts": self.prompts}
        self.reference = PhysicalBlocks(blocks, size, ids, **of_windows)
        self.computing: dict[int, int] = {}  # tokens of prompts
        self.decoding: dict[int, int] = {}  # tokens of those that decode, before the step
        self.sending: list[int] = []
        self.preempted: set[int] = set()  # those that have not left since

    def step(self, request: int, what: str) -> None:
        self.leave(request, what)
        self.grow()
        ours, reference, prompt, now = self.ours, self.reference, self.prompts[request], self.ours.falls.now
        brings = what == "bring"
        if request not in self.computing and request not in self.decoding:
            tokens = prompt + brings
            there = ours.admit(request, tokens, prompt=not brings)
            assert (there >= 0) == reference.fits(request, tokens, prompt=not brings)
            if there >= 0 and brings:
                ours.cache(request, prompt)
                ours.falls.join(request, ours.windows[request], prompt, now)
                reference.bring(request, tokens)
                self.decoding[request] = prompt
            elif there >= 0:
                assert reference.admit(request, prompt, again=request in self.preempted) == (there, 0)
                self.computing[request] = there
        elif request in self.computing:
            before = self.computing[request]
            self.computing[request] = after = min(prompt, before + CHUNK)
            ours.cache(request, after)
            reference.computed(request, before, after)
        self.end(sends=what == "send")

    def leave(self, request: int, what: str) -> None:
        """Before a step."""
        if what == "send" and request in self.sending:
            self.sending.remove(request)
            self.ours.sent(request)
            self.reference.sent(request)
        elif what == "leave" and request in self.decoding:
            self.ours.falls.leave(request, self.ours.falls.now)
            tokens = self.decoding.pop(request)
            self.ours.release(request, tokens)
            self.preempted.discard(request)
            self.reference.leave(request, self.prompts[request], tokens)
        elif what == "leave" and request in self.computing:
            tokens = self.computing.pop(request)
            self.ours.preempt(request, self.prompts[request], prompt=True)
            self.preempted.add(request)
            self.reference.leave(request, self.prompts[request], tokens)

    def grow(self) -> None:
        """The step begins: those that decode take a token more, and the last ones go while there is no room."""
        ours, decoding = self.ours, self.decoding
        while True:
            grown = sum(ours.blocks_of(tokens + 1) - ours.blocks_of(tokens) for tokens in decoding.values())
            if grown <= ours.blocks - ours.used:
                break
            request, tokens = decoding.popitem()
            ours.falls.leave(request, ours.falls.now)
            ours.preempt(request, tokens, prompt=False)
            self.preempted.add(request)
            self.reference.leave(request, self.prompts[request], tokens)
        ours.used += grown
        self.reference.grow({request: tokens + 1 for request, tokens in decoding.items()})

    def end(self, *, sends: bool) -> None:
        """The step ends: prompts that are computed are sent on, or decode."""
        ours, reference = self.ours, self.reference
        ours.falls.now += 1
        for request in self.decoding:
            self.decoding[request] += 1
        for request in [one for one, tokens in self.computing.items() if tokens == self.prompts[one]]:
            tokens = self.computing.pop(request)
            ours.computed(request, tokens)
            reference.shrink(request, tokens)
            if sends:
                self.sending.append(request)
                ours.send(request, tokens)
                self.preempted.discard(request)
                reference.send(request)
            else:
                self.decoding[request] = tokens
                ours.falls.join(request, ours.windows[request], tokens, ours.falls.now)

    def check(self) -> None:
        reference, figures = self.reference, self.ours.prefix_figures()
        reference.check()
        assert self.ours.used == len(reference.held)
        assert astuple(figures) == reference.figures
        assert sum(count for _, count in self.ours.state()["prefix_free"]) == self.ours.blocks - self.ours.used

    def interrupt(self) -> None:
        state = self.ours.state()
        self.ours.restore(state)
        self.ours.falls.restore(self.ours.windows, self.decoding, self.ours.falls.now)
        assert self.ours.state() == state


SIZES = st.integers(1, 4).flatmap(lambda size: st.tuples(st.just(size), retentions(size)))
SPARE = st.integers(0, 60)
OPS = st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["go on", "go on", "bring", "send", "leave"])), max_size=80)


@examples(300)
@given(PATHS, SIZES, windows(30), SPARE, OPS)
def test_blocks_are_those_of_the_reference(
    paths: list[tuple[int, int, int]],
    sizes: tuple[int, int | None],
    groups: KvGroups,
    spare: int,
    ops: list[tuple[int, str]],
) -> None:
    """While requests are computed in chunks, decode, are preempted, sent on, received and interrupted."""
    size, retention = sizes
    steps = Steps(paths, size, groups, spare, retention)
    for place, (request, what) in enumerate(ops):
        steps.step(request % len(paths), what)
        if place % 3 == 0:
            steps.check()
            steps.interrupt()
    steps.check()


WINDOWED = {"full_groups": 1, "windowed_groups": 1, "window_tokens": 3}  # of blocks of 2: the last one before a block


def test_what_is_found_needs_the_blocks_of_the_window_before_its_end() -> None:
    """Prompts of 8 tokens, computed at once: 3 of 4 blocks can be found, with the window's block before them."""
    twice = serve((0, 8, 1), (1000, 8, 1), (2000, 5, 1), prefixes=[[1, 2, 3, 4]] * 3, **WINDOWED)
    assert twice.hit_tokens == [0, 6, 4]


def test_blocks_that_fell_out_of_windows_are_forgotten_first() -> None:
    """Of 7 + 7 blocks of the first prompt, 5 of the window come free first, the last of them first; there are 2 others.

    The second takes 4. So a prompt that shares 5 blocks finds 3, and one that shares all finds all but its last one.
    """
    cache = {**WINDOWED, "kv_capacity_blocks": 16, "max_model_len": 16, "max_num_batched_tokens": 16}
    long = list(range(1, 8))
    part = serve(*((0, 14, 1), (10_000, 4, 1), (20_000, 11, 1)), prefixes=[long, [21, 22], [*long[:5], 31]], **cache)
    assert part.hit_tokens == [0, 0, 3 * 2]
    whole = serve(*((0, 14, 1), (10_000, 4, 1), (20_000, 14, 1)), prefixes=[long, [21, 22], long], **cache)
    assert whole.hit_tokens == [0, 0, 6 * 2]


@pytest.mark.medium
@examples(30)
@given(prefix_cases())
def test_windows_that_nothing_leaves_find_what_is_found_without(case: Case) -> None:
    """One request after the other, and room for all."""
    room = sum(request.input_tokens + request.output_tokens for request in case.requests) + case.max_model_len
    plan = replace(case.plan, data_parallel=1)
    case = replace(case, plan=plan, max_num_seqs=1, kv_capacity_blocks=room)
    wide = replace(case, windowed_groups=1, window_tokens=2 * case.max_model_len, kv_capacity_blocks=3 * room)
    assert case.run().hit_tokens == wide.run().hit_tokens


def test_gpt_oss_finds_what_its_prompts_share() -> None:
    scenario = load_scenario(
        None,
        [
            "model=gpt-oss-120b",
            "cluster={device: h200, tensor_parallel: 1, devices_per_node: 1}",
            "workload.num_requests=40",
            "workload.prefix={groups: 4, prompts_per_group: 10, shared_tokens: 1600, own_tokens: 100, order: shuffled}",
            "workload.lengths={output: {kind: fixed, tokens: 200}}",
            "scheduler={enable_prefix_caching: true, block_size: 16}",
        ],
    )
    found = document_of(prepare(scenario))[0]["prefix_cache"]
    assert found["queried_tokens"] == 40 * 1700
    assert found["hit_tokens"] == 36 * 1600
    assert found["evicted_blocks"] == 0
