"""Collectives between devices: hops, bytes and which links they take."""

from dataclasses import replace

import pytest

from pimserve.cluster.interconnect import Interconnect
from pimserve.device_models.kernels import CollectiveKernel, Collectives
from pimserve.device_models.operators import AllGather, AllReduce, AllToAll, Gemm, Parallelism
from pimserve.device_models.plan import FS_PER_S, LINK

LINKS = Interconnect(link_gb_per_s=400, link_latency_us=2, node_gb_per_s=50, node_latency_us=5, dispatch_us=15)


def time_s(split: Parallelism, operator: AllReduce | AllToAll, tokens: int) -> float:
    (term,) = LINKS.compile([operator], split)
    assert (term.category, term.unit, term.rows) == ("communication", LINK, "tokens")
    return term.time_fs(tokens) / FS_PER_S


@pytest.mark.parametrize("group", [2, 4, 8])
def test_ring_all_reduce_inside_a_node(group: int) -> None:
    split = Parallelism(nodes=1, devices_per_node=8, tensor=group)
    # Twice p - 1 hops, each of a p-th of the data.
    hops = 2 * (group - 1)
    for tokens in (1, 4096):
        expected = 64 * hops * (2e-6 + 8192 * tokens / group / 400e9)
        assert time_s(split, AllReduce(64, 8192, group), tokens) == pytest.approx(expected, rel=1e-6)


def test_all_reduce_across_nodes_takes_the_slower_links() -> None:
    split = Parallelism(nodes=2, devices_per_node=4, tensor=8)
    expected = 64 * 14 * (5e-6 + 8192 * 100 / 8 / 50e9)
    assert time_s(split, AllReduce(64, 8192, 8), 100) == pytest.approx(expected, rel=1e-6)
    inside = time_s(split, AllReduce(64, 8192, 4), 100)
    assert inside == pytest.approx(64 * 6 * (2e-6 + 8192 * 100 / 4 / 400e9), rel=1e-6)


def test_a_slow_link_inside_the_node_holds_up_all_of_the_ring() -> None:
    slow = Interconnect(link_gb_per_s=10, link_latency_us=9, node_gb_per_s=50, node_latency_us=5, dispatch_us=15)
    (term,) = slow.compile([AllReduce(1, 8000, 8)], Parallelism(nodes=2, devices_per_node=4, tensor=8))
    assert term.time_fs(100) / FS_PER_S == pytest.approx(14 * (9e-6 + 100 * 1000 / 10e9), rel=1e-6)


def test_dispatch_and_combine() -> None:
    one = Parallelism(nodes=1, devices_per_node=4, tensor=1)
    assert time_s(one, AllToAll(64, 6144, 8192), 50) == pytest.approx(64 * (2e-6 + 6144 * 50 / 400e9), rel=1e-6)
    two = Parallelism(nodes=2, devices_per_node=4, tensor=4)
    assert time_s(two, AllToAll(64, 6144, 8192), 50) == pytest.approx(64 * (15e-6 + 6144 * 50 / 50e9), rel=1e-6)


def test_a_step_without_tokens_sends_nothing_and_other_operators_are_left_alone() -> None:
    split = Parallelism(nodes=1, devices_per_node=4, tensor=4)
    gemm = Gemm("g", "fc", 1, 8, 8, 2.0, "fp16")
    (term,) = LINKS.compile([gemm, AllReduce(64, 8192, 4), gemm], split)
    assert term.time_fs(0) == 0
    assert LINKS.compile([gemm], split) == ()


def algorithm(latency_us: float, bus_gb_per_s: float) -> CollectiveKernel:
    return CollectiveKernel(name="x", latency_us=latency_us, bus_gb_per_s=bus_gb_per_s)


MEASURED = Collectives(
    all_reduce={2: (algorithm(3, 200),), 8: (algorithm(5, 70), algorithm(10, 350))},
    all_gather={8: (algorithm(13, 300),)},
    reduce_scatter={8: (algorithm(11, 310),)},
    all_to_all={8: (algorithm(12, 280),)},
)


