"""Where on its chip's tiles each routed expert lies, for writing it anew, and what that takes."""

from __future__ import annotations

import numpy as np

from pimserve.device_models.aimc.aimc_spec import AimcSpec
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.expert_programming import ExpertProgramming


def expert_programming(placed: PlacedNetwork, spec: AimcSpec) -> ExpertProgramming | None:
    """Writing experts of which each chip has as many; None where the description says nothing of writing.

    All experts count as alike but for their tiles, and slots of a chip lie where its experts in order do. Chips that
    an expert is cut over count as one with the tiles of all.
    """
    program, slices = spec.programming, placed.network.slices
    chips, of_chip = placed.chip.chips // slices, placed.chip.tiles * slices
    if program is None:
        return None
    blocks = [block for block in placed.network.blocks if block.experts]
    each = len(blocks[0].experts) // chips
    tiers = np.zeros((chips, len(blocks), each, of_chip), np.int64)
    for layer, block in enumerate(blocks):
        for slot, expert in enumerate(block.experts):
            on_tiles = np.concatenate([placed.tiles[matrix] for ffn in expert for matrix in ffn.matrices]) % of_chip
            tiers[slot // each, layer, slot % each] = np.bincount(on_tiles, minlength=of_chip)
    return ExpertProgramming(
        tiers=tiers,
        tier_s=program.tier_s(spec.tier_rows * spec.tier_cols),
        pulses=program.iterations,
        endurance_pulses=program.endurance_pulses,
    )


def programming_pj(placed: PlacedNetwork, spec: AimcSpec) -> int:
    """Energy of writing an expert of a layer; 0 where the description says nothing of it."""
    if spec.programming is None:
        return 0
    first = next(block for block in placed.network.blocks if block.experts).experts[0]
    matrices = (placed.network.matrices[matrix] for ffn in first for matrix in ffn.matrices)
    return round(sum(matrix.rows * matrix.cols for matrix in matrices) * spec.programming.nj_per_weight * 1000)
