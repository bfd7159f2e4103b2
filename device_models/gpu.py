"""A GPU: one processor in front of its HBM. Also the base of devices that add a processing unit in the memory.

Every operator takes max(FLOPs / peak, bytes / (efficiency x bandwidth)), operators run one after the other
(arXiv 2409.01141; the efficiencies are calibrated, see the device's catalogue entry).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pimserve.device_models.device import DeviceSpec, OperatorDevice
from pimserve.device_models.experts import ExpertTerm, ExpertUnit, Selection
from pimserve.device_models.model import Dtype
from pimserve.device_models.operators import (
    ACTIVATION_BYTES,
    DecodeAttention,
    Experts,
    Gemm,
    Operator,
    Parallelism,
    PrefillAttention,
)
from pimserve.device_models.plan import (
    FS_PER_S,
    CostPlan,
    DecodeAttentionTerm,
    Energy,
    PrefillAttentionTerm,
    RowTerm,
)
from pimserve.quantity import Gigabytes, GigabytesPerSecond, Teraflops

Share = Annotated[float, Field(gt=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DramEnergy(BaseModel):
    """Energy of moving data and multiplying, pJ."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    xpu_pj_per_bit: NonNegative = Field(description="DRAM cell to processor, without row activation")
    row_activation_nj: NonNegative
    row_bytes: Annotated[int, Field(gt=0)] = 1024
    mac_pj: NonNegative = Field(description="one 16-bit multiply-accumulate, two FLOPs")

    def per_byte_pj(self, pj_per_bit: float) -> float:
        """One byte over a path of `pj_per_bit`, with its share of the row activation."""
        return 8 * pj_per_bit + 1000 * self.row_activation_nj / self.row_bytes


class GpuSpec(DeviceSpec):
    """A GPU preset."""

    kind: Literal["gpu"] = "gpu"
    peak_tflop_per_s: dict[Dtype, Teraflops] = Field(
        description="dense peak per data type; others run at the 16-bit peak"
    )
    memory_gb: Gigabytes
    memory_gb_per_s: GigabytesPerSecond = Field(description="nominal DRAM bandwidth")
    dram_efficiency: Share = Field(1.0, description="share of the nominal bandwidth that kernels reach")
    compute_efficiency: Share = Field(1.0, description="share of the peak that kernels reach")
    prefill_attention: Literal["flash", "score_matrix"] = Field(
        "flash", description="flash: causal, scores stay on chip; score_matrix: full, scores go to DRAM and back"
    )
    area_mm2: Annotated[float, Field(gt=0)] | None = Field(
        None, description="silicon that computes, without the memory stacks"
    )
    energy: DramEnergy

    @field_validator("peak_tflop_per_s")
    @classmethod
    def _has_16_bit(cls, peaks: dict[Dtype, float]) -> dict[Dtype, float]:
        if not peaks.keys() & {"fp16", "bf16"}:
            raise ValueError("needs a peak for fp16 or bf16, at which data types without one of their own run")
        return peaks


