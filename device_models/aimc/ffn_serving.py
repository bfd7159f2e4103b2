"""The cost plan of chips that hold FFNs, routed experts or the output head, while attention is on other devices.

Routed experts are a term of their own (`crossbar_experts`). Dense FFNs, shared experts and the output head are row
terms: tokens queue one behind the other for the busiest tile, or the digital units, and one of them takes its chain.

Shared experts work beside the routed ones of their layer. A copy of a routed expert then waits for at most what n
tokens leave on the busiest resource of the shared ones (n t), and a token of these for at most what all copies leave on
the busiest of the routed ones. The time T of these holds that, beside what the chain C of one copy is longer than its
own part c. So with a chain C' of the shared ones both have ended by

    max(T + n t, C' + (n - 1) t + T - (C - c)) = T + n t + max(0, (C' - t) - (C - c)),

on whatever tiles they lie. Where they share none it is sooner, by up to the shorter of both queues.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction
from functools import lru_cache

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts, CrossbarUnit, SlicedExperts, Work
from pimserve.device_models.aimc.ffn_pass import ExpertPasses, Pass, pass_of_ffn, pass_of_head
from pimserve.device_models.aimc.operation_costs import fs_of, pj_of
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.aimc.serving import BUSIEST_TILE, DIGITAL, passive_power
from pimserve.device_models.operators import Category, RowKind, Runs
from pimserve.device_models.plan import FS_PER_PS, CostPlan, Energy, RowTerm

_PARTS_OF_CHIPS = 1000  # denominator of what the fullest chip has


def plan_without_attention(
    placed: PlacedNetwork,
    idle_gating: float = 1.0,
    *,
    by_expert: bool,
    lm_head: bool = True,
    all_experts: bool = True,
) -> CostPlan:
    """The cost plan of the chips.

    Args:
        placed: what lies on them, and where.
        idle_gating: share of its passive power that a chip without work draws.
        by_expert: whether each chip has a share of every layer's experts; else it has layers.
        lm_head: whether the product with the vocabulary counts, where it is on the chips.
        all_experts: whether every token has picks among the routed experts here, if there are any.
    """
    network, chip = placed.network, placed.chip
    dense = [pass_of_ffn(placed, block.dense) for block in network.blocks if block.dense is not None]
    shared = [pass_of_ffn(placed, block.shared) for block in network.blocks if block.shared is not None]
    head = [] if network.head is None else [pass_of_head(placed, network.head, lm_head=lm_head)]
    experts = _experts(placed, by_expert=by_expert) if any(block.experts for block in network.blocks) else None
    hidden_fs = 0 if experts is None or not all_experts else _beside_own_work_fs(experts)
    rows = (
        _row_term("ffn", "fc", "tokens", "dense_layers", dense),
        _row_term("shared experts", "moe", "tokens", "moe_layers", shared, hidden_fs),
        _row_term("lm head", "fc", "outputs", "last", head),
    )
    return CostPlan(
        devices=chip.chips,
        data_parallel=1,
        units=(BUSIEST_TILE, DIGITAL),
        rows=tuple(row for row in rows if row is not None),
        decode=(),
        prefill=(),
        experts=experts,
        passive=passive_power(chip, idle_gating, in_turns=False),
    )


def _row_term(
    name: str, category: Category, rows: RowKind, runs: Runs, passes: Sequence[Pass], hidden_fs: int = 0
) -> RowTerm | None:
    """FFNs of layers, one after the other; of each so much of the chain is hidden behind what is beside it."""
    if not passes:
        return None
    first = fs_of(sum(max(0.0, each.chain_ps - each.busiest_ps - hidden_fs / FS_PER_PS) for each in passes))
    further = fs_of(sum(each.busiest_ps for each in passes))
    energy = Energy(compute_per_row=pj_of(sum(each.nj for each in passes)))
    return RowTerm(name, category, BUSIEST_TILE, rows, ((first, further),), energy, runs=runs)


@lru_cache(maxsize=4)
def _experts(placed: PlacedNetwork, *, by_expert: bool) -> CrossbarExperts:
    """Routed experts.

    All layers count as alike, since a draw of tokens does not say which layer it is of, and a step takes the sum over
    layers. An expert's chain is the mean over them, and what experts leave on tiles and pools that of the layer in the
    middle, by what the busiest of these has to do for a token of each expert. (With moe_separated there is hardly a
    difference.) Groups count as alike as well, as the one with most to do there: a layer waits for the slowest.
    """
    chip, blocks = placed.chip, [block for block in placed.network.blocks if block.experts]
    experts = len(blocks[0].experts)
    slices = placed.network.slices
    holders = chip.chips // slices
    groups = holders if by_expert and experts % holders == 0 else 1
    each = experts // groups
    through = ExpertPasses(placed)
    passes = [[through.of(expert) for expert in block.experts] for block in blocks]
    chains = np.mean([[one.chain_ps for one in layer] for layer in passes], axis=0).reshape(groups, each).max(axis=0)
    typical = [
        sorted((layer[first : first + each] for layer in passes), key=_busiest_ps)[len(passes) // 2]
        for first in range(0, experts, each)
    ]
    most = max(typical, key=_busiest_ps)
    chains = np.maximum(chains, [one.busiest_ps for one in most])
    tiles = _work_of_tiles(most, chip.tiles)
    entries = Counter(placed.entry(ffn) for block in blocks for expert in block.experts for ffn in expert)
    share = Fraction(max(entries.values()) * chip.chips, sum(entries.values()))
    fullest = share.limit_denominator(_PARTS_OF_CHIPS) if groups == 1 else Fraction(1)
    term = CrossbarExperts(
        layers=len(blocks),
        experts=experts,
        top_k=blocks[0].top_k,
        groups=groups,
        chips=chip.chips // groups,
        units=(CrossbarUnit(BUSIEST_TILE), CrossbarUnit(DIGITAL)),
        chains=tuple(fs_of(chain) for chain in chains),
        tiles=tiles,
        digital=_work_of_chips([one.digital_ps for one in most]),
        copy_pj=pj_of(float(np.mean([one.nj for layer in passes for one in layer]))),
        fullest=(fullest.numerator, fullest.denominator),
    )
    if slices == 1:
        return term
    own = {each.name: getattr(term, each.name) for each in fields(term)}
    return SlicedExperts(**own, slices=slices, links=_work_of_chips([one.links_ps for one in most]))


def _beside_own_work_fs(experts: CrossbarExperts) -> int:
    """Of any expert, by what the chain of a copy is longer at least than its work on any resource."""
    work = np.array([row for resource in experts.resources for row in resource], np.int64)
    return int((np.array(experts.chains, np.int64) - work.max(axis=0)).min())


def _busiest_ps(passes: Iterable[Pass]) -> float:
    """The most that a tile, a pool of digital units or a link has to do for a token of each expert."""
    passes = list(passes)
    place = np.concatenate([each.tiles for each in passes])
    tiles = np.bincount(place - place.min(), np.concatenate([each.tiles_ps for each in passes]))
    pools: Counter[int] = Counter()
    links: Counter[int] = Counter()
    for each in passes:
        pools.update(each.digital_ps)
        links.update(each.links_ps)
    return max(float(tiles.max()), *pools.values(), *links.values())


def _work_of_tiles(passes: Sequence[Pass], tiles: int) -> tuple[Work, ...]:
    """fs that a token of each expert keeps tiles busy, by chip; chips have `tiles`."""
    used = np.unique(np.concatenate([each.tiles for each in passes]))
    busy = np.zeros((len(used), len(passes)), np.int64)
    for expert, each in enumerate(passes):
        busy[np.searchsorted(used, each.tiles), expert] = each.tiles_ps
    of_chips = np.split(busy, np.flatnonzero(np.diff(used // tiles)) + 1)
    return tuple(_as_work(_undominated(of_chip)) for of_chip in of_chips)


def _work_of_chips(busy_ps: Sequence[Mapping[int, float]]) -> Work:
    """fs that a token of each expert keeps what each chip has one of busy."""
    chips = sorted({chip for of_expert in busy_ps for chip in of_expert})
    return tuple(tuple(fs_of(of_expert.get(chip, 0.0)) for of_expert in busy_ps) for chip in chips)


def _undominated(rows: IntArray) -> IntArray:
    """Of (n, experts) rows, those of which no other has as much of every expert."""
    there = rows[:, rows.any(axis=0)]
    there, first = np.unique(there, axis=0, return_index=True)
    return rows[first[[int((there >= row).all(axis=1).sum()) == 1 for row in there]]]


def _as_work(busy_ps: IntArray) -> Work:
    return tuple(tuple(fs_of(ps) for ps in row) for row in busy_ps.tolist())
