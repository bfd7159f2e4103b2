"""Copies of routed tokens' vectors, inside nodes and between them, against counts of tokens sent one by one."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.distributed.devices.compile import compile_pool
from pimserve.cluster.distributed.devices.flows import COMBINE, DISPATCH
from pimserve.cluster.scenario.dispatch import Transport, copies, hit_probability, routes
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.pools import place_pool, routing_of
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.operators import AllToAll, Parallelism, Traffic
from pimserve.errors import InputError

WAYS: tuple[Transport, ...] = ("forward", "direct", "per_pick")
Sent = Counter[tuple[int, int]]


def send(
    turns: tuple[int, int], sender: int, picks: tuple[int, ...], split: Parallelism, experts: int, way: Transport
) -> Sent:
    """What the devices send each other for one token whose turn it is on `sender`, by the rules in words.

    `turns`: which of a group's members on one node sends inside it, and which slice takes a pick, in rotation.
    """
    per_node = split.devices_per_node
    slices = split.devices // split.expert_groups(experts)
    groups = [pick * split.expert_groups(experts) // experts for pick in picks]
    holders = [range(number * slices, (number + 1) * slices) for number in groups]
    group = {sender // split.tensor * split.tensor + rank for rank in range(split.tensor)}
    if way == "per_pick":
        needed = [devices[turns[1] % slices] for devices in holders]  # one slice takes the pick, each in its turn
    else:
        needed = sorted({device for devices in holders for device in devices})
    sent: Sent = Counter()
    arrived: set[int] = set()
    for device in needed:
        if device in group:
            continue
        node = device // per_node
        near = sorted(member for member in group if member // per_node == node)
        if near:
            sent[near[turns[0] % len(near)], device] += 1
        elif way == "forward":
            via = node * per_node + sender % per_node
            if node not in arrived:
                arrived.add(node)
                sent[sender, via] += 1
            if device != via:
                sent[via, device] += 1
        else:
            sent[sender, device] += 1
    return sent


def all_tokens(split: Parallelism, experts: int, top_k: int, way: Transport) -> tuple[Sent, int]:
    """One token for every set of experts, on every device, for every turn of members and slices; and how many."""
    slices = split.devices // split.expert_groups(experts)
    turns = list(product(range(int(np.lcm.reduce(range(1, split.tensor + 1)))), range(slices)))
    sent: Sent = Counter()
    count = 0
    for sender in range(split.devices):
        for picks in combinations(range(experts), top_k):
            for turn in turns:
                sent += send(turn, sender, picks, split, experts, way)
                count += 1
    return sent, count


# Nodes, devices per node, tensor parallelism, experts, experts per token: whole and sliced experts; groups smaller than
# a node, as large, larger, and across the border of two; slices across it.
LAYOUTS = [
    (1, 4, 1, "ep", 8, 2),
    (1, 4, 2, "tp", 4, 2),
    (2, 4, 1, "ep", 8, 3),
    (2, 4, 2, "ep", 8, 2),
    (2, 4, 4, "ep", 8, 2),
    (2, 4, 4, "tp", 4, 2),
    (3, 2, 1, "tp", 6, 2),
    (4, 2, 4, "ep", 8, 2),
    (2, 3, 2, "ep", 6, 2),
    (4, 3, 4, "ep", 6, 2),
    (2, 4, 2, "ep", 4, 2),
    (3, 4, 2, "ep", 4, 2),
    (2, 4, 1, "ep", 8, 8),
    (2, 4, 1, "ep", 8, 1),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_expected_copies_are_those_of_all_tokens_counted_one_by_one(layout, way):
    nodes, per_node, tensor, kind, experts, top_k = layout
    split = Parallelism(nodes, per_node, tensor, kind)
    op = AllToAll(2, 8192, experts, top_k)
    sent, tokens = all_tokens(split, experts, top_k, way)
    expected = routes(op, split, way)
    assert set(sent) == {pair for pair, number in expected.items() if number > 1e-12}
    assert {pair: number / tokens for pair, number in sent.items()} == pytest.approx(
        {pair: expected[pair] for pair in sent}
    )
    found = copies(op, split, way)
    for near, busiest, every in (
        (True, found.intra_node, found.intra_node_per_token),
        (False, found.inter_node, found.inter_node_per_token),
    ):
        by_sender: Counter[int] = Counter()
        for (sender, receiver), number in sent.items():
            if (sender // per_node == receiver // per_node) == near:
                by_sender[sender] += number
        assert every == pytest.approx(sum(by_sender.values()) / tokens)
        assert busiest == pytest.approx(max(by_sender.values(), default=0) / tokens * split.data)


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 8),
    st.sampled_from(["ep", "tp"]),
    st.sampled_from([4, 6, 8, 24, 64]),
    st.integers(1, 4),
    st.sampled_from(WAYS),
)
def test_copies_are_sums_of_the_routes_and_never_more_than_needed(nodes, per_node, tensor, kind, experts, top_k, way):
    try:
        split = Parallelism(nodes, per_node, tensor, kind)
        split.expert_groups(experts)
    except InputError:
        return
    op = AllToAll(2, 8192, experts, top_k)
    found, pairs = copies(op, split, way), routes(op, split, way)
    inside = sum(number for (a, b), number in pairs.items() if a // per_node == b // per_node)
    between = sum(pairs.values()) - inside
    assert found.intra_node_per_token == pytest.approx(inside)
    assert found.inter_node_per_token == pytest.approx(between, abs=1e-9)
    assert found.inter_node_per_token <= copies(op, split, "direct").inter_node_per_token + 1e-9 or way == "per_pick"
    if way == "forward":  # a node is reached once at most
        assert found.inter_node_per_token <= nodes - 1 + 1e-9


def test_hits_are_hypergeometric():
    assert hit_probability(8, 2, 0) == 0
    assert hit_probability(8, 2, 8) == 1
    for held in range(9):
        picks = list(combinations(range(8), 3))
        assert hit_probability(8, 3, held) == pytest.approx(sum(min(each) < held for each in picks) / comb(8, 3))


def traffic(**cluster: object) -> list[Traffic]:
    """What DeepSeek-V3 (256 experts, 8 of them per token, 58 MoE layers of 7,168) sends to dispatch and combine."""
    scenario = Scenario.model_validate(
        {"model": "deepseek-v3", "cluster": {"device": "h200", "nodes": 2, "devices_per_node": 8, **cluster}}
    )
    model = scenario.load_model()
    placed = place_pool(scenario, "", model, routing_of(scenario, model))
    return [each for each in placed.replica.traffic if each.operator == "dispatch and combine"]


def test_the_device_actors_send_what_the_links_cost():
    """Device by device and link by link, over two nodes, for experts whole and sliced."""
    for kind, tensor in (("ep", 1), ("ep", 4), ("tp", 8), ("tp", 2)):
        cluster = {"device": "h200", "nodes": 2, "devices_per_node": 8, "tensor_parallel": tensor, "experts": kind}
        pool = compile_pool(prepare(Scenario.model_validate({"model": "deepseek-v3", "cluster": cluster})), "")
        tokens = 4096 * pool.placed.plan.data_parallel
        found = pool.traffic.of_steps(np.array([tokens]), np.array([0]), np.array([1]))[:, 1]
        cells = pool.traffic.cells
        routed = (cells.kind == DISPATCH) | (cells.kind == COMBINE)
        near = cells.sender // 8 == cells.receiver // 8
        for link, mine in (("intra_node", routed & near), ("inter_node", routed & ~near)):
            costed = [
                each.bytes_per_row
                for each in pool.placed.replica.traffic
                if (each.operator, each.link) == ("dispatch and combine", link)
            ]
            assert found[mine].sum() == pytest.approx(sum(costed) * tokens, rel=1e-6)


def of_link(found: list[Traffic], link: str) -> float:
    """Copies per token and layer, one way."""
    return sum(each.bytes_per_row for each in found if each.link == link) / (2 * 58 * 7168 * 2)


def test_deepseek_on_two_nodes_of_eight_sends_one_copy_to_the_other_node():
    found = traffic(tensor_parallel=1)
    assert of_link(found, "inter_node") == pytest.approx(1 - comb(128, 8) / comb(256, 8))
    device = 1 - comb(240, 8) / comb(256, 8)
    assert of_link(found, "intra_node") == pytest.approx(
        7 * device + 7 * device
    )  # own node, and passed on in the other
    straight = traffic(tensor_parallel=1, dispatch="direct")
    assert of_link(straight, "inter_node") == pytest.approx(8 * device)
    picks = traffic(tensor_parallel=1, dispatch="per_pick")
    assert of_link(picks, "inter_node") == pytest.approx(4.0)
    assert of_link(picks, "intra_node") == pytest.approx(3.5)


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
def test_copies_between_nodes_do_not_hang_on_how_attention_is_split(tensor):
    assert of_link(traffic(tensor_parallel=tensor), "inter_node") == pytest.approx(1 - comb(128, 8) / comb(256, 8))
