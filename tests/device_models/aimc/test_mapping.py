"""Mapping: the reference cases chunk for chunk, each strategy's rules spelled out naively, and what always holds."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.mapping import Mapping, MappingSpec, map_network
from pimserve.device_models.aimc.network import Ffn, Network, gpt2_like, network_of
from pimserve.device_models.aimc.operation_costs import Dram, PlaceholderCosts
from pimserve.device_models.catalogue import load_model
from pimserve.errors import InputError
from tests.examples import examples

VALIDATION = Path(__file__).parents[3] / "cluster/validation"
REFERENCE = (VALIDATION / "aimc_cases.json", VALIDATION / "aimc_paper_scale.json")
CASES = {case["id"]: case for path in REFERENCE for case in json.loads(path.read_text())["cases"]}
STRATEGIES = ("greedy_in_order", "greedy_util", "moe_separated", "greedy_random", "greedy_top2")


def chip_of(tiles: int, tiers: int, shape: tuple[int, int] = (512, 512), chips: int = 1) -> Chip:
    return Chip(tiles, tiers, *shape, 4, 1, PlaceholderCosts(), Dram(gb=1, gb_per_s=1), 0.0, chips=chips)


@pytest.mark.parametrize("name", CASES)
def test_reference_case(name: str) -> None:
    case = CASES[name]
    model, hardware = case["model"], case["hardware"]
    network = gpt2_like(
        hidden=model["d_model"],
        heads=model["heads"],
        ffn_width=model["d_ff"],
        layers=model["layers"],
        vocab=model["vocab"],
        positions=case["workload"]["target_len"],
        activation=model["activation"],
        experts=model.get("num_experts", 0),
        top_k=model.get("top_k", 0),
        moe_every=model.get("moe_frequency", 1),
    )
    spec = MappingSpec(**case["mapping_strategy"])
    chip = chip_of(hardware["tiles"], hardware["tiers"], hardware["tier_shape"])
    mapping = map_network(network, chip, spec, expert_density=model.get("expert_density"))
    theirs = {key.removeprefix("decoder_stack."): value for key, value in case["derived"]["mapping"].items()}
    assert theirs
    for m, matrix in enumerate(network.matrices):
        if matrix.name in theirs:
            chunks = zip(mapping.tiles[m], mapping.tiers[m], strict=True)
            assert [list(chunk) for chunk in chunks] == theirs.pop(matrix.name), matrix.name
    assert not theirs


class Naive:
    """The strategies as they are described, one chunk at a time and looking at every tile each time."""

    def __init__(self, network: Network, chip: Chip, spec: MappingSpec, joint: list[list[float]]) -> None:
        self.network, self.chip, self.spec, self.joint = network, chip, spec, joint
        self.fill = [0] * chip.tiles
        self.weight = [0.0] * chip.tiles
        self.places: list[list[tuple[int, int]]] = [[] for _ in network.matrices]

    def map(self) -> list[list[tuple[int, int]]]:
        owner = {block.router: block for block in self.network.blocks if block.experts}
        modules = [m for m, matrix in enumerate(self.network.matrices) if matrix.role != "expert"]
        if self.spec.strategy == "moe_separated":
            modules.sort(key=lambda m: m not in owner)
        for m in modules:
            matrix = self.network.matrices[m]
            if "embedding" in matrix.role:
                self.embedding(m, min(1.0, self.chip.tier_rows / matrix.rows))
            else:
                self.put(m, 1.0)
            if m in owner:
                self.experts([ffn for (ffn,) in owner[m].experts])
        return self.places

    def embedding(self, m: int, weight: float) -> None:
        fill, weights = self.fill.copy(), self.weight.copy()
        row = self.put(m, weight, only=self.network.matrices[m].grid(self.chip.tier_rows, self.chip.tier_cols)[1])
        self.fill, self.weight, self.places[m] = fill, weights, []
        self.put(m, weight, row if self.spec.stack_embedding else None)

    def experts(self, ffns: tuple[Ffn, ...]) -> None:
        weight = 1 / len(ffns)
        if self.spec.strategy == "moe_separated":
            for stack in zip(*((*ffn.up, ffn.down) for ffn in ffns), strict=True):
                tiles = self.put(stack[0], weight, room=len(ffns))
                for m in stack[1:]:
                    self.put(m, weight, tiles)
            return
        for e in self.order(ffns):
            for m in ffns[e].up:
                tiles = self.put(m, weight)
            self.put(ffns[e].down, weight, None if self.spec.split_ffn else tiles)

    def order(self, ffns: tuple[Ffn, ...]) -> list[int]:
        if self.spec.strategy != "greedy_top2":
            return list(range(len(ffns)))
        rows, cols = self.network.matrices[ffns[0].up[0]].grid(self.chip.tier_rows, self.chip.tier_cols)
        planar = rows * cols * (len(ffns[0].up) + (1 if self.spec.split_ffn else 0))
        last = max(tile for tile, fill in enumerate(self.fill) if fill == max(self.fill))
        offset, order = (last + 1) % self.chip.tiles, []
        alone = [float(np.sum(row)) for row in self.joint]
        while len(order) < len(ffns):
            sweep: list[int] = []
            places = (self.chip.tiles - offset) / planar
            for place in range(math.ceil(places)):
                left = [e for e in range(len(ffns)) if e not in order]
                if not left:
                    break
                if place == math.ceil(places) - 1 and places % 1 > 0:
                    best = min(left, key=lambda e: (alone[e], e))
                else:
                    liking = {e: alone[e] * (sum(self.joint[e][s] for s in sweep) if sweep else 1.0) for e in left}
                    best = min(left, key=lambda e: (-liking[e], e))
                sweep.append(best)
                order.append(best)
            offset = (math.ceil(places) * planar + offset) % self.chip.tiles
        return order

    def put(
        self, m: int, weight: float, tiles: list[int] | None = None, room: int = 0, only: int | None = None
    ) -> list[int]:
        grid = self.network.matrices[m].grid(self.chip.tier_rows, self.chip.tier_cols)
        chunks = only or grid[0] * grid[1]
        used: list[int] = []
        for chunk in range(chunks):
            if tiles is not None:
                tile = tiles[chunk % len(tiles)]
                if self.fill[tile] >= self.chip.tiers:
                    tile = self.fill.index(min(self.fill))
            elif self.spec.strategy in {"greedy_util", "moe_separated"}:
                free = [t for t in range(self.chip.tiles) if self.fill[t] + room < self.chip.tiers]
                fresh = [t for t in free if t not in used] if chunks <= self.chip.tiles else free
                tile = min(fresh or free, key=lambda t: (self.weight[t], t))
            else:
                tile = self.fill.index(min(self.fill))
            used.append(tile)
            self.places[m].append((tile, self.fill[tile]))
            self.fill[tile] += 1
            self.weight[tile] += weight
        return used


def little(layers: int, experts: int, vocab: int = 40, ffn_width: int = 24) -> Network:
    return gpt2_like(
        hidden=12,
        heads=2,
        ffn_width=ffn_width,
        layers=layers,
        vocab=vocab,
        positions=20,
        experts=experts,
        top_k=min(2, experts),
        moe_every=2,
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[Network, Chip, MappingSpec, list[list[float]]]:
    """A little network on one chip that holds it."""
    experts = draw(st.sampled_from([0, 1, 2, 3, 6, 8]))
    network = little(draw(st.integers(1, 4)), experts, draw(st.sampled_from([8, 40])), draw(st.sampled_from([8, 24])))
    shape = draw(st.sampled_from([(8, 8), (4, 8), (8, 4), (5, 5)]))
    tiles = draw(st.integers(1, 40))
    spare = draw(st.integers(0, 3))
    strategy = draw(st.sampled_from(STRATEGIES if experts else STRATEGIES[:4]))
    split = strategy == "moe_separated" or draw(st.booleans())
    spec = MappingSpec(strategy=strategy, split_ffn=split, stack_embedding=draw(st.booleans()), seed=draw(st.just(7)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    upper = np.triu(rng.integers(1, 9, (experts, experts)), 1) / 64
    tiers = -(-network.tiers(*shape) // tiles) + spare
    if strategy == "moe_separated":
        tiers += 2 * experts
    return network, chip_of(tiles, tiers, shape), spec, (upper + upper.T).tolist()


def check_laws(network: Network, chip: Chip, mapping: Mapping) -> None:
    """Every chunk has a tier of its own, and a tile's tiers are used from the first on."""
    on: list[list[int]] = [[] for _ in range(chip.all_tiles)]
    for matrix, tiles, tiers in zip(network.matrices, mapping.tiles, mapping.tiers, strict=True):
        assert len(tiles) == len(tiers) == math.prod(matrix.grid(chip.tier_rows, chip.tier_cols))
        for tile, tier in zip(tiles, tiers, strict=True):
            on[tile].append(tier)
    for used, fill in zip(on, mapping.fill, strict=True):
        assert sorted(used) == list(range(fill))
        assert fill <= chip.tiers


