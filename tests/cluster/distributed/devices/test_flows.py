"""What devices send each other, against the collectives that the links cost."""

import copy
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.distributed.devices.compile import DevicePool, compile_pool
from pimserve.cluster.distributed.devices.flows import ACTIVATIONS, ALL_GATHER, ALL_REDUCE, COMBINE, DISPATCH, apportion
from pimserve.cluster.scenario.document import Scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.device_models.operators import AllGather, AllReduce, Operator, operators_of
from pimserve.device_models.split_experts import Side, sides_of
from pimserve.errors import InputError
from tests.cluster.distributed.devices.served import SCENARIOS

MANY = 2**16  # tokens of a step, by which all data-parallel groups and devices divide


def pool_of(name: str) -> DevicePool:
    return compile_pool(prepare(Scenario.model_validate(SCENARIOS[name])), "")


def operators(name: str) -> list[Operator]:
    scenario = Scenario.model_validate(SCENARIOS[name])
    return operators_of(scenario.load_model(), scenario.cluster.split)


def step(pool: DevicePool, tokens: int, outputs: int = 0, steps: int = 1) -> np.ndarray:
    return pool.traffic.of_steps(np.array([tokens]), np.array([outputs]), np.array([steps]))


def sent(pool: DevicePool, found: np.ndarray, kind: int, column: int = 1) -> list[int]:
    """Counts (0) or bytes (1) of a kind, by sending device."""
    cells = pool.traffic.cells
    mine = cells.kind == kind
    return (
        np.bincount(cells.sender[mine], found[mine, column], minlength=pool.placed.devices_per_replica)
        .astype(int)
        .tolist()
    )


@pytest.mark.parametrize("name", ["dense", "tp", "ep", "skewed", "measured"])
def test_bytes_of_collectives_are_those_that_the_links_cost(name: str) -> None:
    pool, ops = pool_of(name), operators(name)
    data = pool.placed.plan.data_parallel
    found = step(pool, MANY * data, MANY * data)  # every group has that many
    reduce = next((op for op in ops if isinstance(op, AllReduce)), None)
    assert reduce is not None
    ring = Fraction(2 * (reduce.group - 1), reduce.group) * reduce.times * int(reduce.bytes_per_token)
    assert sent(pool, found, ALL_REDUCE) == [MANY * ring] * pool.placed.devices_per_replica
    gather = next(op for op in ops if isinstance(op, AllGather))
    ring = Fraction(gather.group - 1, gather.group) * int(gather.bytes_per_output)
    assert sent(pool, found, ALL_GATHER) == [MANY * ring] * pool.placed.devices_per_replica


