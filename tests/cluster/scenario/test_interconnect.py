"""Collectives between devices: hops, bytes and which links they take."""

from dataclasses import replace

import pytest

from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.interconnect import ALL_REDUCE, RING, Interconnect
from pimserve.device_models.kernels import CollectiveKernel, Collectives
from pimserve.device_models.operators import AllGather, AllReduce, AllToAll, Gemm, Parallelism
from pimserve.device_models.plan import FS_PER_S
from pimserve.device_models.registry import load_device
from pimserve.device_models.step import LINK

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


@pytest.mark.parametrize("group", [2, 4, 8])
def test_an_all_reduce_takes_the_fastest_of_ring_one_shot_and_two_shots(group: int) -> None:
    split = Parallelism(nodes=1, devices_per_node=8, tensor=group)
    links = replace(LINKS, one_shot_latency_us=5)
    (term,) = links.compile([AllReduce(64, 8192, group)], split)
    for tokens in (1, 16, 64, 256, 4096):
        size = 8192 * tokens
        ring = 2 * (group - 1) * (2e-6 + size / group / 400e9)
        one_shot = 5e-6 + (group - 1) * size / 400e9
        two_shots = 2 * (5e-6 + (group - 1) * size / group / 400e9)
        expected = 64 * min(ring, one_shot, two_shots)
        assert term.time_fs(tokens) / FS_PER_S == pytest.approx(expected, rel=1e-6)


def test_eight_h100_reduce_a_decode_step_in_about_five_microseconds() -> None:
    """Measured, vLLM's kernels in a CUDA graph over 8 H100: 16 KB 5.3 us, 128 KB 7.9, 1 MB 15, 2 MB 19, 8 MB 51."""
    device = load_device("h100")
    scenario = Scenario.model_validate({"cluster": {"device": "h100", "devices_per_node": 8}})
    papers = Scenario.model_validate({"cluster": {"device": "h100"}, "costs": {"collectives": "ring"}})
    split = Parallelism(nodes=1, devices_per_node=8, tensor=8)

    def time_us(links: Interconnect, size: int) -> float:
        (term,) = links.compile([AllReduce(1, size, 8)], split)
        return term.time_fs(1) / 1e9

    for size, measured_us in ((2**14, 5.3), (2**17, 7.9), (2**20, 15), (2**21, 19), (2**23, 51)):
        best, ring = (time_us(each.interconnect(device), size) for each in (scenario, papers))
        assert best == pytest.approx(measured_us, rel=0.2)
        assert ring == pytest.approx(14 * (3 + size / 8 / 450e3), rel=1e-6)
        assert best < ring
    assert 5 < time_us(scenario.interconnect(device), 8 * 8192) < 7  # Mixtral, 8 requests


def test_one_shot_stays_inside_the_node() -> None:
    split = Parallelism(nodes=2, devices_per_node=4, tensor=8)
    links = replace(LINKS, one_shot_latency_us=1e-3)
    assert links.compile([AllReduce(64, 8192, 8)], split) == LINKS.compile([AllReduce(64, 8192, 8)], split)


def test_dispatch_and_combine_inside_a_node() -> None:
    one = Parallelism(nodes=1, devices_per_node=4, tensor=1)
    op = AllToAll(64, 8192, experts=8, top_k=2)  # 2 experts on each device: 3 others, hit with 1 - 15 / 28 each
    size = 8192 * 50 * 3 * 13 / 28
    assert time_s(one, op, 50) == pytest.approx(64 * (2e-6 + size / 400e9), rel=1e-6)
    picks = 8192 * 50 * 2 * 3 / 4
    (term,) = replace(LINKS, dispatch="per_pick").compile([op], one)
    assert term.time_fs(50) / FS_PER_S == pytest.approx(64 * (2e-6 + picks / 400e9), rel=1e-6)