def same_tiles(network: Network, mapping: Mapping) -> bool:
    """Whether all experts of a layer have their matrices on the same tiles."""
    return all(
        mapping.tiles[m] == mapping.tiles[first]
        for block in network.blocks
        for (ffn,) in block.experts
        for m, first in zip(ffn.matrices, block.experts[0][0].matrices, strict=True)
    )


@examples(80)
@given(problems())
def test_as_described(problem: tuple[Network, Chip, MappingSpec, list[list[float]]]) -> None:
    network, chip, spec, joint = problem
    mapping = map_network(network, chip, spec, expert_density=joint or None)
    check_laws(network, chip, mapping)
    if spec.strategy != "greedy_random":
        places = [list(zip(*chunks, strict=True)) for chunks in zip(mapping.tiles, mapping.tiers, strict=True)]
        assert places == Naive(network, chip, spec, joint).map()


@examples(80)
@given(
    strategy=st.sampled_from(STRATEGIES),
    spread=st.sampled_from(["layers", "experts"]),
    chips=st.integers(2, 5),
    layers=st.integers(1, 5),
    tiles=st.integers(3, 30),
    spare=st.integers(0, 4),
)
def test_several_chips(strategy: Any, spread: Any, chips: int, layers: int, tiles: int, spare: int) -> None:
    network, density = little(layers, 6), np.ones((6, 6)).tolist()
    tiers = -(-network.tiers(8, 8) // (tiles * chips)) + spare
    spec = MappingSpec(strategy=strategy)
    for _ in range(40):
        chip = chip_of(tiles, tiers, (8, 8), chips)
        try:
            mapping = map_network(network, chip, spec, spread=spread, expert_density=density)
        except InputError as error:
            assert "the network does not fit" in error.message  # noqa: PT017
            tiers += 1
        else:
            break
    check_laws(network, chip, mapping)
    chip_of_matrix = [{tile // tiles for tile in mine} for mine in mapping.tiles]
    assert all(len(where) == 1 for where in chip_of_matrix)
    if spread == "layers":
        assert strategy != "moe_separated" or same_tiles(network, mapping)
        order = [
            min(where) for where, matrix in zip(chip_of_matrix, network.matrices, strict=True) if not matrix.expert
        ]
        assert all(before <= after for before, after in pairwise(order)) or strategy == "moe_separated"
    else:
        for block in network.blocks:
            where = [min(chip_of_matrix[ffn.down]) for (ffn,) in block.experts]
            assert all(min(chip_of_matrix[ffn.up[0]]) == on for (ffn,), on in zip(block.experts, where, strict=True))
            counts = [where.count(number) for number in range(chips)] if where else [0]
            assert where == sorted(where)
            assert max(counts) - min(counts) <= 1


def test_random_depends_on_the_seed_alone() -> None:
    network, chip = little(3, 6), chip_of(20, 40, (8, 8))
    first, again, other = (
        map_network(network, chip, MappingSpec(strategy="greedy_random", seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_random_fills_evenly() -> None:
    network, chip = little(3, 6), chip_of(20, 40, (8, 8))
    spec = MappingSpec(strategy="greedy_random", stack_embedding=False)
    fill = map_network(network, chip, spec).fill
    assert max(fill) - min(fill) <= 1


def test_top1_density_orders_experts_by_their_own_probability() -> None:
    # An expert takes 6 of 12 tiles and 7 are taken: one expert straddles the end of the first sweep, so it is the least
    # likely one. The next sweep starts at tile 1, with the most likely one.
    network = gpt2_like(
        hidden=8, heads=2, ffn_width=24, layers=1, vocab=8, positions=8, experts=3, top_k=1, moe_every=1
    )
    chip, spec = chip_of(12, 9, (8, 8)), MappingSpec(strategy="greedy_top2")
    mapping = map_network(network, chip, spec, expert_density=[0.2, 0.5, 0.3])
    firsts = [(mapping.tiers[ffn.up[0]][0], mapping.tiles[ffn.up[0]][0]) for (ffn,) in network.blocks[0].experts]
    assert sorted(range(3), key=firsts.__getitem__) == [0, 1, 2]
    likely = map_network(network, chip, spec, expert_density=[0.5, 0.2, 0.3])
    firsts = [(likely.tiers[ffn.up[0]][0], likely.tiles[ffn.up[0]][0]) for (ffn,) in network.blocks[0].experts]
    assert sorted(range(3), key=firsts.__getitem__) == [1, 0, 2]


def test_mixtral_fills_six_chips_to_the_last_place() -> None:
    # A tile of 64 tiers takes 7 chunks of 8 experts; 7 x 512 tiles x 6 chips = 32 layers x 672 chunks.
    network, chip = network_of(load_model("mixtral-8x7b")), chip_of(512, 64, chips=6)
    mapping = map_network(network, chip, MappingSpec())
    check_laws(network, chip, mapping)
    assert sum(mapping.fill) == 178_416
    assert same_tiles(network, mapping)


@pytest.mark.medium
def test_gated_experts_and_latent_attention_on_many_chips() -> None:
    network, chip = network_of(load_model("deepseek-v3")), chip_of(512, 64, chips=100)
    mapping = map_network(network, chip, MappingSpec(), spread="experts")
    check_laws(network, chip, mapping)
    with pytest.raises(InputError, match="no number of such chips will do"):
        map_network(network, chip, MappingSpec())


@pytest.mark.parametrize(("spread", "least"), [("layers", 6), ("experts", 8)])
def test_too_few_chips(spread: Any, least: int) -> None:
    network = network_of(load_model("mixtral-8x7b"))
    with pytest.raises(InputError, match=rf"needs 178,416 tiers of 512 x 512.*have 131,072.*use {least}") as caught:
        map_network(network, chip_of(512, 64, chips=4), MappingSpec(), spread=spread)
    assert caught.value.where == "cluster.devices_per_node"
    map_network(network, chip_of(512, 64, chips=least), MappingSpec(), spread=spread)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_tier_too_few(strategy: Any) -> None:
    network, density = little(2, 4), np.ones(4).tolist()
    tiers = network.tiers(8, 8)
    with pytest.raises(InputError, match=f"needs {tiers} tiers of 8 x 8.*have {tiers - 1}"):
        map_network(network, chip_of(1, tiers - 1, (8, 8)), MappingSpec(strategy=strategy), expert_density=density)
    fitting = map_network(network, chip_of(1, tiers, (8, 8)), MappingSpec(strategy=strategy), expert_density=density)
    assert fitting.fill == (tiers,)


def test_experts_without_a_tile_for_all_of_them() -> None:
    network = little(2, 8)
    with pytest.raises(InputError, match=r"puts a chunk of 8 experts on one tile.*takes 0 of.*more than 8 tiers"):
        map_network(network, chip_of(100, 8, (8, 8)), MappingSpec())


@pytest.mark.parametrize(
    ("spec", "options", "where"),
    [
        (MappingSpec(split_ffn=False), {}, "mapping.split_ffn"),
        (MappingSpec(strategy="greedy_top2"), {}, "mapping.strategy"),
        (MappingSpec(strategy="greedy_top2"), {"expert_density": [0.5, 0.5]}, "expert_density"),
        (MappingSpec(strategy="greedy_top2"), {"expert_density": [[0.1] * 6] * 5}, "expert_density"),
        (MappingSpec(strategy="greedy_top2"), {"expert_density": [[0.1] * 6, [0.1] * 5]}, "expert_density"),
        (MappingSpec(strategy="greedy_top2"), {"expert_density": [-0.1] * 6}, "expert_density"),
        (MappingSpec(), {"spread": "experts"}, "cluster.devices_per_node"),
    ],
)
def test_what_a_strategy_lacks(spec: MappingSpec, options: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as caught:
        map_network(little(2, 6), chip_of(40, 40, (8, 8), chips=8), spec, **options)
    assert caught.value.where == where


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_dense_model_needs_nothing_of_experts(strategy: Any) -> None:
    network, chip = little(2, 0), chip_of(40, 40, (8, 8))
    check_laws(network, chip, map_network(network, chip, MappingSpec(strategy=strategy)))


def test_strategies_in_either_case() -> None:
    assert MappingSpec(strategy="GREEDY_UTIL") == MappingSpec(strategy="greedy_util")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="greedy_in_order"):
        MappingSpec(strategy="spiral")  # type: ignore[arg-type]
