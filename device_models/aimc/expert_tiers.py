"""Where on its chip's tiles each routed expert lies, for writing it anew."""

from __future__ import annotations

import numpy as np

from pimserve.device_models.aimc.aimc_spec import AimcSpec
from pimserve.device_models.aimc.placed import PlacedNetwork
from pimserve.device_models.expert_programming import ExpertProgramming


def expert_programming(placed: PlacedNetwork, spec: AimcSpec) -> ExpertProgramming | None:
    """Writing experts of which each chip has as many; None where the description says nothing of writing.

    All experts count as alike but for their tiles, and slots of a chip lie where its experts in order do.
    """
    program, chip = spec.programming, placed.chip
    if program is None:
        return None
    blocks = [block for block in placed.network.blocks if block.experts]
    each = len(blocks[0].experts) // chip.chips
    tiers = np.zeros((chip.chips, len(blocks), each, chip.tiles), np.int64)
    for layer, block in enumerate(blocks):
        for slot, ffn in enumerate(block.experts):
            on_tiles = np.concatenate([placed.tiles[matrix] for matrix in ffn.matrices]) % chip.tiles
            tiers[slot // each, layer, slot % each] = np.bincount(on_tiles, minlength=chip.tiles)
    matrices = (placed.network.matrices[matrix] for matrix in blocks[0].experts[0].matrices)
    return ExpertProgramming(
        tiers=tiers,
        tier_s=program.tier_s(spec.tier_rows * spec.tier_cols),
        joules=sum(matrix.rows * matrix.cols for matrix in matrices) * program.nj_per_weight * 1e-9,
        pulses=program.iterations,
        endurance_pulses=program.endurance_pulses,
    )
