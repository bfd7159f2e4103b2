"""Plans of chips without attention, held against the event-driven model: every copy's hops, products and sums."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.validation.aimc_plan import SETTINGS, Setting
from pimserve.device_models.aimc.aimc import EVENT_OVER_PLAN
from pimserve.device_models.aimc.aimc_spec import AimcSpec
from pimserve.device_models.aimc.event.choices import ExpertChoices
from pimserve.device_models.aimc.ffn_serving import plan_without_attention
from pimserve.device_models.aimc.mapping import MappingSpec, Strategy, map_network
from pimserve.device_models.aimc.network import Ffn, network_of
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.aimc.spread import Spread
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import Part
from pimserve.device_models.plan import CostPlan
from pimserve.device_models.registry import load_device
from tests.device_models.aimc.experts_by_event import tokens_through

SHAPE = {"name": "m", "title": "m", "layers": 4, "hidden": 512, "vocab": 2048, "max_model_len_tokens": 4096}
MIXTURES = [setting for setting in SETTINGS if "moe" in setting.model]
SHARED = [setting for setting in SETTINGS if "ffn" in setting.model or "latent" in setting.name]
STRATEGIES: tuple[Strategy, ...] = ("moe_separated", "greedy_in_order", "greedy_util", "greedy_random")
ON_CHIPS: tuple[tuple[int, Spread], ...] = ((1, "layers"), (2, "layers"), (2, "experts"), (3, "experts"))
TOKENS = (1, 2, 4, 8, 16, 64)
LEAST, MOST = EVENT_OVER_PLAN
LEAST_AT_RANDOM = 0.75  # of several layers: they differ, and count as alike


def placed(
    setting: Setting,
    parts: set[Part],
    strategy: Strategy,
    chips: int = 1,
    spread: Spread = "layers",
    *,
    expert_widths: Sequence[int] = (),
    **changes: Any,
) -> PlacedNetwork:
    usual = load_device("aimc-realistic").spec
    assert isinstance(usual, AimcSpec)
    # Of few tiles, but with the unit costs of a whole chip, hops among them.
    costs = {key: value for key, value in usual.costs.model_dump().items() if key.startswith("hop_")}
    given = {"preset": "aimc-realistic", "digital_units": 8, **setting.chip, "costs": costs}
    spec = load_device({**given, **changes}).spec
    assert isinstance(spec, AimcSpec)
    network = network_of(ModelSpec.model_validate({**SHAPE, **setting.model}), 8, parts, expert_widths)
    chip = spec.chips(chips)
    return PlacedNetwork(network, chip, map_network(network, chip, MappingSpec(strategy=strategy), spread=spread))


def of_rows(plan: CostPlan, tokens: int) -> tuple[int, int]:
    """(fs, pJ) of a step of so many tokens, none of which is sampled."""
    costs = evaluate(plan, shape_of(plan, tokens, 0, outputs=0))
    return costs.duration_fs, sum(coefficient * times for _, coefficient, times in costs.energy)


def event_fs(where: PlacedNetwork, experts: Sequence[Sequence[Ffn]], chosen: Sequence[Sequence[int]]) -> int:
    return tokens_through(where, experts, chosen).makespan_fs()


def ratios(where: PlacedNetwork, spread: Spread) -> dict[int, tuple[float, list[float]]]:
    """By tokens: event-driven model over plan, of all layers together, and of each."""
    term = plan_without_attention(where, by_expert=spread == "experts").experts
    assert term is not None
    found = {}
    for tokens in TOKENS:
        choices = ExpertChoices(term.experts, term.top_k, term.layers, None, tokens).draw(0, 0, tokens)
        counts = np.stack([np.bincount(np.concatenate(of_layer), minlength=term.experts) for of_layer in choices])
        ours = term.layer_features(counts)[:, 0]
        theirs = [
            event_fs(where, block.experts, chosen) for block, chosen in zip(where.network.blocks, choices, strict=True)
        ]
        found[tokens] = sum(theirs) / int(ours.sum()), [a / b for a, b in zip(theirs, ours.tolist(), strict=True)]
    return found


@pytest.mark.medium
@pytest.mark.parametrize("partial_sums", ["tile", "pool"])
@pytest.mark.parametrize(("chips", "spread"), ON_CHIPS)
@pytest.mark.parametrize("setting", MIXTURES, ids=lambda setting: setting.name)
def test_experts_that_share_tiles_take_what_every_event_takes(
    setting: Setting, chips: int, spread: Spread, partial_sums: str
) -> None:
    where = placed(setting, {"routed_experts"}, "moe_separated", chips, spread, partial_sums=partial_sums)
    for of_all, of_each in ratios(where, spread).values():
        assert of_all == pytest.approx(1, abs=0.01)
        assert of_each == pytest.approx([1] * 4, abs=0.04)


@pytest.mark.medium
@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize(("chips", "spread"), ON_CHIPS)
@pytest.mark.parametrize("setting", MIXTURES, ids=lambda setting: setting.name)
def test_scattered_experts_are_within_the_bounds_of_the_plan(
    setting: Setting, chips: int, spread: Spread, strategy: Strategy
) -> None:
    least = LEAST if strategy != "greedy_random" else LEAST_AT_RANDOM
    for of_all, _ in ratios(placed(setting, {"routed_experts"}, strategy, chips, spread), spread).values():
        assert least <= of_all <= MOST


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("setting", MIXTURES, ids=lambda setting: setting.name)
def test_single_layers_are_within_the_bounds_of_the_plan(setting: Setting, strategy: Strategy) -> None:
    """One layer, so that the plan has its tiles and not those of another one."""
    alone = Setting(setting.name, {**setting.model, "layers": 1}, setting.chip)
    for _, of_each in ratios(placed(alone, {"routed_experts"}, strategy), "layers").values():
        assert LEAST <= of_each[0] <= MOST


@pytest.mark.parametrize("strategy", ["moe_separated", "greedy_in_order"])
@pytest.mark.parametrize(("chips", "spread"), ON_CHIPS)
@pytest.mark.parametrize("setting", MIXTURES, ids=lambda setting: setting.name)
def test_energy_of_copies_is_that_of_their_events(
    setting: Setting, chips: int, spread: Spread, strategy: Strategy
) -> None:
    where = placed(setting, {"routed_experts"}, strategy, chips, spread)
    term = plan_without_attention(where, by_expert=spread == "experts").experts
    assert term is not None
    every = [list(range(term.experts))]
    theirs = sum(tokens_through(where, block.experts, every).active_pj() for block in where.network.blocks)
    ours = term.layer_features(np.ones((term.layers, term.experts), np.int64)).sum(axis=0)
    assert ours[5] == 0
    assert ours[6] == pytest.approx(theirs, rel=1e-6 if chips == 1 or spread == "experts" else 0.02)


@pytest.mark.parametrize("strategy", STRATEGIES[:3])
@pytest.mark.parametrize("setting", SHARED, ids=lambda setting: setting.name)
def test_ffns_of_all_tokens_are_rows(setting: Setting, strategy: Strategy) -> None:
    where = placed(setting, {"dense_ffn", "shared_experts"}, strategy)
    plan = plan_without_attention(where, by_expert=False)
    (row,) = plan.rows
    dense = "ffn" in setting.model
    assert (row.name, row.category, row.rows, row.runs) == (
        ("ffn", "fc", "tokens", "dense_layers") if dense else ("shared experts", "moe", "tokens", "moe_layers")
    )
    for tokens in TOKENS:
        theirs, theirs_pj = 0, 0.0
        for block in where.network.blocks:
            ffn = block.dense if dense else block.shared
            assert ffn is not None
            graph = tokens_through(where, [(ffn,)], [[0]] * tokens)
            theirs += graph.makespan_fs()
            theirs_pj += graph.active_pj()
        ours, ours_pj = of_rows(plan, tokens)
        assert theirs / ours == pytest.approx(1, abs=0.01)
        assert ours_pj == pytest.approx(theirs_pj, rel=0.01)  # sums of border chunks are smaller than we count


def both_fs(plan: CostPlan, counts: np.ndarray, tokens: int) -> int:
    """Shared and routed experts of all layers, given tokens of each routed one, (layers, experts)."""
    assert plan.experts is not None
    return of_rows(plan, tokens)[0] + int(plan.experts.layer_features(counts)[:, 0].sum())


@pytest.mark.parametrize("strategy", STRATEGIES[:3])
@pytest.mark.parametrize(("chips", "spread"), ON_CHIPS)
@pytest.mark.parametrize("setting", SHARED[-1:], ids=lambda setting: setting.name)
def test_shared_experts_work_beside_routed_ones(
    setting: Setting, chips: int, spread: Spread, strategy: Strategy
) -> None:
    """Never sooner than every event has it, and sooner than one after the other by what the shorter chain is."""
    where = placed(setting, {"shared_experts", "routed_experts"}, strategy, chips, spread)
    plan = plan_without_attention(where, by_expert=spread == "experts")
    in_turns = plan_without_attention(where, by_expert=spread == "experts", all_experts=False)
    assert plan.experts == in_turns.experts
    assert plan.experts is not None
    (row,), (alone,) = plan.rows, in_turns.rows
    assert 0 <= row.pieces[0][0] < alone.pieces[0][0]
    assert (row.pieces[0][1], row.energy) == (alone.pieces[0][1], alone.energy)
    term = plan.experts
    for tokens in TOKENS:
        choices = ExpertChoices(term.experts, term.top_k, term.layers, None, tokens).draw(0, 0, tokens)
        counts = np.stack([np.bincount(np.concatenate(of_layer), minlength=term.experts) for of_layer in choices])
        theirs = 0
        for block, chosen in zip(where.network.blocks, choices, strict=True):
            assert block.shared is not None
            everyone = [[*picked, term.experts] for picked in chosen]
            theirs += event_fs(where, [*block.experts, (block.shared,)], everyone)
        assert theirs <= MOST * both_fs(plan, counts, tokens)
        assert both_fs(plan, counts, tokens) < both_fs(in_turns, counts, tokens)


@given(st.integers(1, 4), st.data())
def test_no_queue_for_shared_resources_is_longer(experts: int, data: st.DataObject) -> None:
    """Copies and tokens that wait for all others at each of their resources, on any tiles."""
    resources = data.draw(st.integers(1, 4))
    fs = st.integers(0, 10**6)
    work = data.draw(st.lists(st.lists(fs, min_size=experts, max_size=experts), min_size=resources, max_size=resources))
    shared = data.draw(st.lists(fs, min_size=resources, max_size=resources))
    longer = st.integers(0, 10**6)
    chains = [max(row[e] for row in work) + data.draw(longer) for e in range(experts)]
    chain = max(shared) + data.draw(longer)
    copies = data.draw(st.lists(st.integers(0, 5), min_size=experts, max_size=experts).filter(any))
    tokens = data.draw(st.integers(1, 20))
    routed = [sum(c * w for c, w in zip(copies, row, strict=True)) for row in work]
    everything = [sum_ + tokens * own for sum_, own in zip(routed, shared, strict=True)]

    def time(start: int, own: Sequence[int], at: Sequence[int]) -> int:
        return start + max([busy - mine for busy, mine in zip(at, own, strict=True) if mine], default=0)

    columns = [[row[e] for row in work] for e in range(experts) if copies[e]]
    with_chains = list(zip([chains[e] for e in range(experts) if copies[e]], columns, strict=True))
    apart = max(time(*each, routed) for each in with_chains)
    together = max([time(chain, shared, everything), *(time(*each, everything) for each in with_chains)])
    hidden = min(one - max(column) for one, column in with_chains)
    busiest = max(shared)
    assert together <= apart + tokens * busiest + max(0, chain - busiest - hidden)
