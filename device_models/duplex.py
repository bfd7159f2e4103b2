"""Duplex: a GPU-class xPU whose HBM has a processing unit for low arithmetic intensity (arXiv 2409.01141).

Logic-PIM sits on the HBM logic die; Bank-PIM and BankGroup-PIM, which the paper compares with, sit in the DRAM dies.
All are described by the same figures: a multiple of the memory's bandwidth, a ratio of compute to bandwidth, and the
energy of the path from the cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pimserve.device_models.device import Demand, DeviceSpec, Fitted, Roof
from pimserve.device_models.experts import ExpertTerm
from pimserve.device_models.gpu import Gpu, decision_slope
from pimserve.device_models.gpu_spec import GpuSpec
from pimserve.device_models.kernels import Kernels, NonNegative, Share
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import DecodeAttention, Experts, Operator, Parallelism
from pimserve.device_models.plan import FS_PER_S, HOST, PJ_PER_J, CostPlan, DecodeAttentionTerm, DecodeWay
from pimserve.device_models.step import LINK

Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class PimArea(BaseModel):
    """Silicon of the unit: what computes grows with its peak, the wires from the cells with its bandwidth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mm2_per_tflop_per_s: NonNegative = Field(description="what computes and its buffers, per 16-bit TFLOP/s")
    mm2_per_tb_per_s: NonNegative = Field(description="through-silicon vias, per TB/s of nominal bandwidth")


