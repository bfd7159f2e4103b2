"""Experts on crossbars that are programmed anew: what is written, how long it takes, and what it wears."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.run.programming_figures import programming_caveats, programming_facts
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import Prepared, prepare
from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts, CrossbarUnit
from pimserve.device_models.expert_moves import moved
from pimserve.device_models.expert_programming import ExpertProgramming
from pimserve.device_models.rebalancing import placed_at
from tests.cluster.documents import serve

CHIPS = "experts: {device: {preset: aimc-realistic, spread: experts, tiers: 128}, devices_per_node: 4}"
REBALANCED = [
    "cluster.devices_per_node=1",
    f"cluster.placement={{{CHIPS}, micro_batches: 1}}",
    "cluster.expert_placement={order: popularity, rebalance: {interval_s: 1}}",
    "routing={popularity: zipf, zipf_exponent: 1.0, drift: {interval_s: 0.5, sigma: 0.4}}",
    "workload.num_requests=60",
    "workload.arrival={process: constant, rate_per_s: 6}",
]


def term(layers: int, chips: int, each: int, slots: tuple[tuple[int, ...], ...] = ()) -> CrossbarExperts:
    """Experts of which nothing but their number counts."""
    units = (CrossbarUnit("busiest_tile"), CrossbarUnit("digital"))
    work = tuple((1,) * each for _ in range(1))
    return CrossbarExperts(
        *(layers, chips * each, 1, chips, 1, units, (1,) * each, (work,), work, 1),
        slots=slots,
        rebalance_every=1,
        move_pj=5 * 10**11,
    )


def programming(tiers: list[list[list[list[int]]]]) -> ExpertProgramming:
    return ExpertProgramming(np.array(tiers), tier_s=2.0, pulses=20.0, endurance_pulses=1000.0)


def test_a_change_of_places_by_hand() -> None:
    # Two chips with two experts of one layer each, and two tiles: the second slot of each takes three tiers of a tile.
    tiers = [[[[1, 0], [0, 3]]], [[[2, 0], [0, 1]]]]
    start = ((0, 1, 2, 3),)
    layouts = [(start, ((0, 2, 1, 3),)), (((0, 2, 1, 3),), ((2, 0, 3, 1),)), (((2, 0, 3, 1),), ((1, 3, 0, 2),))]
    facts = programming_facts(term(1, 2, 2), layouts, lambda: programming(tiers))
    # First 1 and 2 change chips: slot 1 of chip 0 and slot 0 of chip 1. Then all stay. At last all four change.
    assert facts["experts_moved"] == 2 + 0 + 4
    assert facts["longest_programming_s"] == 2.0 * 3
    assert facts["joules"] == 6 * 0.5
    assert facts["most_pulses_per_device"] == 2 * 20
    assert facts["endurance_used"] == 0.04


def test_tiles_are_written_side_by_side_and_layers_on_one_tile_in_turns() -> None:
    apart, together = [[[[1, 0]], [[0, 1]]]] * 2, [[[[1, 0]], [[1, 0]]]] * 2
    change = [(((0, 1),), ((1, 0),))]
    times = [programming_facts(term(2, 2, 1), change, lambda of=of: programming(of)) for of in (apart, together)]
    assert [facts["longest_programming_s"] for facts in times] == [2.0, 4.0]


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.data())
def test_written_are_those_that_come_to_a_chip(layers: int, chips: int, each: int, data: st.DataObject) -> None:
    experts = st.lists(st.integers(0, chips * each - 1), min_size=chips * each, max_size=chips * each).map(tuple)
    rows = data.draw(st.sampled_from([1, layers]))
    wanted = data.draw(st.lists(st.tuples(*[experts] * rows), min_size=1, max_size=4))
    facts = programming_facts(
        term(layers, chips, each, wanted[0]), list(zip(wanted, wanted[1:] + wanted[:1], strict=True)), None
    )
    came = 0
    for before, after in zip(wanted, wanted[1:] + wanted[:1], strict=True):
        for old, new in zip(before, after, strict=True):
            for first in range(0, chips * each, each):
                more = Counter(new[first : first + each]) - Counter(old[first : first + each])
                came += more.total() * layers // rows
    assert facts == {"experts_moved": came}
    changes = zip(wanted, wanted[1:] + wanted[:1], strict=True)
    assert sum(moved(term(layers, chips, each, wanted[0]), change) for change in changes) == came


def served(*overrides: str) -> tuple[Prepared, dict[str, Any]]:
    prepared = prepare(load_scenario(None, [*REBALANCED, *overrides]))
    return prepared, serve(prepared)[0]


@pytest.mark.medium
def test_a_run_says_what_programming_took() -> None:
    prepared, summary = served()
    experts = prepared.pools[0].groups[1]
    facts = summary["groups"]["experts"]["device_facts"]["expert_rebalancing"]
    assert facts["times"] > 5
    assert 0 < facts["experts_moved"] <= facts["times"] * 8 * 32
    written = experts.facts["programming"]  # of all experts at once
    assert facts["joules"] == pytest.approx(written["joules"] * facts["experts_moved"] / (8 * 32))
    energy = summary["energy"]
    assert energy["joules_by_category"]["expert_rebalancing"] == {"dram": 0, "compute": facts["joules"]}
    parts = [part for kinds in energy["joules_by_category"].values() for part in kinds.values()]
    assert energy["active_joules"] == pytest.approx(sum(parts), rel=1e-12)
    assert 0 < facts["longest_programming_s"] <= written["time_s"]
    assert facts["most_pulses_per_device"] % written["pulses_per_device"] == 0
    assert facts["most_pulses_per_device"] <= facts["times"] * written["pulses_per_device"]
    told = [warning for warning in summary["warnings"] if "rebalancing experts programmed" in warning]
    assert len(told) == 1
    assert any("longer than cluster.expert_placement.rebalance.interval_s, 1 s" in each for each in summary["warnings"])


def test_experts_follow_their_popularity_over_chips() -> None:
    prepared, _ = served("workload.num_requests=5")
    term = prepared.pools[0].plan.experts
    later = placed_at(term, prepared.routing, prepared.scenario.run.seed, 8)
    assert later.slots != term.slots
    assert sorted(later.slots[0]) == list(range(8))
    assert (later.chains, later.tiles) == (term.chains, term.tiles)


def test_chips_of_which_nothing_is_known_say_so() -> None:
    facts = programming_facts(term(1, 2, 1), [(((0, 1),), ((1, 0),))], lambda: None)
    assert facts == {"experts_moved": 2}
    assert next(programming_caveats(facts)).endswith("is not known of these chips, and not in the energy")
