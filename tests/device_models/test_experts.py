"""Who runs which expert: by the paper's table, by hand and against the plain algorithm; by times, against its laws."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.experts import FEATURES, ExpertTerm, ExpertUnit

# The paper's table, in units of one expert's weights read by the xPU: max(1, .75 n / 295), and max(1, .75 n / 8) / 4.
FIRST = (1.0, 0.75 / 295)
SECOND = (0.25, 0.75 / 32)
_ON_FIRST = 10**6


def unit(name: str, decision: tuple[float, float], weight_pj: int) -> ExpertUnit:
    """A unit on which every expert takes 10 fs and 1 fs per token, and whose weight energy tells that it ran there."""
    return ExpertUnit(name, (((10, 1),),), decision, weight_pj, 0, 0)


def term(experts: int, groups: int, spaces: int = 4) -> ExpertTerm:
    units = (unit("xpu", FIRST, _ON_FIRST), unit("pim", SECOND, 1))
    return ExpertTerm(1, experts, 2, groups, spaces, units, "paper_table")


def on_first(tokens: list[int], groups: int = 1, spaces: int = 4) -> int:
    """How many experts (of those with tokens) the decision puts on the first unit."""
    features = term(len(tokens), groups, spaces).layer_features(np.array([tokens]))
    return int(features[0, FEATURES.index("dram_pj")]) // _ON_FIRST


@pytest.mark.parametrize(
    ("tokens", "moved"),
    [
        ([8, 8, 8, 8], 0),  # 4 x .25 on Logic-PIM: moving one (1 on the xPU) does not help
        ([10, 10, 10, 10], 0),  # still memory-bound: .75 x 10 / 32 < .25
        ([11, 11, 11, 11], 1),  # 4 x .258 = 1.03: one on the xPU takes 1, the rest .77
        ([100, 1, 1, 1], 1),  # 2.34 + 3 x .25 -> max(1, .75)
        ([100, 100, 1, 1], 2),  # 5.19 -> max(1, 2.84) -> max(2, .5); a third would make it 3
        ([400, 400, 400, 400], 4),  # all on the xPU: 4 x max(1, 1.02) against 9.4 each
        ([100, 0, 0, 0], 1),  # an expert without tokens counts .25: 3.09 -> max(1, .75)
    ],
)
def test_decisions_by_hand(tokens: list[int], moved: int) -> None:
    assert on_first(tokens) == moved


def test_experts_of_one_memory_space_move_together() -> None:
    # 8 experts in 4 spaces: neighbours share one. Together they have 100 tokens, and the pair moves.
    assert on_first([100, 1, 1, 1, 1, 1, 1, 1]) == 2
    assert on_first([100, 1, 1, 1, 1, 1, 1, 1], spaces=8) == 1


def test_groups_decide_for_themselves() -> None:
    assert on_first([100, 1, 1, 1, 8, 8, 8, 8], groups=2) == 1


def test_side_by_side_takes_the_longer_of_both_units() -> None:
    features = term(4, 1).layer_features(np.array([[100, 1, 1, 1]]))[0]
    assert features[0] == 110  # 100 tokens on the first unit, against 3 x 11 beside it
    assert list(features[1:3]) == [110, 33]


def plain_decision(tokens: list[int], spaces: int) -> set[int]:
    """Experts of one group on the first unit, by the released algorithm as the reference describes it."""
    spaces = min(spaces, len(tokens))
    members = [[e for e in range(len(tokens)) if e * spaces // len(tokens) == s] for s in range(spaces)]

    def table(space: int, unit: tuple[float, float]) -> float:
        return sum(max(unit[0], unit[1] * tokens[e]) for e in members[space])

    first: list[int] = []
    second = sorted(range(spaces), key=lambda s: -sum(tokens[e] for e in members[s]))
    best = sum(table(s, SECOND) for s in second)
    while second:
        tried = max(sum(table(s, FIRST) for s in [*first, second[0]]), sum(table(s, SECOND) for s in second[1:]))
        if tried >= best - 1e-12:
            break
        best = tried
        first.append(second.pop(0))
    return {e for s in first for e in members[s]}


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.sampled_from([1, 2, 4, 8]))
def test_decision_is_the_plain_algorithm(tokens: list[int], spaces: int) -> None:
    expected = sum(1 for e in plain_decision(tokens, spaces) if tokens[e])
    assert on_first(tokens, spaces=spaces) == expected


@given(st.lists(st.integers(0, 300), min_size=8, max_size=8), st.sampled_from(["first", "second", "faster"]))
def test_one_unit_at_a_time_sums_over_a_group_and_takes_the_slowest(tokens: list[int], selection: str) -> None:
    whole = ExpertTerm(1, 8, 2, 4, 1, term(8, 4).units, selection)  # type: ignore[arg-type]
    times = [0 if n == 0 else 10 + n for n in tokens]
    slowest = max(sum(times[group * 2 : group * 2 + 2]) for group in range(4))
    features = whole.layer_features(np.array([tokens]))[0]
    assert features[0] == slowest
    assert features[1] + features[2] == sum(times) // 4
    assert features[3] + features[4] == slowest


# By times. (floor, slope) of an expert's time on a unit, fs: it reads its weights, or computes.
_SPEEDS = st.tuples(st.integers(1, 500), st.integers(1, 50))
_LAYERS = st.lists(st.integers(0, 60), min_size=8, max_size=8)


def timed(first: tuple[int, int], second: tuple[int, int], *, spaces: int = 4, groups: int = 1) -> ExpertTerm:
    units = tuple(
        ExpertUnit(name, ((((floor, 0), (0, slope))),), (1.0, 1.0), 0, 0, 0)
        for name, (floor, slope) in (("xpu", first), ("pim", second))
    )
    return ExpertTerm(1, 8, 2, groups, spaces, units, "co_processing")


def layer_fs(term: ExpertTerm, tokens: list[int]) -> int:
    return int(term.layer_features(np.array([tokens]))[0, 0])


def all_divisions(term: ExpertTerm, tokens: list[int]) -> Iterator[int]:
    """Time of the slower unit for every set of spaces that the first could take, in one group."""
    first, second = (unit.time_fs(np.array(tokens)).reshape(min(term.spaces, 8), -1).sum(axis=1) for unit in term.units)
    for size in range(len(first) + 1):
        for taken in combinations(range(len(first)), size):
            on_first = np.isin(np.arange(len(first)), taken)
            yield max(int(first[on_first].sum()), int(second[~on_first].sum()))


@given(_LAYERS, _SPEEDS, _SPEEDS, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]))
def test_by_times_two_units_are_never_slower_than_one(
    tokens: list[int], first: tuple[int, int], second: tuple[int, int], spaces: int, groups: int
) -> None:
    both = timed(first, second, spaces=spaces, groups=groups)
    alone = [layer_fs(replace(both, selection=way), tokens) for way in ("first", "second", "faster")]  # type: ignore[arg-type]
    assert layer_fs(both, tokens) <= min(alone)
    assert alone[2] == min(alone[:2])
    features = both.layer_features(np.array([tokens]))[0]
    assert features[0] >= features[1:3].max()  # mean busy times of the groups


@given(_LAYERS, _SPEEDS, _SPEEDS, st.sampled_from([1, 2, 4]))
def test_by_times_a_division_is_one_of_all_and_the_best_for_up_to_two_spaces(
    tokens: list[int], first: tuple[int, int], second: tuple[int, int], spaces: int
) -> None:
    term = timed(first, second, spaces=spaces)
    every = list(all_divisions(term, tokens))
    assert layer_fs(term, tokens) in every
    if spaces <= 2:
        assert layer_fs(term, tokens) == min(every)


@given(_LAYERS, _SPEEDS, _SPEEDS, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2]), st.data())
def test_a_faster_unit_never_makes_a_layer_slower(
    tokens: list[int], first: tuple[int, int], second: tuple[int, int], spaces: int, groups: int, data: st.DataObject
) -> None:
    def faster(unit: tuple[int, int]) -> tuple[int, int]:
        return data.draw(st.integers(0, unit[0])), data.draw(st.integers(0, unit[1]))

    before = timed(first, second, spaces=spaces, groups=groups)
    after = timed(faster(first), faster(second), spaces=spaces, groups=groups)
    assert layer_fs(after, tokens) <= layer_fs(before, tokens)
    alone = replace(before, selection="faster"), replace(after, selection="faster")
    assert layer_fs(alone[1], tokens) <= layer_fs(alone[0], tokens)


def test_where_both_units_read_weights_it_is_a_light_space_that_moves() -> None:
    # Four spaces of two experts, of which 2, 1, 1 and 1 have tokens; the second unit reads thrice as fast.
    tokens = [9, 9, 9, 0, 9, 0, 1, 0]
    by_times = timed((300, 0), (100, 0))
    assert layer_fs(by_times, tokens) == 400  # one expert on the first unit, beside four; with most tokens: 600
    assert layer_fs(replace(by_times, selection="second"), tokens) == 500


@given(st.lists(st.integers(0, 300), min_size=8, max_size=8))
def test_units_of_the_busiest_group_are_those_that_the_layer_waits_for(tokens: list[int]) -> None:
    time, _, _, *of_busiest = term(8, 2).layer_features(np.array([tokens]))[0, :5].tolist()
    groups = [term(4, 1).layer_features(np.array([tokens[at : at + 4]]))[0] for at in (0, 4)]
    assert time == max(of_busiest) == max(group[0] for group in groups)
    assert of_busiest in [group[1:3].tolist() for group in groups if group[0] == time]