class PimSpec(BaseModel):
    """The unit near or in the memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("logic_pim", pattern=r"^[a-z][a-z0-9_]*$", description="the unit's name in tables and metrics")
    bandwidth_multiple: Positive = Field(description="of the memory's nominal bandwidth")
    flop_per_byte: Positive = Field(description="peak compute per nominal byte of its bandwidth")
    dram_efficiency: Share = Field(description="share of its nominal bandwidth that it reaches")
    pj_per_bit: NonNegative = Field(description="DRAM cell to the unit, without row activation")
    memory_spaces: Annotated[int, Field(gt=0, le=1024)] = Field(
        4, description="spaces that a device's experts are laid out in"
    )
    area: PimArea | None = Field(None, description="silicon of the unit, in all of the device's memory stacks together")
    passive_w_per_mm2: NonNegative | None = Field(None, description="drawn by its silicon whether it works or not")
    passive_w: NonNegative | None = Field(
        None, description="drawn in all stacks whether it works or not; default: its silicon x passive_w_per_mm2"
    )

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name in {Gpu.UNIT, LINK, HOST}:
            raise ValueError(f"must differ from {Gpu.UNIT}, {LINK} and {HOST}, which are there already")
        return name


class DuplexSpec(GpuSpec):
    """A Duplex preset.

    `processor_selection`: "per_layer" uses one unit at a time (the paper's Duplex), "co_processing" both side by side
    for experts and for attention in mixed steps (Duplex+PE), "pim" only the memory-side unit for both.
    `area_mm2`, where it is given, stands in place of `xpu_area_mm2` and the memory-side unit's own.
    """

    default_preset: ClassVar[str | None] = "duplex"
    taken_over: ClassVar[tuple[str, ...]] = (
        *GpuSpec.taken_over,
        "pim.dram_efficiency",
        "pim.pj_per_bit",
        "pim.memory_spaces",
        "pim.area",
        "pim.passive_w_per_mm2",
        "processor_selection",
    )
    area_of_die: ClassVar[str] = "xpu_area_mm2"

    kind: Literal["duplex"] = "duplex"  # type: ignore[assignment]
    pim: PimSpec
    xpu_area_mm2: Positive | None = Field(None, description="silicon of the processor, without the memory-side unit")
    processor_selection: Literal["per_layer", "co_processing", "pim"] = "co_processing"

    def following(self, base: DeviceSpec, given: Mapping[str, Any]) -> tuple[Self, tuple[str, ...]]:
        """As for a GPU; and a stated silicon stands in place of that of the parts."""
        spec, said = super().following(base, given)
        if self.area_mm2 is not None:
            said = (f"area_mm2 {self.area_mm2:g} is stated, in place of what processor and {self.pim.name} take", *said)
        return spec, said


class Duplex(Gpu):
    """Compiles operators for an xPU with a memory-side unit: decode attention and experts may leave the xPU."""

    Spec = DuplexSpec
    spec: DuplexSpec

    def __init__(self, spec: DuplexSpec, kernels: Kernels | None = None) -> None:
        super().__init__(spec, kernels)
        pim = spec.pim
        nominal = pim.bandwidth_multiple * spec.memory_gb_per_s * 1e9
        self._pim_bytes_per_s = nominal * pim.dram_efficiency
        self._pim_flop_per_s = nominal * pim.flop_per_byte
        self._pim_pj_per_byte = spec.energy.per_byte_pj(pim.pj_per_bit)
        if spec.area_mm2 is None and spec.xpu_area_mm2 is not None and self.pim_area_mm2 is not None:
            self.area_mm2 = spec.xpu_area_mm2 + self.pim_area_mm2

    @property
    def pim_logic_mm2(self) -> float | None:
        """What of the memory-side unit computes, in all stacks, mm2; None where its description does not tell."""
        area = self.spec.pim.area
        return None if area is None else area.mm2_per_tflop_per_s * self._pim_flop_per_s / 1e12

    @property
    def pim_area_mm2(self) -> float | None:
        """The memory-side unit with its wires to the cells, in all stacks, mm2; None likewise."""
        area, logic = self.spec.pim.area, self.pim_logic_mm2
        if area is None or logic is None:
            return None
        return logic + area.mm2_per_tb_per_s * self.spec.pim.bandwidth_multiple * self.spec.memory_gb_per_s / 1e3

    @property
    def passive_w(self) -> float | None:
        """Of the board, and of the memory-side unit."""
        board = super().passive_w
        return None if board is None or self.pim_passive_w is None else board + self.pim_passive_w

    @property
    def pim_passive_w(self) -> float | None:
        """What the memory-side unit draws whether it works or not, W; None where its description does not tell."""
        pim, area = self.spec.pim, self.pim_area_mm2
        if pim.passive_w is not None or pim.passive_w_per_mm2 is None or area is None:
            return pim.passive_w
        return pim.passive_w_per_mm2 * area

    @property
    def pim_peak_w(self) -> float:
        """What the memory-side unit draws beside passive power when it reads and multiplies as fast as it can, W."""
        reads = self._pim_bytes_per_s * self._pim_pj_per_byte
        return (reads + self._pim_flop_per_s / 2 * self.spec.energy.mac_pj) / PJ_PER_J

    @property
    def key_figures(self) -> Mapping[str, Any]:
        """As of a GPU; and what the memory-side unit reaches, takes and draws."""
        figures = {
            **super().key_figures,
            "pim_gb_per_s": self.spec.pim.bandwidth_multiple * self.spec.memory_gb_per_s,
            "pim_tflop_per_s": self._pim_flop_per_s / 1e12,
            "pim_peak_w": self.pim_peak_w,
            "pim_passive_w": self.pim_passive_w,
        }
        if self.pim_area_mm2 is not None:
            figures |= {"pim_logic_mm2": self.pim_logic_mm2, "pim_area_mm2": self.pim_area_mm2}
        return figures

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the device's processing units."""
        return (self.UNIT, self.spec.pim.name)

    def roofs(self, model: ModelSpec) -> tuple[Roof, ...]:
        """Of the processor, and of the memory-side unit."""
        nominal = self.spec.pim.bandwidth_multiple * self.spec.memory_gb_per_s * 1e9
        return (*super().roofs(model), Roof(self.spec.pim.name, nominal, self._pim_flop_per_s))

    @property
    def measured_parts(self) -> str:
        """The processor and the host; not the unit in the memory."""
        return "processor and host"

    @property
    def projected(self) -> list[str]:
        """The unit in the memory is not built: its rates and its energy stay those of the description."""
        if self.kernels is None:
            return []
        pim = self.spec.pim.name
        sentences = [f"{pim} keeps its projected rates, and pays the launches of a GPU"]
        if self.spec.power is not None:
            sentences.append(f"energy of {pim} is from circuit figures, of the xPU from the power of a board")
        return [*super().projected, *sentences]

    def fit(self, demand: Demand) -> Fitted:
        """As a GPU; who runs what is decided by times, or as the paper does."""
        fitted = super().fit(demand)
        if demand.expert_decision == "exact":
            return fitted
        plan = decided_as_in_the_paper(fitted.plan)
        return replace(fitted, plan=plan, expert_decision="exact" if plan == fitted.plan else demand.expert_decision)

    def compile(self, operators: Sequence[Operator], split: Parallelism) -> CostPlan:
        """As for a GPU; with co-processing, prefill attention runs beside decode attention on the memory-side unit.

        Where the processor is the faster one for decode attention, a step still leaves it to the memory-side unit if
        that ends sooner: beside a long prompt, or with few tokens against the fixed cost of a sequence.
        """
        plan = super().compile(operators, split)
        beside = self.spec.processor_selection == "co_processing"
        if all(term.unit != self.UNIT for term in plan.decode):
            return replace(plan, overlap_attention=beside)
        if not beside and not any(term.per_request for term in plan.decode):
            return plan
        on_pim = tuple(self._decode_on_pim(op, split) for op in operators if isinstance(op, DecodeAttention))
        return replace(plan, other_decode=DecodeWay(on_pim, beside))

    def decode_attention(self, op: DecodeAttention, split: Parallelism) -> DecodeAttentionTerm:
        """Decode attention runs on the memory-side unit (section V-A of the paper), unless the xPU is faster.

        That is so only where all heads share one cache entry (multi-head latent attention) and few devices split them.
        """
        on_pim, on_xpu = self._decode_on_pim(op, split), super().decode_attention(op, split)
        return on_xpu if on_xpu.slope < on_pim.slope and self.spec.processor_selection != "pim" else on_pim

    def _decode_on_pim(self, op: DecodeAttention, split: Parallelism) -> DecodeAttentionTerm:
        seconds = max(op.kv_bytes / self._pim_bytes_per_s, op.flops / self._pim_flop_per_s)
        return self.decode_term(
            op, split, self.spec.pim.name, seconds, (self._pim_pj_per_byte, self.spec.energy.mac_pj)
        )

    def experts(self, op: Experts) -> ExpertTerm:
        """Routed experts on the unit, or units, that the processor selection names."""
        pim = self.spec.pim
        second = self.expert_unit(
            op,
            unit=pim.name,
            weight_fs_per_byte=FS_PER_S / self._pim_bytes_per_s,
            flop_per_s=self._pim_flop_per_s,
            weight_pj_per_byte=self._pim_pj_per_byte,
            mac_pj=self.spec.energy.mac_pj,
            decision=(1 / pim.bandwidth_multiple, decision_slope(op, pim.flop_per_byte) / pim.bandwidth_multiple),
        )
        selection = {"per_layer": "faster", "co_processing": "co_processing", "pim": "second"}
        return self.expert_term(
            op,
            (self.xpu_experts(op), second),
            selection[self.spec.processor_selection],  # type: ignore[arg-type]
            spaces=pim.memory_spaces,
        )


def decided_as_in_the_paper(plan: CostPlan) -> CostPlan:
    """The plan with experts divided among two units by the paper's table, and decode attention on one unit always."""
    experts = plan.experts
    if isinstance(experts, ExpertTerm) and experts.selection == "co_processing":
        experts = replace(experts, selection="paper_table")
    return replace(plan, experts=experts, other_decode=None)
