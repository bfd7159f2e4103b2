"""From one token's way to the cost plan of a replica of 3D AIMC chips.

A step is a pipeline of tokens (`pimserve.device_models.pipeline`): the anchor's chain, and behind it the work of all
other tokens on the busiest station: a tile, a chip's pool of digital units, its memory, or its attention units.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.aimc.attention_slopes import AttentionSlopes
from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.operation_costs import fs_of, pj_of
from pimserve.device_models.aimc.walk import Walk, Work
from pimserve.device_models.operators import Category
from pimserve.device_models.pipeline import Load, PassivePower, PipelineTerm, Station, undominated
from pimserve.device_models.plan import CostPlan, DecodeAttentionTerm, Energy, PrefillAttentionTerm, RowTerm

TILES, BUSIEST_TILE, DIGITAL, ATTENTION, DRAM = UNITS = ("tiles", "busiest_tile", "digital", "attention", "dram")
_UW_PER_W = 10**6
_NEVER_PS = 1e12  # a second: where a token visits once


def plan_of(
    walk: Walk, chip: Chip, idle_gating: float = 1.0, *, in_turns: bool = True, layer_by_layer: bool = False
) -> CostPlan:
    """The cost plan of a replica, or of the chips of one that hold attention.

    Args:
        walk: one token's way.
        chip: the replica's chips.
        idle_gating: share of its passive power that a chip without work draws.
        in_turns: whether a token is on one chip after the other, so that the others may rest.
        layer_by_layer: whether a layer begins when all tokens have passed the one before it.
    """
    windows = sorted({layer.window for layer in walk.attention}, key=lambda window: window or math.inf, reverse=True)
    groups = {window: [layer for layer in walk.attention if layer.window == window] for window in windows}
    return CostPlan(
        devices=chip.chips,
        data_parallel=1,
        units=UNITS,
        rows=_energies(walk),
        decode=tuple(_decode(window, group) for window, group in groups.items()),
        prefill=tuple(_prefill(window, group) for window, group in groups.items()),
        experts=None,
        pipeline=_pipeline(walk, chip, windows, layer_by_layer=layer_by_layer),
        passive=passive_power(chip, idle_gating, in_turns=in_turns),
    )


class _Totals(NamedTuple):
    """Work of every token on tiles and on digital units of chips, and what sampled ones bring on top, ps."""

    tiles: NDArray[np.float64]
    sampled_tiles: NDArray[np.float64]
    digital: NDArray[np.float64]
    sampled_digital: NDArray[np.float64]

    @property
    def most(self) -> int:
        """The tile with most to do where prompts outweigh sampled tokens."""
        return int(self.tiles.argmax())

    @property
    def busiest(self) -> int:
        """The tile with most to do where every token is sampled."""
        return int((self.tiles + self.sampled_tiles).argmax())


def _pipeline(walk: Walk, chip: Chip, windows: Sequence[int | None], *, layer_by_layer: bool) -> PipelineTerm:
    chain: dict[Category, float] = defaultdict(float, walk.chain_ps)
    chain["attention_decode"] += sum(layer.exposed_ps[0] for layer in walk.attention)
    work = _Totals(
        np.sum([part.tiles for part in walk.segments], axis=0),
        walk.last.tiles + walk.head.tiles,
        np.sum([part.digital for part in walk.segments], axis=0) / chip.digital_units,
        (walk.last.digital + walk.head.digital) / chip.digital_units,
    )
    mostly_experts: Category = "moe" if 2 * walk.expert_mvm_ps > work.tiles.sum() else "fc"
    by_chip = [[layer for layer in walk.attention if layer.chip == index] for index in range(chip.chips)]
    by_chip = [group for group in by_chip if group]
    alone = [part.busiest_ps(chip.digital_units) for part in walk.segments]
    # A second prompt is in one segment while the anchor is in the next.
    meeting = [(one + other).busiest_ps(chip.digital_units) for one, other in pairwise(walk.segments)]
    second = sum(fs_of(both - one) for both, one in zip(meeting, alone[1:], strict=True)) + fs_of(alone[-1])
    stations = (
        *_tiles_and_digital(walk, work, mostly_experts, len(windows)),
        *undominated(_memory(group, windows) for group in by_chip),
        *undominated(_units(group, windows, chip) for group in by_chip),
    )
    if layer_by_layer:  # all prompts are in the same layer
        stations = _of_single_layers(walk, chip, windows, mostly_experts)
        second = max(station.per_token for station in stations)
    return PipelineTerm(
        windows=tuple(windows),
        chain=tuple((category, fs_of(time)) for category, time in chain.items()),
        chain_per_context=_by_window(walk.attention, windows, lambda layer: layer.exposed_ps[1]),
        stations=stations,
        per_prompt_token=sum(fs_of(time) for time in alone),
        per_second_prompt_token=second,
        prompt_category=mostly_experts,
        loads=_mean_loads(walk, chip, windows, work),
        device_loads=(
            *_device_loads(chip, work, len(windows)),
            *undominated(_load(_units(group, windows, chip), (len(group), len(walk.attention))) for group in by_chip),
            *undominated(_load(_memory(group, windows)) for group in by_chip),
        ),
    )


def _tiles_and_digital(walk: Walk, work: _Totals, tiles_are: Category, windows: int) -> list[Station]:
    """The tiles that may be the busiest, and the digital units of chips."""
    visits, none = walk.visits, (0,) * windows

    def tile(index: int) -> Station:
        rest, slack = visits.rest[index], visits.slack[index]
        return Station(
            TILES,
            tiles_are,
            fs_of(work.tiles[index]),
            fs_of(work.sampled_tiles[index]),
            0,
            none,
            visit=fs_of(visits.longest.max()),  # wherever it is: the others follow at this distance
            rest=fs_of(min(rest, _NEVER_PS)),
            slack=fs_of(slack),
        )

    digital = (
        Station(DIGITAL, "fc", fs_of(token), fs_of(sampled), 0, none)
        for token, sampled in zip(work.digital, work.sampled_digital, strict=True)
    )
    return [*undominated([tile(work.busiest), tile(work.most)]), *undominated(digital)]


def _of_single_layers(
    walk: Walk, chip: Chip, windows: Sequence[int | None], tiles_are: Category
) -> tuple[Station, ...]:
    """The busiest tile, pool of digital units, memory and attention units of every layer, all layers together.

    In a layer all tokens wait for these, wherever they are: sums over layers, of which the same is the longest in each.
    What comes before attention of the first layer and after that of the last one counts as one layer.
    """
    none, both = (0,) * len(windows), walk.segments[0] + walk.last

    def station(name: str, category: Category, busiest: Callable[[Work], float]) -> Station:
        sampled = busiest(both) - busiest(walk.segments[0]) + busiest(walk.head)
        return Station(name, category, sum(fs_of(busiest(part)) for part in walk.segments), fs_of(sampled), 0, none)

    return (
        station(TILES, tiles_are, lambda work: float(work.tiles.max())),
        station(DIGITAL, "fc", lambda work: float(work.digital.max()) / chip.digital_units),
        replace(_memory(walk.attention, windows), rest=-1, slack=0),
        replace(_units(walk.attention, windows, chip), rest=-1, slack=0),
    )


def _mean_loads(walk: Walk, chip: Chip, windows: Sequence[int | None], work: _Totals) -> tuple[Load, ...]:
    """Of each unit, in the mean over the chips."""
    none = (0,) * len(windows)

    return (
        Load(TILES, fs_of(work.tiles.mean()), fs_of(work.sampled_tiles.mean()), 0, none),
        Load(BUSIEST_TILE, fs_of(work.tiles[work.most]), fs_of(work.sampled_tiles[work.most]), 0, none),
        Load(DIGITAL, fs_of(work.digital.mean()), fs_of(work.sampled_digital.mean()), 0, none),
        _load(_units(walk.attention, windows, chip), (1, chip.chips), over=chip.chips),
        _load(_memory(walk.attention, windows), over=chip.chips),
    )


def _device_loads(chip: Chip, work: _Totals, windows: int) -> list[Load]:
    """Of tiles and digital units, on the chips that may have most to do."""
    none = (0,) * windows

    def loads(unit: str, every: Iterable[float], sampled: Iterable[float]) -> list[Load]:
        return undominated(Load(unit, fs_of(a), fs_of(b), 0, none) for a, b in zip(every, sampled, strict=True))

    tiles, sampled_tiles = (busy.reshape(chip.chips, -1).mean(axis=1) for busy in (work.tiles, work.sampled_tiles))
    candidates = [work.most, work.busiest]
    return [
        *loads(TILES, tiles, sampled_tiles),
        *loads(BUSIEST_TILE, work.tiles[candidates], work.sampled_tiles[candidates]),
        *loads(DIGITAL, work.digital, work.sampled_digital),
    ]


def _load(station: Station, prefill: tuple[int, int] = (0, 1), *, over: int = 1) -> Load:
    """What a station's work leaves on its unit, in the mean over so many chips."""
    per_token, per_request = station.per_token // over, station.per_request // over
    per_context = tuple(slope // over for slope in station.per_context)
    return Load(station.name, per_token, station.per_output // over, per_request, per_context, prefill)


def _memory(group: Sequence[AttentionSlopes], windows: Sequence[int | None]) -> Station:
    """A chip's memory: a write per token; a first access per decoding request, and reading its context."""
    return Station(
        DRAM,
        "attention_decode",
        fs_of(sum(layer.write.ps for layer in group)),
        0,
        fs_of(sum(layer.read_ps[0] for layer in group)),
        _by_window(group, windows, lambda layer: layer.read_ps[1]),
        visit=fs_of(max(layer.read_ps[0] for layer in group)),
        visit_per_context=fs_of(max(layer.read_ps[1] for layer in group)),
        **_rests(group),
    )


def _units(group: Sequence[AttentionSlopes], windows: Sequence[int | None], chip: Chip) -> Station:
    """A chip's attention units, which are held until reading and computing are done."""
    servers = 1 if chip.attention_split == "heads" else chip.attention_units
    return Station(
        ATTENTION,
        "attention_decode",
        0,
        0,
        fs_of(sum(layer.exposed_ps[0] for layer in group) / servers),
        _by_window(group, windows, lambda layer: layer.exposed_ps[1] / servers),
        visit=fs_of(max(layer.exposed_ps[0] for layer in group) / servers),
        visit_per_context=fs_of(max(layer.exposed_ps[1] for layer in group) / servers),
        **_rests(group),
    )


def _rests(group: Sequence[AttentionSlopes]) -> dict[str, int]:
    """Between attention of one layer and of the next on the same chip."""
    between = [fs_of(after.position_ps - before.position_ps) for before, after in pairwise(group)]
    return {"rest": min(between, default=fs_of(_NEVER_PS)), "slack": sum(between)}


def _by_window(
    group: Sequence[AttentionSlopes], windows: Sequence[int | None], of: Callable[[AttentionSlopes], float]
) -> tuple[int, ...]:
    return tuple(fs_of(sum(of(layer) for layer in group if layer.window == window)) for window in windows)


def _energies(walk: Walk) -> tuple[RowTerm, ...]:
    """Energy of tokens by category, of sampled tokens, and of attention's parts that do not depend on the context."""
    free = ((0, 0),)
    names: dict[Category, str] = {"fc": "projections", "moe": "experts", "communication": "transfers"}
    rows = [
        RowTerm(names[category], category, TILES, "tokens", free, Energy(compute_per_row=pj_of(nj)))
        for category, nj in walk.energy_nj.items()
    ]
    rows += [
        RowTerm(f"{names[category]} to sample", category, TILES, "outputs", free, Energy(compute_per_row=pj_of(nj)))
        for category, nj in walk.sampled_nj.items()
    ]
    dram = sum(layer.read_nj[0] for layer in walk.attention)
    compute = sum(layer.compute_nj[0] for layer in walk.attention)
    first = RowTerm(
        "attention, first access", "attention_decode", DRAM, "outputs", free, Energy(0, pj_of(dram), pj_of(compute))
    )
    write = pj_of(sum(layer.write.nj for layer in walk.attention))
    return (*rows, first, RowTerm("KV writes", "attention_decode", DRAM, "tokens", free, Energy(dram_per_row=write)))


def _decode(window: int | None, group: Sequence[AttentionSlopes]) -> DecodeAttentionTerm:
    """Energy of decode attention; its time is the pipeline's."""
    dram = sum(layer.read_nj[1] for layer in group)
    return DecodeAttentionTerm(DRAM, window, 0, pj_of(dram), pj_of(sum(layer.compute_nj[1] for layer in group)))


def _prefill(window: int | None, group: Sequence[AttentionSlopes]) -> PrefillAttentionTerm:
    """Prefill attention: a barrier in every layer, so that its time is on the chain."""
    per_pair = sum(layer.prefill_ps_per_pair for layer in group)
    per_entry = sum(layer.read_ps[1] for layer in group)
    entry_pj = pj_of(sum(layer.read_nj[1] for layer in group))
    return PrefillAttentionTerm(
        unit=ATTENTION,
        window_tokens=window,
        causal=True,
        # The chunk's own entries are at hand: of the cache, only those before it are read.
        pieces=((0, 0, fs_of(per_pair)), (-fs_of(per_entry), fs_of(per_entry), 0)),
        dram=(-entry_pj, entry_pj, 0),
        compute_per_pair=pj_of(sum(layer.prefill_nj_per_pair for layer in group)),
    )


def passive_power(chip: Chip, idle_gating: float, *, in_turns: bool) -> PassivePower:
    """Passive power; with gating, a chip rests while the anchor is on another one and nothing follows."""
    power = chip.passive_w * chip.chips * _UW_PER_W
    resting = (chip.chips - 1) / chip.chips if in_turns else 0.0
    return PassivePower(
        idle_uw=round(power * idle_gating),
        step_uw=round(power),
        chain_uw=round(power * (1 - idle_gating) * resting),
    )
