"""Mixtral-8x7B on 3D AIMC chips against a bound worked out by hand from the same unit costs.

The bound takes one token's chain without contention, and lets every further token of a step add the work of the busiest
resource: the larger of the mean tile's work with an imbalance of 1.5, the digital units', and the memories', all evenly
spread over the chips. It knows no mapping. With one, whole experts may need more chips, and the KV cache of a layer
lies on one chip, so that the chip with most layers decides. Corrected for these two, the bound is what ours is held
against.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pimserve.cluster.validation.aimc_plan import decode_fs
from pimserve.cluster.validation.targets import package_file, read_list
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
_WEIGHTS_MJ = 1.27  # energy of the weights' part of a token
_MVMS = 48_896  # of a token


@dataclass(frozen=True, slots=True)
class Bound:
    """A row worked out by hand: requests that attend to `context` tokens each on `chips` chips of `device`.

    `mapped_chips`: the least that a mapping fits on, which does not cut an expert in two. `chain_us`, `token_us`: the
    bound's own terms, one token's chain without attention and the busiest tile's or digital pool's work per token;
    `more_mvm_nj`: by how much an MVM takes more than that of the realistic preset.
    """

    label: str
    device: dict[str, Any]
    chips: int
    mapped_chips: int
    requests: int
    tokens_per_s: float | None
    mj_per_token: float
    context: int = 2048
    chain_us: float = 138.0
    token_us: float = 5.6
    more_mvm_nj: float = 0.0

    def corrected(self, spec: AimcSpec) -> tuple[float, float]:
        """(tokens/s, mJ per token) from the bound's own terms, on the mapping's chips and its fullest chip."""
        read_us = self.context * _KV_BYTES_PER_TOKEN / (spec.dram.gb_per_s * spec.dram.efficiency * 1e3)
        layers_on_fullest_chip = -(-_LAYERS // self.mapped_chips)
        token_us = max(self.token_us, read_us * layers_on_fullest_chip / _LAYERS)
        step_us = self.chain_us + read_us + (self.requests - 1) * token_us
        attention_mj = self.context * _ATTENTION_UJ[spec.dram.name] * 1e-3
        passive_mj = spec.passive_w * self.mapped_chips * step_us / self.requests * 1e-3
        weights_mj = _WEIGHTS_MJ + _MVMS * self.more_mvm_nj * 1e-6
        return self.requests / step_us * 1e6, weights_mj + attention_mj + passive_mj


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


BOUNDS: tuple[Bound, ...] = tuple(
    Bound(**{key: value for key, value in system.items() if key != "rows"}, **row)
    for system in read_list(package_file("aimc_bounds.json"), "system")
    for row in system["rows"]
)


def compared(bounds: Sequence[Bound] = BOUNDS) -> Iterator[Compared]:
    """Rows of the bound, by default every one, with ours, in order."""
    for bound in bounds:
        device = load_device(bound.device)
        split = Parallelism(1, bound.mapped_chips, bound.mapped_chips)
        plan = device.fit(Demand(load_model(MODEL), split)).plan
        assert isinstance(device.spec, AimcSpec)
        yield _compare(bound, device.spec, plan)


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
        *bound.corrected(spec),
        tokens_per_s=requests * FS_PER_S / step,
        mj_per_token=(active + passive) / per_mj,
        active_mj=active / per_mj,
        passive_mj=passive / per_mj,
        chain_us=chain / 1e9,
        token_us=(step - chain) / 1e9 / (requests - 1) if requests > 1 else 0.0,
    )
