"""Hot and cold experts on two kinds of devices: a layer is the slower side, and nothing is lost between them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts, CrossbarUnit
from pimserve.device_models.expert_layout import SlotCounts
from pimserve.device_models.experts import FEATURES, ExpertTerm, ExpertUnit, features_of
from pimserve.device_models.plan import CostPlan, RowTerm
from pimserve.device_models.routing import POOL_SIZE, ExpertPools, Routing
from pimserve.device_models.slowdown import SlowPools
from pimserve.device_models.split_experts import SIDE_FEATURES, SideUnit, SplitExperts, hottest
from pimserve.device_models.split_plan import split_plan
from tests.scheduler.mixed_strategies import parted
from tests.scheduler.plan_strategies import expert_terms

UNIT = ExpertUnit("xpu", (((10, 1),),), (0.0, 0.0), 5, 3, 2)
SPLITS = expert_terms().flatmap(parted)
LAYERS = st.integers(1, 5).flatmap(
    lambda draws: st.lists(st.lists(st.integers(0, 50), min_size=8, max_size=8), min_size=draws, max_size=draws)
)


def crossbars(experts: int) -> CrossbarExperts:
    """Experts on tiles of their own, on which each copy takes 4 fs beyond the first one's 20."""
    tiles = tuple(tuple(4 * (e == tile) for e in range(experts)) for tile in range(experts))
    units = (CrossbarUnit("busiest_tile"), CrossbarUnit("digital"))
    return CrossbarExperts(2, experts, 2, 1, 1, units, (20,) * experts, (tiles,), ((1,) * experts,), 7)


def split(hot: int, cold: int, slots: tuple[int, ...]) -> SplitExperts:
    """Hot experts on a GPU, cold ones on crossbars."""
    one = ExpertTerm(2, hot, min(2, hot), 1, 1, (UNIT,), "first")
    units = tuple(map(SideUnit, ("hot_xpu", "busiest_tile", "digital")))
    return SplitExperts(hot + cold, 2, one, crossbars(cold), units, (slots,))


def test_a_layer_by_hand() -> None:
    term = split(1, 2, (2, 0, 1))
    assert term.features == (*FEATURES, "third_busy_fs", "third_of_busiest_fs", *SIDE_FEATURES)
    tokens = SlotCounts(term.slots).of(np.array([[[4, 0, 6]], [[9, 3, 0]]]))[:, 0]  # of experts 0, 1, 2
    found = [dict(zip(term.features, row, strict=True)) for row in term.layer_features(tokens).tolist()]
    # Expert 2 is hot, and takes 10 + 6 fs; of the cold ones, expert 0 has four tokens on its tile.
    assert found[0]["time_fs"] == 20 + 3 * 4
    assert (found[0]["first_busy_fs"], found[0]["second_busy_fs"], found[0]["third_busy_fs"]) == (16, 4 * 4, 4)
    assert found[0]["dram_pj"] == 5 + 6 * 3
    assert found[0]["compute_pj"] == 6 * 2 + 4 * 7
    assert found[1]["time_fs"] == 20 + 8 * 4
    assert found[1]["first_busy_fs"] == 0


@given(SPLITS, LAYERS)
def test_a_layer_waits_for_the_slower_side(term: SplitExperts, given_tokens: list[list[int]]) -> None:
    tokens = np.array(given_tokens)[:, : term.experts]
    hot, cold = np.split(tokens, [term.hot.experts], axis=1)
    found = dict(zip(term.features, term.layer_features(tokens).T, strict=True))
    sides = [
        dict(zip(FEATURES, side.layer_features(of_side).T, strict=True))
        for side, of_side in ((term.hot, hot), (term.cold, cold))
    ]
    assert (found["time_fs"] == np.maximum(sides[0]["time_fs"], sides[1]["time_fs"])).all()
    assert (found["hot_fs"] == sides[0]["time_fs"]).all()
    assert (found["cold_fs"] == sides[1]["time_fs"]).all()
    for energy in ("dram_pj", "compute_pj"):
        assert (found[energy] == sides[0][energy] + sides[1][energy]).all()
        assert (found[f"hot_{energy}"] == sides[0][energy]).all()
    places = iter(("first", "second", "third", "fourth"))
    for side, alone in zip((term.hot, term.cold), sides, strict=True):
        for own, _ in zip(("first", "second"), side.units, strict=False):
            place = next(places)
            assert (found[f"{place}_busy_fs"] == alone[f"{own}_busy_fs"]).all()
            assert (found[f"{place}_of_busiest_fs"] == alone[f"{own}_of_busiest_fs"]).all()


