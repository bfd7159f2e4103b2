"""Links between pools against naive models, whole caches and layer by layer."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pimserve.device_models.plan import FS_PER_S
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.handover import Lines, Link
from pimserve.scheduler.summary import summarize
from pimserve.scheduler.usage import Hardware

from .pool_runs import LINK, hand_over
from .pools import Decode
from .test_simulation import PLAN, seconds


def naive_arrivals(link: Link, caches: Sequence[tuple[int, int, int, int]]) -> list[int]:
    """When caches (size, source, target, ready) are there, each byte of them followed on its way.

    Links carry a byte in a whole number of fs here; a byte goes when the link has carried all that came before it.
    """
    per_byte = FS_PER_S // link.bytes_per_s
    free: dict[tuple[str, int], int] = {}
    found = []
    for size, source, target, ready in caches:
        start, there = max(ready, free.get(("out", source), 0)), 0
        entered = None
        for byte in range(size):
            left = start + byte * per_byte  # its first bit leaves
            seen = left + link.latency_fs  # and is at the other side
            at = max(seen, free.get(("in", target), 0)) if entered is None else max(seen, there)
            entered, there = at, at + per_byte
        free["out", source] = start + size * per_byte
        free["in", target] = there
        found.append(there)
    return found


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2), st.integers(3, 4), st.integers(0, 500)), max_size=20),
    st.integers(0, 40),
    st.integers(1, 20),
)
def test_links_carry_one_cache_after_the_other(
    caches: list[tuple[int, int, int, int]], latency: int, per_byte: int
) -> None:
    link = Link(bytes_per_s=FS_PER_S // per_byte, latency_fs=latency, bytes_per_token=1)
    per_byte = FS_PER_S // link.bytes_per_s
    exact = dataclasses.replace(link, bytes_per_s=FS_PER_S // per_byte)
    if FS_PER_S % per_byte:
        return
    caches.sort(key=lambda cache: cache[3])
    lines = Lines(exact)
    done = [lines.send(*cache)[2] for cache in caches]
    assert done == naive_arrivals(exact, caches)


def naive_layers(link: Link, steps: Sequence[tuple[int, int, Sequence[int]]]) -> list[int]:
    """When caches have left one replica, layer by layer: of steps (begin, end, bytes of each cache), the first first.

    At each time the link carries a layer that is computed, of the earliest step and cache; times divide evenly.
    """
    layers, free, found = link.layers, 0, []
    for begin, end, sizes in steps:
        for layer in range(layers):
            free = max(free, begin + (end - begin) * (layer + 1) // layers)
            last = []
            for size in sizes:
                free += link.lasts_fs(size) // layers
                last.append(free)
        found.append(last[-1])
    return found


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(1, 60), st.lists(st.integers(1, 12), min_size=1, max_size=3)),
        max_size=8,
    ),
    st.integers(1, 6),
    st.integers(1, 15),
)
def test_layers_leave_while_the_next_ones_are_computed(
    steps: list[tuple[int, int, list[int]]], layers: int, per_byte: int
) -> None:
    assume(not FS_PER_S % per_byte)
    link = Link(bytes_per_s=FS_PER_S // per_byte, latency_fs=3, bytes_per_token=1, layers=layers)
    clock, timed = 0, []
    for idle, length, sizes in steps:
        begin = clock + idle
        clock = begin + layers * length
        timed.append((begin, clock, [layers * size for size in sizes]))
    lines, left, done = Lines(link), [], []
    for begin, end, sizes in timed:
        for size in sizes:
            begins, gone, there = lines.send(size, 0, 1, end, begin)
            assert begin + (end - begin) // layers <= begins <= gone - link.lasts_fs(size)
            assert gone >= end + link.lasts_fs(size) // layers  # its last layer is computed last
            assert there >= gone + link.latency_fs
            done.append(there)
        left.append(gone)
    assert left == naive_layers(link, timed)
    assert done == sorted(done)


def test_of_a_cache_whose_layers_leave_early_the_last_one_is_left() -> None:
    # A step of 10 ms, of 10 layers; 10 tokens take 10 ms, a layer of them one: there at 10 + 5 + 1 ms, not at 25.
    link = replace(LINK, layers=10)
    served = hand_over([(0.0, 10, 2)], decode=Decode(PLAN, 1600, 1, link))
    assert seconds(served, "finish_ps") == [0.026]
    handover = summarize(served, Objectives(SloSpec()), Hardware(2)).document()["pools"]["handover"]
    assert handover["waiting_s"]["mean"] == 0
    assert handover["transfer_s"]["mean"] == pytest.approx(0.006)
    assert handover["overlapped_s"]["mean"] == pytest.approx(0.009)
    assert handover["link_busy_share"]["prefill"] == pytest.approx(0.01 / 0.026)
    # 20 tokens take 20 ms: the link is behind, and has had 9 ms of them when the step ends.
    slow = hand_over([(0.0, 20, 2)], decode=Decode(PLAN, 1600, 1, link))
    assert seconds(slow, "finish_ps") == [0.036]  # 1 + 20 + 5 + 10 ms


def test_who_waits_for_room_sends_its_cache_whole() -> None:
    link = replace(LINK, layers=10)
    times = [
        hand_over([(0.0, 20, 20), (0.0, 20, 3)], decode=Decode(PLAN, 48, 1, way), kv_capacity_tokens=48)
        for way in (LINK, link)
    ]
    # The second one goes at 300 ms in both; the first one has nothing to wait for.
    assert [served.table["finish_ps"][1] for served in times] == [345 * 10**9] * 2
    assert times[1].table["finish_ps"][0] < times[0].table["finish_ps"][0]


def test_a_cache_has_all_of_its_bytes_of_the_full_layers_and_a_window_of_the_others() -> None:
    link = Link(1, 0, bytes_per_token=100, window_bytes_per_token=10, window_tokens=8)
    assert [link.size(tokens) for tokens in (1, 8, 9)] == [110, 880, 980]
    assert Link(3, 0, 1).lasts_fs(2) == 666_666_666_666_667