class Gpu(OperatorDevice):
    """Compiles operators to the cost terms of one GPU of a replica."""

    Spec: type[GpuSpec] = GpuSpec
    UNIT = "xpu"

    spec: GpuSpec

    def __init__(self, spec: GpuSpec) -> None:
        self.spec = spec
        self.memory_bytes = spec.memory_gb * 1e9
        self.area_mm2 = spec.area_mm2
        self._bytes_per_s = spec.memory_gb_per_s * 1e9 * spec.dram_efficiency
        self._pj_per_byte = spec.energy.per_byte_pj(spec.energy.xpu_pj_per_bit)

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the device's processing units."""
        return (self.UNIT,)

    @property
    def key_figures(self) -> Mapping[str, Any]:
        """Memory, its nominal bandwidth, and the 16-bit peak."""
        spec = self.spec
        peaks = spec.peak_tflop_per_s
        return {
            "memory_gb": spec.memory_gb,
            "memory_gb_per_s": spec.memory_gb_per_s,
            "tflop_per_s_16_bit": peaks.get("bf16", peaks.get("fp16")),
        }

    def compile(self, operators: Sequence[Operator], split: Parallelism) -> CostPlan:
        """Cost plan of all operators that run on devices of this kind; collectives belong to the links."""
        experts = [op for op in operators if isinstance(op, Experts)]
        return CostPlan(
            devices=split.devices,
            data_parallel=split.data,
            units=self.units,
            rows=tuple(self.gemm(op, split) for op in operators if isinstance(op, Gemm)),
            decode=tuple(self.decode_attention(op, split) for op in operators if isinstance(op, DecodeAttention)),
            prefill=tuple(self.prefill_attention(op, split) for op in operators if isinstance(op, PrefillAttention)),
            experts=self.experts(experts[0]) if experts else None,
        )

    def flop_per_s(self, dtype: str) -> float:
        """Reachable peak for operands of `dtype`; what has no peak of its own is widened to 16 bit."""
        peaks: dict[str, float] = {str(name): peak for name, peak in self.spec.peak_tflop_per_s.items()}
        wide = peaks["fp16"] if "fp16" in peaks else peaks["bf16"]
        return peaks.get(dtype, wide) * 1e12 * self.spec.compute_efficiency

    def memory_fs(self, size: float) -> float:
        """Time to move `size` bytes between DRAM and the processor, fs."""
        return size / self._bytes_per_s * FS_PER_S

    def gemm(self, op: Gemm, split: Parallelism) -> RowTerm:
        """A matrix product: weights are read once, inputs and outputs once per row."""
        weights = op.weight_bytes_per_element * op.k * op.n
        row_bytes = ACTIVATION_BYTES * (op.k + op.n)
        row_fs = 2 * op.k * op.n / self.flop_per_s(op.dtype) * FS_PER_S
        pieces = (
            (0, round(op.layers * row_fs)),
            (round(op.layers * self.memory_fs(weights)), round(op.layers * self.memory_fs(row_bytes))),
        )
        energy = Energy(
            dram_const=round(split.tensor * op.layers * weights * self._pj_per_byte),
            dram_per_row=round(split.tensor * op.layers * row_bytes * self._pj_per_byte),
            compute_per_row=round(split.tensor * op.layers * op.k * op.n * self.spec.energy.mac_pj),
        )
        return RowTerm(op.name, op.category, self.UNIT, op.rows, pieces, energy)

    def decode_attention(self, op: DecodeAttention, split: Parallelism) -> DecodeAttentionTerm:
        """Decode attention: bound by reading the cache, or by compute with many query heads per KV head."""
        seconds = max(op.kv_bytes / self._bytes_per_s, op.flops / self.flop_per_s("fp16"))
        return self.decode_term(op, split, self.UNIT, seconds, self._pj_per_byte)

    def decode_term(
        self, op: DecodeAttention, split: Parallelism, unit: str, seconds: float, pj_per_byte: float
    ) -> DecodeAttentionTerm:
        """Term for an operator that takes `seconds` per context token and layer and reads at `pj_per_byte`."""
        return DecodeAttentionTerm(
            unit=unit,
            window_tokens=op.window_tokens,
            slope=max(1, round(op.layers * seconds * FS_PER_S / split.data)),
            dram_per_token=round(split.tensor * op.layers * op.kv_bytes * pj_per_byte),
            compute_per_token=round(split.tensor * op.layers * op.flops / 2 * self.spec.energy.mac_pj),
        )

    def prefill_attention(self, op: PrefillAttention, split: Parallelism) -> PrefillAttentionTerm:
        """Prefill attention, with the score matrix on chip (`flash`) or written to DRAM once and read once."""
        width = op.qk_dim + op.v_dim
        flash = self.spec.prefill_attention == "flash"
        query_bytes = ACTIVATION_BYTES * op.heads * width
        kv_bytes = op.kv_bytes_per_element * op.kv_heads * width
        pair_bytes = 0.0 if flash else 2 * ACTIVATION_BYTES * op.heads
        pair_fs = 2 * op.heads * width / self.flop_per_s("fp16") * FS_PER_S
        moved = (query_bytes, kv_bytes, pair_bytes)
        memory = [round(op.layers * self.memory_fs(size)) for size in moved]
        dram = [round(split.tensor * op.layers * size * self._pj_per_byte) for size in moved]
        return PrefillAttentionTerm(
            unit=self.UNIT,
            window_tokens=op.window_tokens,
            causal=flash,
            pieces=((0, 0, round(op.layers * pair_fs)), (memory[0], memory[1], memory[2])),
            dram=(dram[0], dram[1], dram[2]),
            compute_per_pair=round(split.tensor * op.layers * op.heads * width * self.spec.energy.mac_pj),
        )

    def experts(self, op: Experts) -> ExpertTerm:
        """Routed experts, one after the other."""
        return self.expert_term(op, (self.xpu_experts(op),), "first", spaces=1)

    def expert_term(self, op: Experts, units: tuple[ExpertUnit, ...], selection: Selection, spaces: int) -> ExpertTerm:
        """Term that runs experts on `units` as `selection` says."""
        return ExpertTerm(op.layers, op.experts, op.top_k, op.groups, spaces, units, selection)

    def xpu_experts(self, op: Experts) -> ExpertUnit:
        """An expert on the processor: its weights at the processor's bandwidth."""
        spec = self.spec
        return self.expert_unit(
            op,
            unit=self.UNIT,
            weight_fs_per_byte=self.memory_fs(1.0),
            flop_per_s=self.flop_per_s(op.dtype),
            weight_pj_per_byte=self._pj_per_byte,
            decision=(1.0, decision_slope(op, self.flop_per_s(op.dtype) / (spec.memory_gb_per_s * 1e9))),
        )

    def expert_unit(
        self,
        op: Experts,
        *,
        unit: str,
        weight_fs_per_byte: float,
        flop_per_s: float,
        weight_pj_per_byte: float,
        decision: tuple[float, float],
    ) -> ExpertUnit:
        """An expert's slice on a unit: products into the inner width (gate and up), one back, and the activation.

        Inputs and outputs move over the processor's path whatever the unit. The activation function reads and writes
        `matrices` vectors of the inner width per token.
        """
        inner = op.intermediate / op.slices
        weights = op.hidden * inner * op.weight_bytes_per_element
        row_bytes = ACTIVATION_BYTES * (op.hidden + inner)
        product_fs = 2 * op.hidden * inner / flop_per_s * FS_PER_S

        def product(times: int) -> tuple[tuple[int, int], ...]:
            return (
                (0, round(times * product_fs)),
                (round(times * weights * weight_fs_per_byte), round(times * self.memory_fs(row_bytes))),
            )

        activation_bytes = op.matrices * inner * ACTIVATION_BYTES
        token_bytes = op.slices * (op.matrices * row_bytes + activation_bytes)
        return ExpertUnit(
            unit=unit,
            terms=(product(op.matrices - 1), product(1), ((0, round(self.memory_fs(activation_bytes))),)),
            decision=decision,
            weight_pj=round(op.slices * op.matrices * weights * weight_pj_per_byte),
            token_dram_pj=round(token_bytes * self._pj_per_byte),
            token_compute_pj=round(op.matrices * op.hidden * op.intermediate * self.spec.energy.mac_pj),
        )


def decision_slope(op: Experts, flop_per_byte: float) -> float:
    """Slope of the decision table in tokens, for a unit that computes `flop_per_byte` for each byte that it reads.

    A token does 2 FLOPs per weight; 0.75 is the flat DRAM efficiency that the paper's table assumes for every unit.
    """
    return 0.75 * 2 / op.weight_bytes_per_element / flop_per_byte
