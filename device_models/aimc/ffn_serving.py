"""The cost plan of chips that hold FFNs, routed experts or the output head, while attention is on other devices.

Routed experts are a term of their own (`crossbar_experts`). Dense FFNs, shared experts and the output head are row
terms: tokens queue one behind the other for the busiest tile, or the digital units, and one of them takes its chain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

from pimserve.arrays import IntArray
from pimserve.device_models.aimc.crossbar_experts import CrossbarExperts, CrossbarUnit, Work
from pimserve.device_models.aimc.ffn_pass import Pass, pass_of_ffn, pass_of_head
from pimserve.device_models.aimc.operation_costs import fs_of, pj_of
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.aimc.serving import BUSIEST_TILE, DIGITAL, passive_power
from pimserve.device_models.operators import Category, RowKind, Runs
from pimserve.device_models.plan import CostPlan, Energy, RowTerm

_PARTS_OF_CHIPS = 1000  # denominator of what the fullest chip has


def plan_without_attention(
    placed: PlacedNetwork, idle_gating: float = 1.0, *, by_expert: bool, lm_head: bool = True
) -> CostPlan:
    """The cost plan of the chips.

    Args:
        placed: what lies on them, and where.
        idle_gating: share of its passive power that a chip without work draws.
        by_expert: whether each chip has a share of every layer's experts; else it has layers.
        lm_head: whether the product with the vocabulary counts, where it is on the chips.
    """
    network, chip = placed.network, placed.chip
    dense = [pass_of_ffn(placed, block.dense) for block in network.blocks if block.dense is not None]
    shared = [pass_of_ffn(placed, block.shared) for block in network.blocks if block.shared is not None]
    head = [] if network.head is None else [pass_of_head(placed, network.head, lm_head=lm_head)]
    rows = (
        _row_term("ffn", "fc", "tokens", "dense_layers", dense),
        _row_term("shared experts", "moe", "tokens", "moe_layers", shared),
        _row_term("lm head", "fc", "outputs", "last", head),
    )
    return CostPlan(
        devices=chip.chips,
        data_parallel=1,
        units=(BUSIEST_TILE, DIGITAL),
        rows=tuple(row for row in rows if row is not None),
        decode=(),
        prefill=(),
        experts=_experts(placed, by_expert=by_expert) if any(block.experts for block in network.blocks) else None,
        passive=passive_power(chip, idle_gating, in_turns=False),
    )


def _row_term(name: str, category: Category, rows: RowKind, runs: Runs, passes: Sequence[Pass]) -> RowTerm | None:
    """FFNs of layers, one after the other."""
    if not passes:
        return None
    first = fs_of(sum(each.chain_ps - each.busiest_ps for each in passes))
    further = fs_of(sum(each.busiest_ps for each in passes))
    energy = Energy(compute_per_row=pj_of(sum(each.nj for each in passes)))
    return RowTerm(name, category, BUSIEST_TILE, rows, ((first, further),), energy, runs=runs)


def _experts(placed: PlacedNetwork, *, by_expert: bool) -> CrossbarExperts:
    """Routed experts.

    All layers count as alike, since a draw of tokens does not say which layer it is of, and a step takes the sum over
    layers. An expert's chain is the mean over them, and what experts leave on tiles and pools that of the layer in the
    middle, by what the busiest of these has to do for a token of each expert. (With moe_separated there is hardly a
    difference.) Groups count as alike as well, as the one with most to do there: a layer waits for the slowest.
    """
    chip, blocks = placed.chip, [block for block in placed.network.blocks if block.experts]
    experts = len(blocks[0].experts)
    groups = chip.chips if by_expert and experts % chip.chips == 0 else 1
    each = experts // groups
    passes = [[pass_of_ffn(placed, ffn) for ffn in block.experts] for block in blocks]
    chains = np.mean([[one.chain_ps for one in layer] for layer in passes], axis=0).reshape(groups, each).max(axis=0)
    typical = [
        sorted((layer[first : first + each] for layer in passes), key=_busiest_ps)[len(passes) // 2]
        for first in range(0, experts, each)
    ]
    most = max(typical, key=_busiest_ps)
    chains = np.maximum(chains, [one.busiest_ps for one in most])
    tiles, digital = _work(most, chip.tiles)
    entries = Counter(placed.entry(ffn) for block in blocks for ffn in block.experts)
    share = Fraction(max(entries.values()) * chip.chips, len(blocks) * experts * groups)
    fullest = share.limit_denominator(_PARTS_OF_CHIPS) if groups == 1 else Fraction(1)
    return CrossbarExperts(
        layers=len(blocks),
        experts=experts,
        top_k=blocks[0].top_k,
        groups=groups,
        chips=chip.chips // groups,
        units=(CrossbarUnit(BUSIEST_TILE), CrossbarUnit(DIGITAL)),
        chains=tuple(fs_of(chain) for chain in chains),
        tiles=tiles,
        digital=digital,
        copy_pj=pj_of(float(np.mean([one.nj for layer in passes for one in layer]))),
        fullest=(fullest.numerator, fullest.denominator),
    )


def _busiest_ps(passes: Iterable[Pass]) -> float:
    """The most that a tile or a pool of digital units has to do for a token of each expert."""
    passes = list(passes)
    _, place = np.unique(np.concatenate([each.tiles for each in passes]), return_inverse=True)
    tiles = np.bincount(place, np.concatenate([each.tiles_ps for each in passes]))
    pools: Counter[int] = Counter()
    for each in passes:
        pools.update(each.digital_ps)
    return max(float(tiles.max()), *pools.values())


def _work(passes: Sequence[Pass], tiles: int) -> tuple[tuple[Work, ...], Work]:
    """fs that a token of each expert keeps tiles busy, by chip, and pools of digital units; chips have `tiles`."""
    used = np.unique(np.concatenate([each.tiles for each in passes]))
    busy = np.zeros((len(used), len(passes)), np.int64)
    for expert, each in enumerate(passes):
        busy[np.searchsorted(used, each.tiles), expert] = each.tiles_ps
    of_chips = np.split(busy, np.flatnonzero(np.diff(used // tiles)) + 1)
    pools = sorted({chip for each in passes for chip in each.digital_ps})
    digital = tuple(tuple(fs_of(each.digital_ps.get(chip, 0.0)) for each in passes) for chip in pools)
    return tuple(_as_work(_undominated(of_chip)) for of_chip in of_chips), digital


def _undominated(rows: IntArray) -> IntArray:
    """Of (n, experts) rows, those of which no other has as much of every expert."""
    rows = np.unique(rows, axis=0)
    return rows[[int((rows >= row).all(axis=1).sum()) == 1 for row in rows]]


def _as_work(busy_ps: IntArray) -> Work:
    return tuple(tuple(fs_of(ps) for ps in row) for row in busy_ps.tolist())
