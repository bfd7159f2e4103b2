"""Which chips hold a model whose experts are larger than a chip: as many for each as it takes, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts, SlicedExperts
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.device import Demand, Fitted
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.expert_layout import SlotCounts
from pimserve.device_models.operators import ALL_PARTS, Parallelism, Part
from pimserve.errors import DoesNotFitError, InputError
from tests.device_models.aimc.fitted_plans import aimc

ROUTED: frozenset[Part] = frozenset({"routed_experts"})
IN_ORDER = {"strategy": "greedy_in_order"}


def grok(
    chips: int, parts: frozenset[Part] = ROUTED, *, redundant: int = 0, demand: Any = None, **changes: Any
) -> Fitted:
    device = aimc(**{"spread": "experts", **changes})
    asked = Demand(load_model("grok-1"), Parallelism(1, chips, chips, "ep", redundant), parts=parts)
    return device.fit(replace(asked, **(demand or {})))


def term_of(found: Fitted) -> SlicedExperts:
    assert isinstance(found.plan.experts, SlicedExperts)
    return found.plan.experts


@pytest.mark.medium
@pytest.mark.parametrize(
    ("chips", "slices", "groups"),
    [(40, 5, 8), (48, 6, 8), (44, 11, 1), (64, 8, 8)],  # 44: two experts on each of four groups
)
def test_experts_of_grok_are_on_as_few_chips_as_hold_a_slice(chips: int, slices: int, groups: int) -> None:
    found = grok(chips)
    assert found.parallelism == {"spread": "experts", "chips_per_expert": slices}
    assert found.facts["weights"] == 64 * 8 * 3 * 6144 * 32768
    assert found.facts["tiers_used"] == 64 * 8 * 3 * 12 * 64
    assert any(f"each expert is cut over {slices} chips" in warning for warning in found.warnings)
    term = term_of(found)
    assert term.slices == slices
    assert (term.groups, term.chips) == ((groups, slices) if chips != 44 else (4, 11))


@pytest.mark.medium
def test_the_whole_model_is_on_the_same_chips() -> None:
    found = grok(40, ALL_PARTS)
    assert found.parallelism == {"spread": "experts", "chips_per_expert": 5}
    assert found.kv_capacity_tokens > 0
    in_turns = grok(48, ALL_PARTS, spread="layers")
    assert in_turns.parallelism == {"spread": "layers"}
    times = [evaluate(fitted.plan, shape_of(fitted.plan, 64, 64 * 100)).duration_fs for fitted in (found, in_turns)]
    print(times)
    assert times[0] < times[1]


@pytest.mark.medium
def test_slices_work_at_once_where_layers_take_turns() -> None:
    sliced, in_turns = grok(48).plan.experts, grok(48, spread="layers").plan.experts
    assert sliced is not None
    assert in_turns is not None
    tokens = np.full((1, 8), 64)
    # 2,304 crossbars of an expert on 512 tiles: five products there for every copy of any expert, or one for its own.
    times = [int(term.layer_features(tokens)[0, 0]) for term in (sliced, in_turns)]
    assert times[0] - sliced.least_fs(1) // 64 == 63 * 150 * 10**6
    assert times[1] - in_turns.least_fs(1) // 64 == 511 * 5 * 150 * 10**6


@pytest.mark.medium
@pytest.mark.parametrize(
    ("chips", "changes", "least", "message"),
    [
        (1, {}, 40, "an expert of all layers takes 147,456 tiers of 512 x 512, and a chip has room for 32,256"),
        (8, {}, 40, "use 40 such chips"),
        (41, {}, 44, "do not fit on 41 either; use 44 such chips"),
        (1, {"mapping": IN_ORDER}, 40, "a chip has room for 32,768"),
        (48, {"tiers": 4}, None, "cut over up to 64 chips each.*no number of such chips will do, but more tiers"),
        (1024, {"tiles": 128, "tiers": 32}, None, "no number of such chips will do"),
    ],
)
def test_what_does_not_fit_says_how_many_chips_would(
    chips: int, changes: dict[str, Any], least: int | None, message: str
) -> None:
    with pytest.raises(DoesNotFitError, match=message) as refused:
        grok(chips, **changes)
    assert (refused.value.where, refused.value.least) == ("cluster.devices_per_node", least)
    if least is not None:
        assert grok(least, **changes).plan.devices == least


def test_experts_that_fit_on_a_chip_stay_whole() -> None:
    demand = Demand(load_model("mixtral-8x7b"), Parallelism(1, 16, 16), parts=ROUTED)
    with pytest.raises(DoesNotFitError, match="16 chips, but a layer has 8; allowed are at most as many") as refused:
        aimc(spread="experts").fit(demand)
    assert refused.value.least is None
    whole = aimc(spread="experts").fit(replace(demand, split=Parallelism(1, 8, 8)))
    assert whole.parallelism == {"spread": "experts"}
    assert type(whole.plan.experts) is CrossbarExperts
    cut = aimc(spread="experts", tiers=32).fit(demand)
    assert cut.parallelism == {"spread": "experts", "chips_per_expert": 2}


def test_where_the_spread_is_open_layers_come_first() -> None:
    assert grok(48, spread=None).parallelism == {"spread": "layers"}
    # Stacks of 8 experts leave no place on tiles of 8 tiers, whatever the number of chips.
    found = aimc(tiers=8).fit(Demand(load_model("mixtral-8x7b"), Parallelism(1, 56, 56), parts=ROUTED))
    assert found.parallelism == {"spread": "experts", "chips_per_expert": 7}


@pytest.mark.parametrize(
    "strategy", ["greedy_in_order", "greedy_util", "moe_separated", "greedy_random", "greedy_top2"]
)
def test_every_strategy_maps_slices(strategy: str) -> None:
    changes = {"tiers": 32, "mapping": {"strategy": strategy}, "spread": "experts"}
    demand = Demand(load_model("mixtral-8x7b"), Parallelism(1, 16, 16), parts=ROUTED)
    term = term_of(aimc(**changes).fit(demand))
    assert (term.groups, term.chips, term.slices) == (8, 2, 2)


@pytest.mark.medium
def test_bytes_between_chips_are_those_that_the_links_energy_is_of() -> None:
    free, paid = (grok(40, link_pj_per_bit=pj) for pj in (0.0, 1.0))
    copies = [term_of(found).most_pj(1) for found in (free, paid)]
    assert free.traffic[0].bytes_per_row == pytest.approx((copies[1] - copies[0]) / 8, rel=1e-6)
    assert free.traffic[0].bytes_per_row == 64 * 2 * 4 * 6144 * 2  # of each of two copies, to four other chips, 16 bit
    assert free.point_to_point is not None
    sent = free.point_to_point()
    assert sum(sent.picks.values()) == pytest.approx(sent.picks_per_token) == 2 * 64
    assert {sender // 5 for sender, _ in sent.combine} == set(range(8))
    assert all(sender // 5 == receiver // 5 for sender, receiver in sent.combine)
    assert not sent.dispatch


@pytest.mark.medium
@pytest.mark.parametrize("spread", ["layers", "experts"])
def test_bytes_of_whole_models_are_those_of_the_walk(spread: str) -> None:
    found = grok(48, ALL_PARTS, spread=spread)
    assert found.point_to_point is not None
    sent = found.point_to_point()
    vectors = sum(size for of_rows in (sent.tokens, sent.outputs) for _, size in of_rows.values())
    passed = float(vectors) + sum(sent.dispatch.values()) + sum(sent.combine.values())
    assert sum(traffic.bytes_per_row for traffic in found.traffic) == pytest.approx(passed)


@pytest.mark.medium
def test_layouts_and_copies_go_on_groups_of_chips() -> None:
    slots = ((0, 0, 1, 2, 3, 4, 5, 6, 7, 1),)
    found = grok(50, redundant=2, demand={"expert_slots": slots})
    term = term_of(found)
    assert (term.experts, term.physical_experts, term.groups, term.slices) == (8, 10, 10, 5)
    plain = term_of(grok(40))
    counts = SlotCounts(term.slots).of(np.array([[[9, 3, 2, 0, 0, 0, 0, 0]]]))[0]
    one = plain.layer_features(np.array([[9, 3, 2, 0, 0, 0, 0, 0]]))
    assert term.layer_features(counts)[0, 0] == one[0, 0] - 4 * 150 * 10**6  # 5 tokens in place of 9
    with pytest.raises(InputError, match="8 experts do not spread evenly over 44 devices"):
        grok(44, demand={"expert_slots": (tuple(reversed(range(8))),)})


def test_programming_covers_every_tier_of_every_slice() -> None:
    found = grok(40, demand={"rebalance_every": 3})
    assert found.expert_programming is not None
    programming = found.expert_programming()
    assert programming is not None
    assert programming.tiers.shape == (8, 64, 1, 5 * 512)
    assert programming.tiers.sum() == found.facts["tiers_used"]
    whole = np.ones((64, 8, 1), bool)
    assert programming.time_s(whole) == pytest.approx(found.facts["programming"]["time_s"])
    assert term_of(found).move_pj * whole.sum() == pytest.approx(found.facts["programming"]["joules"] * 1e12)


def test_experts_as_narrow_as_a_crossbar_cannot_be_cut() -> None:
    model = load_model("mixtral-8x7b")
    assert model.moe is not None
    narrow = model.model_copy(update={"moe": model.moe.model_copy(update={"intermediate": 512})})
    with pytest.raises(DoesNotFitError, match="no number of such chips will do") as refused:
        aimc(spread="experts", tiles=8, tiers=16).fit(Demand(narrow, Parallelism(1, 8, 8), parts=ROUTED))
    assert "cut over" not in refused.value.message