def test_dispatch_and_combine_take_the_slower_of_both_links() -> None:
    split = Parallelism(nodes=2, devices_per_node=4, tensor=1)
    op = AllToAll(64, 8192, experts=8, top_k=2)  # one expert a device: a quarter of all tokens hits it
    between, inside = 11 / 14, 3 / 4 + 3 / 4  # 1 - 3 / 14; own node, and passed on in the other one
    for link, slower in ((400, between / 50e9), (10, inside / 10e9)):
        (term,) = replace(LINKS, link_gb_per_s=link).compile([op], split)
        assert term.time_fs(50) / FS_PER_S == pytest.approx(64 * (15e-6 + 8192 * 50 * slower), rel=1e-6)


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
    both = [AllReduce(64, 8192, 8), AllToAll(64, 8192, 8, 2)]
    assert LINKS.compile(both, split, MEASURED) == LINKS.compile(both, split)


def test_routed_copies_or_all_vectors_whatever_is_faster() -> None:
    split = Parallelism(nodes=1, devices_per_node=8, tensor=1)
    few, many = AllToAll(2, 8192, 64, 2), AllToAll(2, 8192, 64, 32)
    (routed,), (gathered,) = (LINKS.compile([op], split, MEASURED) for op in (few, many))
    tokens = 10_000
    picks = tokens * 8192 * 2 * 7 / 8
    assert routed.time_fs(tokens) / FS_PER_S == pytest.approx(2 * (12e-6 + picks / 280e9), rel=1e-6)
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
    assert (traffic.operator, traffic.rows, traffic.bytes_per_row) == (
        "all-reduce, as a ring",
        "tokens",
        64 * 8192 / 4 * 6 * 4,
    )
    fast = replace(LINKS, link_latency_us=0)
    (term,) = fast.compile([sums], split)
    assert term.time_fs(1000) / FS_PER_S == pytest.approx(traffic.bytes_per_row * 1000 / 4 / 400e9, rel=1e-6)


def test_a_ring_over_nodes_passes_once_from_each_to_the_next() -> None:
    split = Parallelism(nodes=4, devices_per_node=4, tensor=8)
    inside, between = LINKS.traffic([AllReduce(64, 8192, 8)], split)
    ring = 64 * 8192 * 2 * 7
    assert (inside.link, inside.bytes_per_row) == ("intra_node", ring * 6 / 8)
    assert (between.link, between.bytes_per_row) == ("inter_node", ring * 2 / 8)


def test_bytes_of_dispatch_and_combine_are_told_apart_by_link() -> None:
    split = Parallelism(nodes=2, devices_per_node=4, tensor=4)
    op = AllToAll(64, 8192, experts=8, top_k=2)
    inside, between = LINKS.traffic([op], split)
    assert (inside.operator, inside.link) == (between.operator, "intra_node") == ("dispatch and combine", "intra_node")
    assert between.link == "inter_node"
    assert between.bytes_per_row == pytest.approx(64 * 8192 * 11 / 14)
    assert inside.bytes_per_row == pytest.approx(64 * 8192 * 3 / 4)  # only in the other node; the own one has vectors
    (between,) = replace(LINKS, dispatch="per_pick").traffic([op], split)
    assert between.bytes_per_row == pytest.approx(64 * 8192 * 2 / 2)


def test_bytes_are_those_of_the_collectives_that_take_time() -> None:
    split = Parallelism(nodes=1, devices_per_node=4, tensor=4)
    operators = [AllReduce(64, 8192, 4), AllGather(256_000, 4), Gemm("g", "fc", 1, 8, 8, 2.0, "fp16")]
    for measured in (None, MEASURED):
        terms = [(term.name.replace(ALL_REDUCE, RING), term.rows) for term in LINKS.compile(operators, split, measured)]
        assert [(each.operator, each.rows) for each in LINKS.traffic(operators, split, measured)] == terms
    # Everybody gets the three parts of the others.
    assert LINKS.traffic(operators, split, MEASURED)[1].bytes_per_row == 3 * 256_000