@given(SPLITS, LAYERS)
def test_with_all_tokens_on_one_side_it_is_that_side(term: SplitExperts, given_tokens: list[list[int]]) -> None:
    tokens = np.array(given_tokens)[:, : term.experts]
    times = FEATURES.index("time_fs"), FEATURES.index("dram_pj"), FEATURES.index("compute_pj")
    hot = np.where(np.arange(term.experts) < term.hot.experts, tokens, 0)
    for here, of_side, side in (
        (hot, hot[:, : term.hot.experts], term.hot),
        (tokens - hot, (tokens - hot)[:, term.hot.experts :], term.cold),
    ):
        assert (term.layer_features(here)[:, times] == side.layer_features(of_side)[:, times]).all()


@given(SPLITS, st.integers(1, 60), st.integers(0, 5))
def test_tokens_are_conserved_over_both_sides(term: SplitExperts, tokens: int, seed: int) -> None:
    routing = Routing("zipf", 1.0)
    counts = ExpertPools(term, routing, seed).exact_counts(tokens, 0, 0)
    assert counts.shape == (term.layers, term.physical_experts)
    assert (counts.sum(axis=1) == tokens * term.top_k).all()
    whole = ExpertPools(replace(term, slots=()), routing, seed).exact_counts(tokens, 0, 0)
    for layer in range(term.layers):  # an expert's tokens are in its slot, on whichever side
        slots = term.slots[layer % len(term.slots)]
        assert (counts[layer] == whole[layer, list(slots)]).all()


@given(SPLITS, st.integers(1, 60), st.integers(0, 5))
def test_bounds_hold(term: SplitExperts, tokens: int, seed: int) -> None:
    drawn = ExpertPools(term, Routing("zipf", 0.5), seed).exact(tokens, 0, 0).tolist()
    found = dict(zip(term.features, drawn, strict=True))
    assert found["dram_pj"] + found["compute_pj"] <= term.most_pj(tokens)


@given(SPLITS, st.integers(33, 500), st.integers(0, 5))
def test_between_pools_neither_side_has_less_than_no_energy(term: SplitExperts, tokens: int, seed: int) -> None:
    pools = ExpertPools(term, Routing("zipf", 0.5), seed)
    drawn = pools.features(np.full(POOL_SIZE, tokens), np.arange(POOL_SIZE))
    found = dict(zip(term.features, drawn.T, strict=True))
    for energy in ("dram_pj", "compute_pj"):
        assert (found[f"hot_{energy}"] >= 0).all()
        assert (found[f"hot_{energy}"] <= found[energy]).all()
    assert (found["hot_fs"] + found["cold_fs"] >= found["time_fs"] - term.layers).all()


def test_a_slow_replica_scales_times_of_all_units_and_no_energy() -> None:
    term = split(1, 2, (2, 0, 1))
    pools = ExpertPools(term, Routing("zipf", 1.0), 3)
    tokens, index = np.full(POOL_SIZE, 20), np.arange(POOL_SIZE)
    normal, slow = pools.features(tokens, index), SlowPools(pools, 2000).features(tokens, index)
    scale = [2 if name.endswith("_fs") else 1 for name in term.features]
    assert (slow == normal * scale).all()


@given(st.lists(st.lists(st.integers(0, 9), min_size=6, max_size=6), min_size=1, max_size=3), st.integers(1, 5))
def test_the_hottest_are_so_many_and_none_is_twice(weights: list[list[int]], count: int) -> None:
    rows = hottest(weights, count)
    assert len(rows) == len(weights)
    for row, (hot, cold) in zip(weights, rows, strict=True):
        assert sorted((*hot, *cold)) == list(range(6))
        assert len(hot) == count
        assert min(row[e] for e in hot) >= max(row[e] for e in cold)


def test_one_plan_of_both_has_units_and_devices_of_both() -> None:
    row = RowTerm("shared up", "moe", "busiest_tile", "tokens", ((1, 1),))
    hot = CostPlan(2, 1, ("xpu",), (), (), (), ExpertTerm(2, 1, 1, 1, 1, (UNIT,), "first"))
    cold = CostPlan(3, 1, ("busiest_tile", "digital"), (row,), (), (), crossbars(2))
    plan = split_plan(hot, cold, 2, [((1,), (0, 2))])
    assert (plan.devices, plan.units, plan.rows) == (5, ("hot_xpu", "busiest_tile", "digital"), (row,))
    assert plan.experts == split(1, 2, (1, 0, 2))
    assert plan.passive is None


@pytest.mark.parametrize("units", [1, 2, 3, 4])
def test_columns_grow_with_the_units(units: int) -> None:
    names = features_of(units)
    assert names[: len(FEATURES)] == FEATURES
    assert len(set(names)) == len(names) == len(FEATURES) + 2 * max(0, units - 2)
