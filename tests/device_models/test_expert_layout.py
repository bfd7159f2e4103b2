"""Layouts of experts against their laws and plain loops; tokens of slots against those of experts."""

from collections import Counter
from dataclasses import replace
from itertools import permutations
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.expert_layout import ExpertOrder, SlotCounts, Slots, group_loads, layer_loads, layout
from pimserve.device_models.experts import ExpertTerm, ExpertUnit
from pimserve.device_models.routing import POOL_SIZE, ExpertPools, Routing
from tests.examples import examples

ORDERS: tuple[ExpertOrder, ...] = get_args(ExpertOrder)
UNIT = ExpertUnit("xpu", (((10**6, 10**4),),), (1.0, 0.0), 1, 1, 1)


@st.composite
def demands(draw: st.DrawFn) -> tuple[list[float], int, int]:
    """(loads, groups, copies) that divide."""
    groups = draw(st.integers(1, 6))
    experts = draw(st.integers(1, 24))
    most = min(experts * (groups - 1), 20)
    redundant = draw(st.sampled_from([*range(-experts % groups, most + 1, groups)] or [-1]))
    if redundant < 0:
        experts, redundant = groups * draw(st.integers(1, 4)), 0
    loads = st.lists(st.integers(1, 9) | st.floats(1e-3, 1e3), min_size=experts, max_size=experts)
    return [float(load) for load in draw(loads)], groups, redundant


@st.composite
def rows_of_slots(draw: st.DrawFn) -> tuple[Slots, ...]:
    """Slots of up to 4 layers."""
    experts, copies = draw(st.integers(1, 6)), draw(st.integers(0, 5))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        more = draw(st.lists(st.integers(0, experts - 1), min_size=copies, max_size=copies))
        rows.append(tuple(draw(st.permutations([*range(experts), *more]))))
    return tuple(rows)


@pytest.mark.parametrize("order", ORDERS)
@given(demand=demands())
def test_every_expert_has_a_slot_and_the_others_are_copies(
    order: ExpertOrder, demand: tuple[list[float], int, int]
) -> None:
    load, groups, redundant = demand
    slots = layout(order, load, groups, redundant)
    assert len(slots) == len(load) + redundant
    assert set(slots) == set(range(len(load)))
    assert max(Counter(slots).values()) <= groups
    of_groups = np.reshape(slots, (groups, -1))
    assert (np.diff(of_groups, axis=1) >= 0).all()
    assert group_loads(slots, load, groups).sum() == pytest.approx(sum(load))
    assert layout(order, load, groups, redundant) == slots


@given(demands())
def test_copies_go_one_by_one_to_the_expert_with_the_highest_load_per_copy(
    demand: tuple[list[float], int, int],
) -> None:
    load, groups, redundant = demand
    copies = Counter(layout("contiguous", load, groups, redundant))
    # None of the others would have been the better one: its load per copy is at most that before the last copy made.
    for expert, n in copies.items():
        for other in range(len(load)):
            if n > 1 and copies[other] < groups:
                assert load[expert] / (n - 1) >= load[other] / copies[other] * (1 - 1e-6)


@given(demands())
def test_by_popularity_no_group_has_more_than_the_busiest_in_order(demand: tuple[list[float], int, int]) -> None:
    load, groups, redundant = demand
    packed, in_order = (
        group_loads(layout(order, load, groups, redundant), load, groups).max()
        for order in ("popularity", "contiguous")
    )
    assert packed <= in_order * (1 + 1e-6)


@given(st.lists(st.integers(1, 20), min_size=6, max_size=6))
def test_packing_is_near_the_best_of_all_layouts(load: list[int]) -> None:
    packed = group_loads(layout("popularity", load, 3), load, 3).max()
    best = min(max(a + b, c + d, e + f) for a, b, c, d, e, f in permutations(load))
    assert best <= packed <= best * 4 / 3


@pytest.mark.parametrize(
    ("order", "redundant", "slots"),
    [
        ("contiguous", 0, (0, 1, 2, 3)),
        ("round_robin", 0, (0, 2, 1, 3)),
        ("popularity", 0, (0, 3, 1, 2)),  # 8 + 1 and 4 + 3 in place of 8 + 4 and 3 + 1
        ("contiguous", 2, (0, 1, 2, 0, 1, 3)),  # experts 0 and 1, whose 8 and 4 exceed 3; the copies come last
        ("popularity", 2, (0, 1, 2, 0, 1, 3)),  # 4 + 2 + 3 and 4 + 2 + 1: 9 is the least there is, with one of each
    ],
)
def test_by_hand(order: ExpertOrder, redundant: int, slots: Slots) -> None:
    assert layout(order, [8, 4, 3, 1], 2, redundant) == slots


