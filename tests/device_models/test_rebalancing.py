"""Layouts that follow popularities: which one holds when, and what it is made from."""

import numpy as np
import pytest

from pimserve.device_models.expert_layout import layout
from pimserve.device_models.expert_moves import moved
from pimserve.device_models.expert_picks import expert_share
from pimserve.device_models.experts import ExpertTerm, ExpertUnit
from pimserve.device_models.popularity_walk import Drift
from pimserve.device_models.rebalancing import placed_at
from pimserve.device_models.routing import ExpertPools, Routing
from pimserve.device_models.slowdown import SlowPools

UNIT = ExpertUnit("xpu", (((10**6, 10**4),),), (1.0, 0.0), 1, 1, 1)
ROUTING = Routing("given", 0, ((3.0,) * 4 + (1.0,) * 4, (1.0,) * 8), "exact", Drift(10**9, 0.7))
FIRST = ((0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3),)
TERM = ExpertTerm(2, 8, 2, 4, 1, (UNIT,), "first", FIRST, rebalance_every=3)


def test_a_layout_is_of_the_loads_two_intervals_before() -> None:
    for epoch in range(6):
        assert placed_at(TERM, ROUTING, 5, epoch) is TERM
    for epoch in range(6, 12):
        seen = range(0, 3) if epoch < 9 else range(3, 6)
        laws = [ROUTING.expert_weights(8, 5, step) for step in seen]
        loads = np.mean([[expert_share(row, 2) for row in law.tolist()] for law in laws], axis=0)
        expected = tuple(layout("popularity", load, 4, 4) for load in loads.tolist())
        assert placed_at(TERM, ROUTING, 5, epoch).slots == expected
    assert placed_at(TERM, ROUTING, 5, 6).slots != placed_at(TERM, ROUTING, 5, 9).slots


def test_without_rebalancing_the_layout_stays() -> None:
    term = ExpertTerm(2, 8, 2, 4, 1, (UNIT,), "first", FIRST)
    assert placed_at(term, ROUTING, 5, 100) is term


def test_energy_of_moves_is_that_of_layouts_however_many_are_counted_at_once() -> None:
    pools = ExpertPools(TERM, ROUTING, 5)
    epochs = [0, 5, 6, 8, 9, 20, 33]
    assert [pools.at(epoch * 10**12).layouts for epoch in epochs] == [0, 0, 1, 1, 2, 5, 10]
    last = pools.at(33 * 10**12)
    one_by_one = []
    for number in range(1, 11):
        before, after = (placed_at(TERM, ROUTING, 5, 3 * (number + 1) - back).slots for back in (1, 0))
        one_by_one.append(moved(TERM, (before, after)) * 2 * UNIT.weight_pj)
    assert any(one_by_one)
    for counted in range(11):
        assert last.moves_pj(counted) == sum(one_by_one[counted:])
    assert SlowPools(last, 1500).moves_pj(0) == sum(one_by_one)


@pytest.mark.parametrize("epoch", [0, 5, 6, 8, 9, 20])
def test_pools_of_an_interval_have_its_layout_and_picks_do_not_hang_on_it(epoch: int) -> None:
    pools = ExpertPools(TERM, ROUTING, 5).at(epoch * 10**12)
    assert pools.term == placed_at(TERM, ROUTING, 5, epoch)
    plain = ExpertPools(ExpertTerm(2, 8, 2, 4, 1, (UNIT,), "first"), ROUTING, 5).at(epoch * 10**12)
    counts, of_experts = pools.exact_counts(77, 0, 3), plain.exact_counts(77, 0, 3)
    for layer in range(2):
        row = pools.term.slots[layer % len(pools.term.slots)]
        np.testing.assert_array_equal(np.bincount(row, counts[layer], 8), of_experts[layer])
