"""Experts on crossbars: times by hand and by the plain formula, and the laws of any layer."""

import json
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts, CrossbarUnit
from pimserve.device_models.experts import FEATURES, GROUP_FEATURES
from pimserve.device_models.routing import POOL_SIZE, ExpertPools, Routing

UNITS = (CrossbarUnit("busiest_tile"), CrossbarUnit("digital"))
TIME, FIRST, SECOND, FIRST_MOST, SECOND_MOST, DRAM, COMPUTE = range(len(FEATURES))


def term(tiles: list[list[list[int]]], chains: list[int], **changes: int | tuple[int, int]) -> CrossbarExperts:
    """Experts whose copies leave `tiles` (chips, tiles, experts) there, and 1 fs on the first chip's digital units."""
    experts = len(chains)
    chips = changes.pop("chips", len(tiles))
    groups = changes.pop("groups", 1)
    assert isinstance(groups, int)
    assert isinstance(chips, int)
    work = tuple(tuple(tuple(row) for row in of_chip) for of_chip in tiles)
    given = {"layers": 3, "experts": groups * experts, "top_k": 2, "copy_pj": 7} | changes
    return CrossbarExperts(
        groups=groups,
        chips=chips,
        units=UNITS,
        chains=tuple(chains),
        tiles=work,
        digital=((1,) * experts,),
        **given,  # type: ignore[arg-type]
    )


def layer(experts: CrossbarExperts, tokens: list[int]) -> list[int]:
    found: list[int] = experts.layer_features(np.array([tokens]))[0].tolist()
    return found


def test_experts_on_the_same_tiles_queue() -> None:
    together = term([[[10, 10]]], [100, 100])
    assert layer(together, [1, 0])[TIME] == 100
    assert layer(together, [3, 0])[TIME] == layer(together, [1, 2])[TIME] == 100 + 2 * 10


def test_experts_on_tiles_of_their_own_do_not_wait_for_each_other() -> None:
    apart = term([[[10, 0], [0, 10]]], [100, 100])
    assert layer(apart, [1, 5])[TIME] == layer(apart, [0, 5])[TIME] == 100 + 4 * 10
    # The digital units are everybody's.
    assert layer(apart, [60, 60])[TIME] == 100 + 59 * 10
    assert layer(term([[[1, 0], [0, 1]]], [100, 100]), [60, 60])[TIME] == 100 + 119 * 1


def test_the_longer_chain_counts_where_it_has_tokens() -> None:
    apart = term([[[10, 0], [0, 10]]], [100, 150])
    assert layer(apart, [1, 1])[TIME] == 150 + 1  # behind the other at the digital units
    assert layer(apart, [3, 0])[TIME] == 120
    assert layer(apart, [8, 1])[TIME] == 100 + 70