def test_loads_that_are_all_alike_leave_experts_in_order() -> None:
    assert layout("popularity", [0.1 + 0.2, 0.3] * 8, 4) == tuple(range(16))


def test_copies_of_one_expert_are_on_different_groups_where_there_is_room() -> None:
    slots = np.reshape(layout("popularity", [100.0, *(1.0,) * 7], 4, 4), (4, -1))
    assert all(len(set(group)) == len(group) for group in slots.tolist())


@given(rows_of_slots(), st.data())
def test_copies_share_tokens_evenly_and_none_is_lost(rows: tuple[Slots, ...], data: st.DataObject) -> None:
    experts, n = max(rows[0]) + 1, data.draw(st.integers(1, 3))
    layers = len(rows) if len(rows) > 1 else data.draw(st.integers(1, 3))
    size = layers * n * experts
    tokens = np.reshape(data.draw(st.lists(st.integers(0, 99), min_size=size, max_size=size)), (layers, n, experts))
    found = SlotCounts(rows).of(tokens)
    for layer in range(layers):
        row = rows[layer % len(rows)]
        for draw in range(n):
            left = {e: int(tokens[layer, draw, e]) for e in range(experts)}
            copies = Counter(row)
            for slot, expert in enumerate(row):
                share = -(-left[expert] // copies[expert])
                assert found[layer, draw, slot] == share
                left[expert] -= share
                copies[expert] -= 1
            assert not any(left.values())


@given(rows_of_slots(), st.data())
def test_loads_of_slots_are_those_of_experts(rows: tuple[Slots, ...], data: st.DataObject) -> None:
    experts = max(rows[0]) + 1
    loads = [data.draw(st.lists(st.floats(0, 9), min_size=experts, max_size=experts)) for _ in rows]
    of_slots = layer_loads(rows, loads)
    for row, load, found in zip(rows, loads, of_slots, strict=True):
        assert np.bincount(row, found, experts) == pytest.approx(load)
    np.testing.assert_array_equal(layer_loads((), loads), loads)


def term_of(layers: int, experts: int, groups: int, slots: tuple[Slots, ...]) -> ExpertTerm:
    return ExpertTerm(layers, experts, 2, groups, 1, (UNIT,), "first", slots)


@given(st.integers(0, 500), st.integers(0, 9))
@examples(40)
def test_who_is_picked_does_not_hang_on_the_layout(tokens: int, seed: int) -> None:
    routing = Routing("zipf", 1.0, mode="exact")
    load = routing.expert_weights(8, seed)[0].tolist()
    slots = layout("popularity", load, 4, 4)
    plain = ExpertPools(term_of(3, 8, 4, ()), routing, seed).exact_counts(tokens, 0, 7)
    placed = ExpertPools(term_of(3, 8, 4, (slots,)), routing, seed).exact_counts(tokens, 0, 7)
    for layer in range(3):
        np.testing.assert_array_equal(np.bincount(slots, placed[layer], 8), plain[layer])


@pytest.mark.parametrize("laws", [1, 4], ids=["one law", "a law for each layer"])
@pytest.mark.parametrize("tokens", [7, 300])
def test_pools_of_layers_with_layouts_of_their_own_agree_with_exact_draws(tokens: int, laws: int) -> None:
    weights = tuple(tuple(np.random.default_rng(law).permutation(8) + 1.0) for law in range(laws))
    slots = tuple(layout("popularity", weights[layer % laws], 4, 4) for layer in range(4))
    slots = (*slots[:3], tuple(reversed(slots[3])))
    pools = ExpertPools(term_of(4, 8, 4, slots), Routing("given", 0, weights), 0)
    exact = np.array([pools.exact(tokens, 0, step)[0] for step in range(300)])
    pooled = pools.features(np.full(POOL_SIZE, tokens), np.arange(POOL_SIZE))[:, 0]
    error = np.hypot(exact.std() / np.sqrt(300), pooled.std() / np.sqrt(POOL_SIZE))
    assert pooled.mean() == pytest.approx(exact.mean(), abs=4 * error)


def test_a_balanced_layout_is_faster_and_reads_weights_of_copies() -> None:
    load = (8.0, 7.0, 6.0, 5.0, 1.0, 1.0, 1.0, 1.0)
    routing = Routing("given", 0, (load,))
    plain, placed = (
        ExpertPools(term_of(4, 8, 4, slots), routing, 0) for slots in ((), (layout("popularity", load, 4),))
    )
    assert np.mean(placed.times_fs(512)) < 0.8 * np.mean(plain.times_fs(512))
    copied = replace(placed.term, slots=(layout("popularity", load, 4, 4),))
    everything = np.full((1, 12), 5)
    assert copied.physical_experts == 12
    assert copied.layer_features(everything)[0, 5] == 12 * (1 + 5)
