"""Mixtral-8x7B on 3D AIMC chips against a bound worked out by hand from the same unit costs.

The bound takes one token's chain without contention, and lets every further token of a step add the work of the busiest
resource: the larger of the mean tile's work with an imbalance of 1.5, the digital units', and the memories', all evenly
spread over the chips. It knows no mapping. With one, whole experts may need more chips, and the KV cache of a layer
lies on one chip, so that the chip with most layers decides. Corrected for these two, the bound is what ours is held
against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pimserve.cluster.validation.aimc_plan import decode_fs
from pimserve.device_models.aimc.aimc_spec import AimcSpec
from pimserve.device_models.catalogue import load_model
from pimserve.device_models.device import Demand
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.operators import Parallelism
from pimserve.device_models.plan import FS_PER_S, PJ_PER_J, CostPlan
from pimserve.device_models.registry import load_device

MODEL = "mixtral-8x7b"
# Energy of attention per context token, and KV bytes per token at 8 bit.
_ATTENTION_UJ = {"LPDDR5X": 5.91e3 / 2048, "HBM3E": 5.37e3 / 2048}
_LAYERS, _KV_BYTES_PER_TOKEN = 32, 65_536
_SYSTEM_GB_PER_S, _SYSTEM_IDLE_W = 3684.0, 24.0  # memory of six chips, dealt out where the number of chips varies


@dataclass(frozen=True, slots=True)
class Terms:
    """The bound's own terms: one token's chain without attention, the busiest tile's or digital pool's work per token,
    and the energy of the weights' part. MVMs that are slower, or take more, change them by hand.
    """

    chain_us: float = 138.0
    token_us: float = 5.6
    weights_mj: float = 1.27


@dataclass(frozen=True, slots=True)
class Bound:
    """A row worked out by hand: requests that attend to `context` tokens each on `chips` chips of `device`.

    `mapped_chips`: the least that a mapping fits on, which does not cut an expert in two.
    """

    label: str
    device: dict[str, Any]
    chips: int
    mapped_chips: int
    context: int
    requests: int
    tokens_per_s: float | None
    mj_per_token: float
    terms: Terms = Terms()

    @property
    def layers_on_fullest_chip(self) -> int:
        """Layers whose KV cache the chip with most of them holds."""
        return -(-_LAYERS // self.mapped_chips)


@dataclass(frozen=True, slots=True)
class Compared:
    """A bound, and the same from the cost plan: tokens/s and mJ per token, and what they are made of.

    `chain_us`: one token's way with its attention; `token_us`: what each further request adds to a step. `corrected_*`:
    the bound with the mapping's chips and its fullest chip.
    """

    bound: Bound
    corrected_tokens_per_s: float
    corrected_mj_per_token: float
    tokens_per_s: float
    mj_per_token: float
    active_mj: float
    passive_mj: float
    chain_us: float
    token_us: float

    @property
    def speed_ratio(self) -> float:
        """Our tokens/s over the corrected bound's."""
        return self.tokens_per_s / self.corrected_tokens_per_s

    @property
    def energy_ratio(self) -> float:
        """Our energy per token over the corrected bound's."""
        return self.mj_per_token / self.corrected_mj_per_token


def _six(label: str, preset: str, context: int, rows: dict[int, tuple[float, float]]) -> list[Bound]:
    return [
        Bound(label, {"preset": preset}, 6, 6, context, requests, speed, mj) for requests, (speed, mj) in rows.items()
    ]


def _tiers(tiers: int, chips: int, mapped: int, energies: tuple[float, float, float], speed: float) -> list[Bound]:
    memory = {"gb_per_s": _SYSTEM_GB_PER_S / mapped, "idle_w": _SYSTEM_IDLE_W / mapped}
    device = {"preset": "aimc-realistic", "tiers": tiers, "dram": memory}
    if tiers < 64:  # experts of a layer cannot share tiles of so few tiers
        device["mapping"] = {"strategy": "greedy_util"}
    return [
        Bound(f"{tiers} tiers", device, chips, mapped, 2048, requests, speed if requests == 128 else None, mj)
        for requests, mj in zip((1, 32, 128), energies, strict=True)
    ]


