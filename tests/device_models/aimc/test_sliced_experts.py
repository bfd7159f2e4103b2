"""Experts that are cut over chips: a small one by hand, what slices keep of the whole, and every event of theirs."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.cluster.validation.aimc_plan import Setting
from pimserve.device_models.aimc.chip import Chip, Link
from pimserve.device_models.aimc.crossbar_experts import SlicedExperts
from pimserve.device_models.aimc.event.graph import Sequence
from pimserve.device_models.aimc.event.simulate import simulate
from pimserve.device_models.aimc.ffn_pass import Pass, pass_of_expert
from pimserve.device_models.aimc.ffn_serving import plan_without_attention
from pimserve.device_models.aimc.mapped_model import slice_widths
from pimserve.device_models.aimc.mapping import MappingSpec, Strategy, map_network
from pimserve.device_models.aimc.network import network_of
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.aimc.reduction import Reduction
from pimserve.device_models.aimc.walk import Walker
from pimserve.device_models.operators import ALL_PARTS, Part
from tests.device_models.aimc.experts_by_event import tokens_through
from tests.device_models.aimc.strategies import chip_of, model
from tests.device_models.aimc.test_ffn_serving import MIXTURES, placed, ratios

ROUTED: frozenset[Part] = frozenset({"routed_experts"})
CONTEXT = 200
LINK = Link(0.05, 1.0, 1.0)  # 50 ns and a byte a ns


def small(slices: int, parts: frozenset[Part] = ROUTED, **changes: Any) -> PlacedNetwork:
    """Two experts of 16 x 16 in each of two layers, one picked, on as many 8 x 8 tiles as there are chunks."""
    chip: Chip = chip_of(chips=2 * slices, link=LINK, **changes)
    shape = model(hidden=16, layers=2, moe={"experts": 2, "top_k": 1, "intermediate": 16})
    widths = slice_widths(16, slices, 8) if slices > 1 else ()
    network = network_of(shape, 8, parts, widths)
    spec = MappingSpec(strategy="greedy_in_order")
    return PlacedNetwork(network, chip, map_network(network, chip, spec, spread="experts"))


def one(where: PlacedNetwork) -> Pass:
    return pass_of_expert(where, where.network.blocks[0].experts[0])


def test_a_small_expert_on_two_chips_by_hand() -> None:
    """An MVM takes 100 ns, a hop 5 and 1 a byte, a digital operation 2 and 1 an element."""
    found = one(small(2))
    up = 13 + 100 + 13 + 10  # to and from a crossbar of 8 rows and columns; two row blocks are summed up
    between, down = 10 + 10, 13 + 100 + 13  # activation and product of 8 elements; one row block
    reduction = 5 + 16 + 50 + 16 + 10  # a block of 8 partial sums of 16 bit: on the chip, over the link, one sum
    assert found.chain_ps == (up + between + down + reduction) * 1000
    assert found.links_ps == {0: 16_000, 1: 16_000}
    assert found.tiles_ps.tolist() == [100_000] * 12
    # Of 64 units: sums of gate and up projection, activation, product, and a sum of partial sums.
    assert found.digital_ps == {0: pytest.approx(50_000 / 64), 1: pytest.approx(50_000 / 64)}
    hop, add = 0.5 + 8 * 0.01, 0.008
    over_link = 0.5 + 16 * 0.01 + 16 * 8 * 0.001
    sums = 4 + 2 + 2  # of gate and up projection; products; over the link
    assert found.nj == pytest.approx(12 * 10 + 24 * hop + 2 * 8 * add + sums * add + 2 * over_link)


def test_copies_wait_for_the_busiest_of_tiles_and_links() -> None:
    for gb_per_s, wait in ((1.0, 100), (0.1, 160)):
        chip = small(2).chip
        where = small(2)
        where.chip = replace(chip, link=Link(0.05, gb_per_s, 1.0))
        term = plan_without_attention(where, by_expert=True).experts
        assert isinstance(term, SlicedExperts)
        assert (term.groups, term.chips, term.slices) == (2, 2, 2)
        alone, three = (int(term.layer_features(np.array([[copies, 0]]))[0, 0]) for copies in (1, 3))
        assert alone == term.chains[0]
        assert three - alone == 2 * wait * 10**6


def test_busy_times_are_those_of_tiles_and_digital_units() -> None:
    where = small(2)
    term = plan_without_attention(where, by_expert=True).experts
    assert term is not None
    _, tiles, digital, tiles_most, digital_most, *_ = term.layer_features(np.array([[4, 2]]))[0].tolist()
    assert (tiles, tiles_most) == (3 * 10**8, 4 * 10**8)
    each = round(50e6 / 64)
    assert (digital, digital_most) == (3 * each, 4 * each)


@given(st.integers(1, 2000), st.integers(1, 64), st.integers(1, 40))
def test_slices_make_up_the_width(width: int, tier: int, slices: int) -> None:
    slices = min(slices, -(-width // tier))
    widths = slice_widths(width, slices, tier)
    assert len(widths) == slices
    assert sum(widths) == width
    assert min(widths) > 0
    assert [-(-each // tier) for each in widths[:-1]] == [each // tier for each in widths[:-1]]
    blocks = [-(-each // tier) for each in widths]
    assert max(blocks) - min(blocks) <= 1


@given(st.integers(1, 3000), st.integers(2, 20))
def test_reductions_sum_up_every_block_of_every_chip_once(cols: int, slices: int) -> None:
    reduction = Reduction(chip_of(chips=slices, link=LINK), cols, slices)
    owned = [block for number in range(slices) for block in reduction.own(number)]
    assert owned == list(range(reduction.blocks))
    assert sum(size for _, _, size in reduction.sent()) == reduction.bytes_sent
    out, came = Counter[int](), Counter[int]()
    for sender, receiver, size in reduction.sent():
        out[sender] += size
        came[receiver] += size
    for number in range(slices):
        assert reduction.link_ps(number) == max(out[number], came[number]) * 1000  # a byte a ns
        assert reduction.digital_ps(number) == (slices - 1) * len(reduction.own(number)) * reduction.add.ps


WIDE = Setting(
    "8 gated experts, top 2, 1024 wide",
    {**MIXTURES[0].model, "hidden": 1024},
    {"tiles": 64, "tiers": 32},
)
CUT = [(setting, slices) for setting in (*MIXTURES[:2], WIDE) for slices in (2, 3)]


def sliced(setting: Setting, slices: int, parts: frozenset[Part], strategy: Strategy, **changes: Any) -> PlacedNetwork:
    """Each expert on as many chips."""
    moe = setting.model["moe"]
    widths = slice_widths(moe["intermediate"], slices, 512) if slices > 1 else ()
    return placed(setting, set(parts), strategy, moe["experts"] * slices, "experts", expert_widths=widths, **changes)


@pytest.mark.parametrize(("setting", "slices"), CUT)
def test_slices_keep_weights_crossbars_products_and_sums(setting: Setting, slices: int) -> None:
    whole, cut = (sliced(setting, number, ROUTED, "greedy_in_order") for number in (1, slices))
    assert cut.network.parameters == whole.network.parameters
    assert cut.network.tiers(512, 512) == whole.network.tiers(512, 512)
    for block, of_cut in zip(whole.network.blocks, cut.network.blocks, strict=True):
        for expert, parts in zip(block.experts, of_cut.experts, strict=True):
            chips = [cut.chip_of(matrix) for ffn in parts for matrix in ffn.matrices]
            assert sorted(set(chips)) == list(range(chips[0], chips[0] + slices))
            before, after, reduction = pass_of_expert(whole, expert), pass_of_expert(cut, parts), cut.reduction(parts)
            assert after.tiles_ps.sum() == before.tiles_ps.sum()
            assert after.nj - reduction.hops_nj == pytest.approx(before.nj)  # some of the same sums come over the link


# Each strategy, and each place of partial sums; the other pairs of them are slow.
WAYS = [
    ("moe_separated", "pool"),
    ("greedy_in_order", "tile"),
    ("greedy_util", "pool"),
    pytest.param("moe_separated", "tile", marks=pytest.mark.deep),
    pytest.param("greedy_in_order", "pool", marks=pytest.mark.deep),
    pytest.param("greedy_util", "tile", marks=pytest.mark.deep),
]


@pytest.mark.medium
@pytest.mark.parametrize(("strategy", "partial_sums"), WAYS)
@pytest.mark.parametrize(("setting", "slices"), CUT)
def test_sliced_experts_take_what_every_event_takes(
    setting: Setting, slices: int, strategy: Strategy, partial_sums: str
) -> None:
    where = sliced(setting, slices, ROUTED, strategy, partial_sums=partial_sums)
    even = setting.model["moe"]["intermediate"] // 512 % slices == 0
    for of_all, _ in ratios(where, "experts").values():
        # The plan has partial sums leave after the widest slice, though the chip that has it may be where they go.
        assert 1 - (0.005 if even else 0.1) <= of_all <= 1.0005
    term = plan_without_attention(where, by_expert=True).experts
    assert term is not None
    graphs = [tokens_through(where, block.experts, [range(term.experts)]) for block in where.network.blocks]
    ours = term.layer_features(np.ones((term.layers, term.experts), np.int64)).sum(axis=0)
    assert ours[6] == pytest.approx(sum(graph.active_pj() for graph in graphs), abs=term.layers * term.experts)


@pytest.mark.parametrize("partial_sums", ["tile", "pool"])
@pytest.mark.parametrize(("setting", "slices"), CUT)
def test_a_token_through_the_whole_model_takes_what_its_events_take(
    setting: Setting, slices: int, partial_sums: str
) -> None:
    times, energies = [], []
    for number in (1, slices):
        where = sliced(setting, number, ALL_PARTS, "moe_separated", partial_sums=partial_sums)
        experts = setting.model["moe"]["experts"]
        walk = Walker(where, [(1.0,) * experts]).walk()
        event = simulate(where.network, where.chip, where.mapping, [Sequence(1, 1, CONTEXT - 1)])
        chain, energy = sum(walk.chain_ps.values()), sum(walk.energy_nj.values()) + sum(walk.sampled_nj.values())
        for layer in walk.attention:
            fixed, slope = layer.exposed_ps
            chain += fixed + slope * CONTEXT
            energy += layer.read_nj[1] * CONTEXT + layer.compute_nj[0] + layer.compute_nj[1] * CONTEXT
            energy += layer.read_nj[0] + layer.write.nj
        times.append(event.makespan_ps / chain)
        energies.append((event.total_energy_nj - event.energy_nj["passive"]) / energy)
    assert times[1] == pytest.approx(times[0], abs=0.035)  # no further off than with whole experts
    assert energies[1] == pytest.approx(energies[0], abs=0.001)


def test_the_events_of_chips_without_communication_have_no_hops() -> None:
    where = sliced(WIDE, 2, ALL_PARTS, "moe_separated")
    both = [
        simulate(where.network, where.chip, where.mapping, [Sequence(1, 1, 0)], communication=on).op_counts
        for on in (True, False)
    ]
    assert both[0]["link"] > 0
    assert both[1]["link"] == both[1]["hop"] == 0
    assert both[0]["add"] == both[1]["add"]