def test_a_measured_all_reduce_takes_the_faster_algorithm() -> None:
    split = Parallelism(nodes=1, devices_per_node=8, tensor=8)
    (term,) = LINKS.compile([AllReduce(64, 8192, 8)], split, MEASURED)
    for tokens, latency, rate in ((1, 5e-6, 70e9), (4096, 10e-6, 350e9)):
        expected = 64 * (latency + tokens * 8192 * 2 * 7 / 8 / rate)
        assert term.time_fs(tokens) / FS_PER_S == pytest.approx(expected, rel=1e-6)


def test_a_group_that_was_not_measured_takes_the_next_larger_or_the_largest() -> None:
    for group, latency_us in ((4, 5), (8, 5), (2, 3), (16, 5)):
        split = Parallelism(nodes=1, devices_per_node=group, tensor=group)
        (term,) = LINKS.compile([AllReduce(1, 16, group)], split, MEASURED)
        assert term.time_fs(1) / 1e9 == pytest.approx(latency_us, rel=1e-3)


def test_between_nodes_links_stay_ideal() -> None:
    split = Parallelism(nodes=2, devices_per_node=4, tensor=8)
    both = [AllReduce(64, 8192, 8), AllToAll(64, 6144, 8192)]
    assert LINKS.compile(both, split, MEASURED) == LINKS.compile(both, split)


def test_routed_copies_or_all_vectors_whatever_is_faster() -> None:
    split = Parallelism(nodes=1, devices_per_node=8, tensor=1)
    few, many = AllToAll(2, 1000, 8192), AllToAll(2, 100_000, 8192)
    (routed,), (gathered,) = (LINKS.compile([op], split, MEASURED) for op in (few, many))
    tokens = 10_000
    assert routed.time_fs(tokens) / FS_PER_S == pytest.approx(2 * (12e-6 + tokens * 1000 / 280e9), rel=1e-6)
    expected = 13e-6 + 11e-6 + tokens * 8192 * 7 * (1 / 300e9 + 1 / 310e9)
    assert gathered.time_fs(tokens) / FS_PER_S == pytest.approx(expected, rel=1e-6)


def test_logits_are_gathered_in_measured_runs_only() -> None:
    split = Parallelism(nodes=1, devices_per_node=8, tensor=8)
    op = AllGather(128_000 * 2, 8)
    assert LINKS.compile([op], split) == ()
    (term,) = LINKS.compile([op], split, MEASURED)
    assert term.rows == "outputs"
    assert term.time_fs(64) / FS_PER_S == pytest.approx(13e-6 + 64 * 256_000 * 7 / 8 / 300e9, rel=1e-6)


def test_bytes_of_a_ring_are_what_its_time_is_of() -> None:
    split = Parallelism(nodes=1, devices_per_node=8, tensor=4)
    sums = AllReduce(64, 8192, 4)
    (traffic,) = LINKS.traffic([sums], split)
    # 6 hops of a quarter of the vector, from each of 4 devices.
    assert (traffic.operator, traffic.rows, traffic.bytes_per_row) == ("all-reduce", "tokens", 64 * 8192 / 4 * 6 * 4)
    fast = replace(LINKS, link_latency_us=0)
    (term,) = fast.compile([sums], split)
    assert term.time_fs(1000) / FS_PER_S == pytest.approx(traffic.bytes_per_row * 1000 / 4 / 400e9, rel=1e-6)


def test_bytes_of_dispatch_and_combine_are_of_all_devices_of_a_group() -> None:
    split = Parallelism(nodes=2, devices_per_node=4, tensor=4)
    (traffic,) = LINKS.traffic([AllToAll(64, 6144, 8192)], split)
    assert (traffic.operator, traffic.rows, traffic.bytes_per_row) == ("dispatch and combine", "tokens", 64 * 6144 * 4)


def test_bytes_are_those_of_the_collectives_that_take_time() -> None:
    split = Parallelism(nodes=1, devices_per_node=4, tensor=4)
    operators = [AllReduce(64, 8192, 4), AllGather(256_000, 4), Gemm("g", "fc", 1, 8, 8, 2.0, "fp16")]
    for measured in (None, MEASURED):
        terms = [(term.name, term.rows) for term in LINKS.compile(operators, split, measured)]
        assert [(each.operator, each.rows) for each in LINKS.traffic(operators, split, measured)] == terms
    # Everybody gets the three parts of the others.
    assert LINKS.traffic(operators, split, MEASURED)[1].bytes_per_row == 3 * 256_000