def _variant(
    label: str, device: dict[str, Any], chips: int, rows: Mapping[int, tuple[float | None, float]], terms: Terms
) -> list[Bound]:
    return [
        Bound(label, device, chips, chips, 2048, requests, speed, energy, terms)
        for requests, (speed, energy) in rows.items()
    ]


_FOUR_PHASE = {"preset": "aimc-realistic", "costs": {"mvm_ns": 521, "mvm_nj": 118}}
_MVMS = 48_896  # of a token
BOUNDS: tuple[Bound, ...] = (
    *_six("LPDDR5X", "aimc-realistic", 2048, {1: (2431, 64.4), 32: (17552, 15.1), 128: (20661, 13.9)}),
    *_six("HBM3E", "aimc-realistic-hbm3e", 2048, {1: (3707, 45.8), 32: (33697, 10.9), 128: (41898, 10.1)}),
    *_six("LPDDR5X", "aimc-realistic", 8192, {1: (812, 196), 32: (4652, 55), 128: (5253, 51)}),
    *_variant(
        "silicon",
        {"preset": "aimc-silicon"},
        6,
        {1: (None, 64.9), 32: (None, 15.6), 128: (None, 14.4)},
        Terms(weights_mj=1.27 + _MVMS * 9.4e-6),
    ),
    *_variant(
        "four-phase reads",
        _FOUR_PHASE,
        6,
        {1: (2070, 79), 32: (16888, 20), 128: (20425, 19)},
        Terms(chain_us=210, weights_mj=1.27 + _MVMS * 98e-6),
    ),
    *_variant(
        "NAND",
        {"preset": "aimc-nand"},
        2,
        {1: (1301, 45), 32: (6143, 17), 128: (6751, 17)},
        Terms(chain_us=495, token_us=143, weights_mj=1.27 + _MVMS * 55e-6),
    ),
    *_tiers(4, 88, 97, (7106, 305, 140), 12891),
    *_tiers(8, 44, 49, (1867, 104, 61), 16150),
    *_tiers(16, 22, 24, (516, 43, 31), 18487),
    *_tiers(32, 11, 12, (157, 22, 19), 19929),
    *_tiers(64, 6, 6, (64, 15, 14), 20661),
    *_tiers(256, 2, 2, (22, 10, 10), 21287),
)


def compared() -> Iterator[Compared]:
    """Every row of the bound with ours, in order."""
    for bound in BOUNDS:
        device = load_device(bound.device)
        split = Parallelism(1, bound.mapped_chips, bound.mapped_chips)
        plan = device.fit(Demand(load_model(MODEL), split)).plan
        assert isinstance(device.spec, AimcSpec)
        yield _compare(bound, device.spec, plan)


def _corrected(bound: Bound, spec: AimcSpec) -> tuple[float, float]:
    """(tokens/s, mJ per token) of the bound, from its own terms, on the mapping's chips and its fullest chip."""
    read_us = bound.context * _KV_BYTES_PER_TOKEN / (spec.dram.gb_per_s * spec.dram.efficiency * 1e3)
    chain_us = bound.terms.chain_us + read_us
    token_us = max(bound.terms.token_us, read_us * bound.layers_on_fullest_chip / _LAYERS)
    step_us = chain_us + (bound.requests - 1) * token_us
    attention_mj = bound.context * _ATTENTION_UJ[spec.dram.name] * 1e-3
    passive_mj = spec.passive_w * bound.mapped_chips * step_us / bound.requests * 1e-3
    return bound.requests / step_us * 1e6, bound.terms.weights_mj + attention_mj + passive_mj


def _compare(bound: Bound, spec: AimcSpec, plan: CostPlan) -> Compared:
    requests, context = bound.requests, bound.context
    step = decode_fs(plan, requests, context)
    chain = decode_fs(plan, 1, context)
    active = sum(coefficient * times for _, coefficient, times in evaluate(plan, shape_of(plan, 1, context)).energy)
    assert plan.passive is not None
    passive = plan.passive.energy_pj(0, step, chain) / requests
    per_mj = PJ_PER_J / 1000
    return Compared(
        bound,
        *_corrected(bound, spec),
        tokens_per_s=requests * FS_PER_S / step,
        mj_per_token=(active + passive) / per_mj,
        active_mj=active / per_mj,
        passive_mj=passive / per_mj,
        chain_us=chain / 1e9,
        token_us=(step - chain) / 1e9 / (requests - 1) if requests > 1 else 0.0,
    )
