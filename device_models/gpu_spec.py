"""How a GPU is described: peaks, memory, energy, power."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pimserve.device_models.device import DeviceSpec
from pimserve.device_models.kernels import NonNegative, Share
from pimserve.device_models.model import Dtype
from pimserve.quantity import Gigabytes, GigabytesPerSecond, Teraflops

Watts = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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


class Power(BaseModel):
    """What a board draws, W: the measured setting takes energy from it, in place of circuit figures.

    Bytes cost what decoding draws above idle over the bandwidth that it reaches, multiplications what prompts draw
    above idle over the peak that they reach.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    idle_w: Watts = Field(description="weights loaded, no work")
    decode_w: Watts = Field(description="bound by memory: decoding")
    prefill_w: Watts = Field(description="bound by compute: prompts")

    @model_validator(mode="after")
    def _work_costs(self) -> Self:
        if self.idle_w > min(self.decode_w, self.prefill_w):
            raise ValueError("idle_w must be at most decode_w and prefill_w")
        return self


class GpuSpec(DeviceSpec):
    """A GPU preset."""

    kind: Literal["gpu"] = "gpu"
    peak_tflop_per_s: dict[Dtype, Teraflops] = Field(
        description="dense peak per data type; others run at the 16-bit peak"
    )
    memory_gb: Gigabytes
    memory_gb_per_s: GigabytesPerSecond = Field(description="nominal DRAM bandwidth")
    dram_efficiency: Share = Field(1.0, description="share of the nominal bandwidth that ideal kernels reach")
    compute_efficiency: Share = Field(1.0, description="share of the peak that ideal kernels reach")
    prefill_attention: Literal["flash", "score_matrix"] = Field(
        "flash", description="flash: causal, scores stay on chip; score_matrix: full, scores go to DRAM and back"
    )
    area_mm2: Annotated[float, Field(gt=0)] | None = Field(
        None, description="silicon that computes, without the memory stacks"
    )
    energy: DramEnergy
    power: Power | None = Field(None, description="of the whole board; with setting: measured only")

    @field_validator("peak_tflop_per_s")
    @classmethod
    def _has_16_bit(cls, peaks: dict[Dtype, float]) -> dict[Dtype, float]:
        if not peaks.keys() & {"fp16", "bf16"}:
            raise ValueError("needs a peak for fp16 or bf16, at which data types without one of their own run")
        return peaks
