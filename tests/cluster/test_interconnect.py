"""Collectives between devices: hops, bytes and which links they take."""

import pytest

from pimserve.cluster.interconnect import Interconnect
from pimserve.device_models.operators import AllReduce, AllToAll, Gemm, Parallelism
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
