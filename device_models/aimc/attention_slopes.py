"""Attention of a layer to a cached context, as affine functions of the context: from two values of its costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pimserve.device_models.aimc.chip import Chip
from pimserve.device_models.aimc.network import Attention
from pimserve.device_models.aimc.operation_costs import OpCost

_NEAR, _FAR = 1024, 3072  # contexts between which attention is affine


@dataclass(frozen=True, slots=True)
class AttentionSlopes:
    """Attention of one layer on its chip: ps and nJ, a fixed part and one per context token.

    `position_ps` is where on the token's chain it comes, without attention of layers before it.
    """

    position_ps: float
    chip: int
    window: int | None
    read_ps: tuple[float, float]
    compute_ps: tuple[float, float]
    read_nj: tuple[float, float]
    compute_nj: tuple[float, float]
    write: OpCost
    prefill_ps_per_pair: float
    prefill_nj_per_pair: float

    @classmethod
    def of(cls, shape: Attention, chip: Chip, home: int, position_ps: float) -> Self:
        """Attention of shape `shape` on chip `home`."""
        costs, dram = chip.costs, chip.dram
        whole = Attention(shape.heads, shape.kv_heads, shape.kv_bytes, shape.decode_flops, shape.prefill_flops)
        near, far = (costs.attention(whole, 1, context, cached=True, dram=dram) for context in (_NEAR, _FAR))
        prompt = costs.attention(whole, _FAR, _FAR, cached=False, dram=dram)
        pairs = _FAR * (_FAR + 1) // 2
        units = min(chip.attention_units, shape.kv_heads) if chip.attention_split == "heads" else 1
        return cls(
            position_ps=position_ps,
            chip=home,
            window=shape.window_tokens,
            read_ps=_affine(near.dram_ps, far.dram_ps),
            compute_ps=_affine(near.compute_ps / units, far.compute_ps / units),
            read_nj=_affine(near.dram_nj, far.dram_nj),
            compute_nj=_affine(near.compute_nj, far.compute_nj),
            write=dram.move(shape.kv_bytes),
            prefill_ps_per_pair=prompt.compute_ps / units / pairs,
            prefill_nj_per_pair=prompt.compute_nj / pairs,
        )

    @property
    def exposed_ps(self) -> tuple[float, float]:
        """What a token waits: reading and computing go side by side."""
        return max(self.read_ps, self.compute_ps, key=lambda part: part[0] + part[1] * _NEAR)


def _affine(at_near: float, at_far: float) -> tuple[float, float]:
    """(constant, slope) through the values at both contexts; the constant is not below 0."""
    slope = (at_far - at_near) / (_FAR - _NEAR)
    return max(0.0, at_near - slope * _NEAR), slope