@pytest.mark.parametrize("way", ["forward", "direct", "per_pick"])
@pytest.mark.parametrize("name", ["ep", "skewed", "exact", "nodes"])
def test_dispatch_and_combine_take_the_bytes_that_the_links_cost(name: str, way: str) -> None:
    document = {**SCENARIOS[name], "cluster": {**SCENARIOS[name]["cluster"], "dispatch": way}}
    scenario = Scenario.model_validate(document)
    pool = compile_pool(prepare(scenario), "")
    data, per_node = pool.placed.plan.data_parallel, scenario.cluster.devices_per_node
    found = step(pool, MANY * data)
    cells = pool.traffic.cells
    for link, near in (("intra_node", True), ("inter_node", False)):
        costed = [t for t in pool.placed.replica.traffic if (t.operator, t.link) == ("dispatch and combine", link)]
        for kind in (DISPATCH, COMBINE):
            mine = (cells.kind == kind) & ((cells.sender // per_node == cells.receiver // per_node) == near)
            each = np.bincount(cells.sender[mine], found[mine, 1], minlength=pool.placed.devices_per_replica)
            wanted = sum(t.bytes_per_row for t in costed) * MANY * data / 2 / pool.placed.devices_per_replica
            assert each == pytest.approx(np.full(pool.placed.devices_per_replica, wanted), rel=1e-6)


def test_pools_have_their_own_devices_and_numbers() -> None:
    prefill = {"replicas": 2, "device": "h100", "devices_per_node": 4}
    decode = {"replicas": 3, "device": "duplex", "devices_per_node": 8, "tensor_parallel": 4}
    scenario = Scenario.model_validate(
        {"model": "mixtral-8x7b", "cluster": {"pools": {"prefill": prefill, "decode": decode}}}
    )
    prepared = prepare(scenario)
    first, second = compile_pool(prepared, "prefill"), compile_pool(prepared, "decode")
    assert (first.placed.numbers, second.placed.numbers) == (range(2), range(2, 5))
    assert (first.placed.label, second.placed.label) == ("h100", "duplex")
    assert (first.placed.devices_per_replica, second.placed.devices_per_replica) == (4, 8)
    assert not sum(sent(first, step(first, 100), DISPATCH))
    assert sum(sent(second, step(second, 100), DISPATCH))
    with pytest.raises(InputError, match="must be one of 'prefill', 'decode'"):
        compile_pool(prepared, "")


def test_inside_one_group_picks_take_no_bytes() -> None:
    pool = pool_of("tp")
    found = step(pool, 100)
    assert sum(sent(pool, found, DISPATCH, 0)) == 100 * pool.picks_per_token
    assert sum(sent(pool, found, DISPATCH)) == sum(sent(pool, found, COMBINE)) == 0


@pytest.mark.parametrize("name", ["tp", "ep", "skewed", "aimc", "mixed", "mixed-exact", "mixed-aimc"])
@given(st.integers(1, 5000), st.integers(0, 300), st.integers(1, 100))
def test_every_pick_is_sent_once_and_comes_back(name: str, tokens: int, outputs: int, steps: int) -> None:
    pool = POOLS[name]
    found = step(pool, tokens, outputs, steps)
    assert (found >= 0).all()
    assert (found == steps * step(pool, tokens, outputs)).all()
    cells = pool.traffic.cells
    there, back = found[cells.kind == DISPATCH, 0], found[cells.kind == COMBINE, 0]
    assert there.sum() == back.sum() == steps * tokens * pool.picks_per_token


MIXED = ("mixed", "mixed-exact", "mixed-aimc", "mixed-sliced", "hot", "hot-exact")
POOLS = {name: pool_of(name) for name in ("tp", "ep", "skewed", "aimc", "exact", *MIXED)}


def sides(pool: DevicePool) -> tuple[Side, ...]:
    """Its routed experts on devices of one kind each."""
    assert pool.placed.plan.experts is not None
    return sides_of(pool.placed.plan.experts)


def between(pool: DevicePool, found: np.ndarray, kind: int, column: int) -> np.ndarray:
    """(devices of attention, of the experts): counts (0) or bytes (1) of dispatch, or of combine, which go back."""
    cells, (attention, experts) = pool.traffic.cells, pool.placed.groups
    senders, mine = attention.devices_per_replica, cells.kind == kind
    table = np.zeros((pool.placed.devices_per_replica,) * 2, np.int64)
    np.add.at(table, (cells.sender[mine], cells.receiver[mine]), found[mine, column])
    there = (table if kind == DISPATCH else table.T)[:senders, senders:]
    assert there.sum() == table.sum()  # nothing else passes
    assert there.shape[1] == experts.devices_per_replica
    return there


DEEPSEEK = {
    "model": "deepseek-v3",
    "cluster": {
        "device": "b200",
        "devices_per_node": 4,
        "tensor_parallel": 1,
        "placement": {"experts": {"device": "h200", "devices_per_node": 8, "tensor_parallel": 4}, "micro_batches": 2},
    },
    "routing": {"popularity": "zipf", "zipf_exponent": 0.5},
}


@pytest.mark.parametrize("elsewhere", [[], ["dense_ffn"], ["shared_experts"], ["lm_head"], ["dense_ffn", "lm_head"]])
@pytest.mark.parametrize("copies", ["per_device", "per_pick"])
@pytest.mark.parametrize("base", [*(SCENARIOS[name] for name in MIXED), DEEPSEEK], ids=[*MIXED, "deepseek"])
def test_between_groups_pass_the_bytes_that_their_link_costs(
    base: dict[str, Any], copies: str, elsewhere: list[str]
) -> None:
    document = copy.deepcopy(base)
    document["cluster"]["placement"] |= {"link": {"copies": copies}} | dict.fromkeys(elsewhere, "experts")
    pool = compile_pool(prepare(Scenario.model_validate(document)), "")
    found = step(pool, MANY, MANY)
    for kind, name in ((DISPATCH, "dispatch"), (COMBINE, "combine")):
        costed = [t for t in pool.placed.replica.traffic if (t.operator, t.link) == (name, "between_groups")]
        passed = between(pool, found, kind, 1)
        assert passed.sum() == pytest.approx(sum(t.bytes_per_row for t in costed) * MANY, rel=1e-6)
        assert passed.sum(axis=1) == pytest.approx(passed.sum() / len(passed), rel=1e-6)  # attention's share evenly


@pytest.mark.parametrize("name", MIXED)
def test_attention_s_devices_share_the_bytes_of_every_step_evenly(name: str) -> None:
    pool = POOLS[name]
    for tokens in (1, 3):
        found = step(pool, tokens)
        for kind in (DISPATCH, COMBINE):
            passed = between(pool, found, kind, 1).sum(axis=1)
            assert passed == pytest.approx(passed.mean(), rel=1e-6)


@pytest.mark.parametrize("name", MIXED)
def test_picks_go_from_attention_to_the_experts_and_back(name: str) -> None:
    pool = POOLS[name]
    found = step(pool, 1001)
    there, back = between(pool, found, DISPATCH, 0), between(pool, found, COMBINE, 0)
    assert (there == back).all()
    assert (there > 0).all()
    assert there.sum() == 1001 * pool.picks_per_token


@pytest.mark.parametrize("name", ["hot", "hot-exact"])
def test_hot_experts_get_the_picks_that_popularity_gives_them(name: str) -> None:
    pool = POOLS[name]
    term, _ = sides(pool)
    there = between(pool, step(pool, MANY), DISPATCH, 0)
    hot = pool.placed.groups[1].facts["hot_experts"]
    passed = there[:, : pool.placed.members[1].devices_per_replica].sum()
    assert passed == pytest.approx(MANY * term.layers * hot["picks_per_token"], rel=1e-6)
    assert passed > there.sum() * hot["count"] / 8


@pytest.mark.parametrize("name", ["hot", "hot-exact"])
def test_of_the_groups_only_attention_s_and_cold_chips_pass_anything_inside(name: str) -> None:
    pool = POOLS[name]
    cells, found = pool.traffic.cells, step(pool, MANY)
    attention, hot, _ = (member.devices_per_replica for member in pool.placed.members)
    inside = found[:, 1].astype(bool) & (cells.kind != DISPATCH) & (cells.kind != COMBINE)
    kinds = [(cells.sender < attention), (cells.sender >= attention + hot)]
    assert (inside & kinds[0]).any()
    assert (inside & kinds[1]).any() == pool.placed.members[2].plan.weight_stationary
    assert not (inside & ~kinds[0] & ~kinds[1]).any()


def test_chips_pass_on_what_came_to_them() -> None:
    pool = POOLS["mixed-aimc"]
    cells, found = pool.traffic.cells, step(pool, 10)
    inside = (cells.kind == ACTIVATIONS) & (found[:, 1] > 0)
    assert inside.any()
    assert cells.sender[inside].min() >= 2  # devices of attention
    costed = [t.bytes_per_row for t in pool.placed.groups[1].replica.traffic if t.rows == "tokens"]
    assert found[inside, 1].sum() == pytest.approx(sum(costed) * 10, rel=1e-6)


def test_popular_experts_get_more() -> None:
    pool = POOLS["skewed"]
    found = step(pool, MANY)
    cells = pool.traffic.cells
    mine = cells.kind == DISPATCH
    received = np.bincount(cells.receiver[mine], found[mine, 0])
    assert received.max() > 1.2 * received.min()


def test_vectors_pass_through_the_chips() -> None:
    pool = POOLS["aimc"]
    hidden = 4096
    cells = pool.traffic.cells
    found = step(pool, 10)
    for chip in range(
        pool.placed.devices_per_replica - 1
    ):  # layers are spread: at least the residual goes on to the next chip
        there = (cells.kind == ACTIVATIONS) & (cells.sender == chip) & (cells.receiver == chip + 1)
        count, size = found[there].sum(axis=0).tolist()
        assert count >= 10
        assert size >= 10 * hidden
    assert not (cells.sender == cells.receiver)[cells.kind == ACTIVATIONS].any()


@pytest.mark.parametrize("name", ["exact", *MIXED])
@given(st.lists(st.lists(st.integers(0, 10**6), min_size=8, max_size=8), min_size=1, max_size=5))
def test_drawn_picks_are_dealt_evenly_and_all(name: str, picks: list[list[int]]) -> None:
    dispatch = POOLS[name].traffic.dispatch
    assert dispatch is not None
    counts = np.array(picks)
    copies = dispatch.copies(counts)
    assert (copies >= 0).all()
    assert (copies.sum(axis=0) == counts).all()
    by_sender = copies.sum(axis=(1, 2))
    assert by_sender.max() - by_sender.min() <= 1
    slots = [side.physical_experts // side.groups for side in sides(POOLS[name]) for _ in range(side.groups)]
    of_groups = np.add.reduceat(copies.sum(axis=1), np.cumsum(slots) - slots, axis=1)
    cells = dispatch.of_cells(of_groups)
    assert np.bincount(dispatch.experts_of, cells).tolist() == of_groups.sum(axis=0).tolist()


@given(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5),
    st.lists(st.floats(0.001, 1000), min_size=1, max_size=70),
)
def test_apportioned_numbers_add_up_and_are_next_to_their_share(totals: list[int], weights: list[float]) -> None:
    found = apportion(np.array(totals), np.array(weights))
    assert found.sum(axis=1).tolist() == totals
    assert (found >= 0).all()
    exact = np.array(totals)[:, None] * np.array(weights) / np.sum(weights)
    slack = 1 + np.array(totals)[:, None] * len(weights) * 2.0**-31  # shares are kept to 32 bits
    assert (np.abs(found - exact) <= slack).all()