def test_the_slowest_group_sets_the_time() -> None:
    groups = term([[[10]]], [100], groups=4)
    assert layer(groups, [1, 5, 0, 2]) == [140, (10 + 50 + 20) // 4, 8 // 4, 50, 5, 0, 8 * 7]


def test_busy_times_of_layers_that_lie_on_one_chip_after_the_other() -> None:
    # Six chips, of which one has two of eight layers.
    turns = term([[[10, 10]]], [100, 100], chips=6, fullest=(3, 2))
    features = layer(turns, [6, 6])
    assert features[FIRST] == 120 // 6
    assert features[FIRST_MOST] == 120 // 6 * 3 // 2
    assert features[SECOND] == 12 // 6
    # A layer on both chips of a group: each has its busiest tile.
    both = term([[[10, 0]], [[0, 30], [0, 5]]], [100, 100])
    assert layer(both, [2, 3])[FIRST] == (20 + 90) // 2


@st.composite
def terms(draw: st.DrawFn) -> CrossbarExperts:
    groups, experts = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rows = st.lists(st.lists(st.integers(0, 9), min_size=experts, max_size=experts), min_size=1, max_size=4)
    tiles = draw(st.lists(rows, min_size=1, max_size=2))
    tiles[0].append([draw(st.integers(1, 9)) for _ in range(experts)])
    chains = draw(st.lists(st.integers(9, 40), min_size=experts, max_size=experts))
    return term(tiles, chains, groups=groups, top_k=1)


def counts(experts: CrossbarExperts, draw: st.DrawFn) -> list[int]:
    return draw(st.lists(st.integers(0, 20), min_size=experts.experts, max_size=experts.experts))


@given(terms(), st.data())
def test_times_are_the_plain_formula(experts: CrossbarExperts, data: st.DataObject) -> None:
    tokens = counts(experts, data.draw)
    per_group = experts.experts // experts.groups
    resources = [row for of_chip in experts.tiles for row in of_chip] + list(experts.digital)
    longest = 0
    for first in range(0, experts.experts, per_group):
        copies = tokens[first : first + per_group]
        for expert, chain in enumerate(experts.chains):
            for row in resources:
                if copies[expert] and row[expert]:
                    work = sum(n * each for n, each in zip(copies, row, strict=True))
                    longest = max(longest, chain + work - row[expert])
    assert layer(experts, tokens)[TIME] == longest


@given(terms(), st.data())
def test_more_tokens_are_never_faster(experts: CrossbarExperts, data: st.DataObject) -> None:
    fewer, more = counts(experts, data.draw), counts(experts, data.draw)
    both = [a + b for a, b in zip(fewer, more, strict=True)]
    assert all(a <= b for a, b in zip(layer(experts, fewer)[:3], layer(experts, both)[:3], strict=True))


@given(terms(), st.data())
def test_energy_adds_up_over_layers_and_groups(experts: CrossbarExperts, data: st.DataObject) -> None:
    one, other = counts(experts, data.draw), counts(experts, data.draw)
    both = [a + b for a, b in zip(one, other, strict=True)]
    assert layer(experts, both)[DRAM] == 0
    assert layer(experts, both)[COMPUTE] == layer(experts, one)[COMPUTE] + layer(experts, other)[COMPUTE]
    assert layer(experts, both)[COMPUTE] == sum(both) * experts.copy_pj
    groups = experts.group_features(np.array(both).reshape(1, experts.groups, -1))
    assert groups.shape == (experts.ways, 1, experts.groups, len(GROUP_FEATURES))
    assert experts.merged(groups).tolist() == [layer(experts, both)]
    assert groups[0, 0, :, -1].sum() == layer(experts, both)[COMPUTE]
    assert groups[0, 0, :, 0].max() == layer(experts, both)[TIME]


@given(terms(), st.data())
def test_a_group_needs_to_know_nothing_of_the_others(experts: CrossbarExperts, data: st.DataObject) -> None:
    tokens = np.array(counts(experts, data.draw)).reshape(1, experts.groups, -1)
    alone = [experts.group_features(tokens[:, group : group + 1]) for group in range(experts.groups)]
    assert (np.concatenate(alone, axis=2) == experts.group_features(tokens)).all()


@given(terms(), st.integers(0, 200), st.integers(0, 2**32))
def test_bounds_of_steps(experts: CrossbarExperts, tokens: int, seed: int) -> None:
    picked = np.random.default_rng(seed).multinomial(
        tokens * experts.top_k, [1 / experts.experts] * experts.experts, size=experts.layers
    )
    features = experts.layer_features(picked).sum(axis=0)
    assert experts.least_fs(tokens) <= features[TIME]
    assert features[DRAM] + features[COMPUTE] == experts.most_pj(tokens)


def test_no_tokens_take_nothing() -> None:
    assert layer(term([[[10, 10]]], [100, 100]), [0, 0]) == [0] * len(FEATURES)
    assert term([[[10, 10]]], [100, 100]).least_fs(0) == 0


def test_pools_are_drawn_from_it() -> None:
    experts = term([[[10, 0, 10, 0], [0, 10, 0, 10]]], [100] * 4)
    pools = ExpertPools(experts, Routing(), seed=1)
    times = pools.times_fs(16)
    # A copy alone on one tile, up to all 32 copies there, in three layers.
    assert len(times) == POOL_SIZE
    assert experts.least_fs(16) <= min(times) <= max(times) <= 3 * (100 + 31 * 10)
    assert Fraction(sum(times), POOL_SIZE) > 3 * (100 + 15 * 10)  # the fuller of two tiles


def test_it_is_plain_data() -> None:
    experts = term([[[10, 0], [0, 10]]], [100, 100])
    experts.layer_features(np.array([[1, 2]]))  # nothing that was worked out is part of it
    told = json.loads(json.dumps(asdict(experts)))
    assert told["tiles"] == [[[10, 0], [0, 10]]]
    assert set(told) == set(CrossbarExperts.__dataclass_fields__)
    assert experts == term([[[10, 0], [0, 10]]], [100, 100])
    assert experts.weight_stationary


@pytest.mark.parametrize("draws", [1, 5])
def test_columns_are_single_layers(draws: int) -> None:
    experts = term([[[10, 0, 3]]], [100, 90, 80], groups=2)
    tokens = np.random.default_rng(draws).integers(0, 9, size=(draws, 6))
    assert experts.layer_features(tokens).tolist() == [layer(experts, row) for row in tokens.tolist()]
