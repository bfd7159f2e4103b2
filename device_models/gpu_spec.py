"""How a GPU is described: peaks, memory, energy, power."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pimserve.device_models.device import DeviceSpec
from pimserve.device_models.kernels import NonNegative, Share
from pimserve.device_models.model import Dtype
from pimserve.quantity import Gigabytes, GigabytesPerSecond, Teraflops

Watts = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class DramEnergy(BaseModel):
    """Energy of moving data and multiplying, pJ."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    xpu_pj_per_bit: NonNegative = Field(description="DRAM cell to processor, without row activation")
    row_activation_nj: NonNegative
    row_bytes: Annotated[int, Field(gt=0, le=2**30)] = 1024
    mac_pj: NonNegative = Field(description="one 16-bit multiply-accumulate, two FLOPs")

    def per_byte_pj(self, pj_per_bit: float) -> float:
        """One byte over a path of `pj_per_bit`, with its share of the row activation."""
        return 8 * pj_per_bit + 1000 * self.row_activation_nj / self.row_bytes


class Power(BaseModel):
    """What a board draws, W. `idle_w` is its passive power in every setting.

    With the other two, the measured setting takes active energy from them in place of circuit figures: bytes cost what
    decoding draws above idle over the bandwidth that it reaches, multiplications what prompts draw above idle over the
    peak that they reach.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    idle_w: Watts = Field(description="weights loaded, no work")
    decode_w: Watts | None = Field(None, description="bound by memory: decoding; goes with prefill_w")
    prefill_w: Watts | None = Field(None, description="bound by compute: prompts; goes with decode_w")

    @model_validator(mode="after")
    def _work_costs(self) -> Self:
        working = [watts for watts in (self.decode_w, self.prefill_w) if watts is not None]
        if len(working) == 1:
            raise ValueError("decode_w and prefill_w go together")
        if working and self.idle_w > min(working):
            raise ValueError("idle_w must be at most decode_w and prefill_w")
        return self


class GpuSpec(DeviceSpec):
    """A GPU preset."""

    default_preset: ClassVar[str | None] = "h100"
    taken_over: ClassVar[tuple[str, ...]] = (
        "dram_efficiency",
        "compute_efficiency",
        "one_shot_latency_us",
        "energy",
        "power.idle_w",
    )
    area_of_die: ClassVar[str] = "area_mm2"  # the figure that holds for the processor as it is built

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
    area_mm2: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        None, description="silicon that computes, without the memory stacks"
    )
    energy: DramEnergy
    power: Power | None = Field(None, description="of the whole board")

    @field_validator("peak_tflop_per_s")
    @classmethod
    def _has_16_bit(cls, peaks: dict[Dtype, float]) -> dict[Dtype, float]:
        if not peaks.keys() & {"fp16", "bf16"}:
            raise ValueError("needs a peak for fp16 or bf16, at which data types without one of their own run")
        return peaks

    @property
    def peak_16_bit_tflop_per_s(self) -> float:
        """Dense 16-bit peak."""
        peaks = self.peak_tflop_per_s
        return peaks["fp16"] if "fp16" in peaks else peaks["bf16"]

    def following(self, base: DeviceSpec, given: Mapping[str, Any]) -> tuple[Self, tuple[str, ...]]:
        """What work draws above idle follows the rates, as a byte and a multiplication cost what they cost on `base`.

        The area and the TDP of a built part do not. A slower part keeps them, which is said; of a faster one they are
        not known unless they are given, and its passive power is that of the part as it is built: a caveat.
        """
        assert isinstance(base, GpuSpec)
        rates = {
            "memory_gb_per_s": self.memory_gb_per_s / base.memory_gb_per_s,
            "peak_tflop_per_s": self.peak_16_bit_tflop_per_s / base.peak_16_bit_tflop_per_s,
        }
        usual_peaks = base.peak_tflop_per_s
        peaks = {key: usual_peaks.get(key, base.peak_16_bit_tflop_per_s) for key in self.peak_tflop_per_s}
        ratios = {
            "memory_gb_per_s": {rates["memory_gb_per_s"]},
            "peak_tflop_per_s": {self.peak_tflop_per_s[key] / usual for key, usual in peaks.items()},
        }
        changed = [key for key, quotients in ratios.items() if quotients != {1}]
        raised = [key for key, quotients in ratios.items() if max(quotients) > 1]
        said = []
        power, power_given = self.power, given.get("power") or {}
        if power is not None and base.power is not None:
            watts = {}
            for key, rate in (("decode_w", "memory_gb_per_s"), ("prefill_w", "peak_tflop_per_s")):
                usual, own = getattr(base.power, key), getattr(power, key)
                if rate in changed and key not in power_given and None not in {usual, own}:
                    watts[key] = power.idle_w + (usual - base.power.idle_w) * rates[rate]
                    said.append(f"power.{key} {watts[key]:.4g} follows {rate}, from {usual:g} of {base.name}")
            power = power.model_copy(update=watts)
        built = {key: getattr(self, key) for key in (self.area_of_die, "tdp_w")}
        kept = {key: value for key, value in built.items() if value is not None and key not in given}
        if "area_mm2" in given:  # of the whole device
            kept.pop(self.area_of_die, None)
        told = " and ".join(f"{key} {value:g}" for key, value in kept.items())
        if not raised:
            if changed and kept:
                said.append(f"{told} are of {base.name} as it is built, with other {' and '.join(changed)}")
            return self.model_copy(update={"power": power}), tuple(said)
        above = f"{' and '.join(raised)} above {base.name}'s"
        caveats = []
        if kept:
            keys = " and ".join(f"cluster.device.{key}" for key in kept)
            caveats.append(
                f"{above}: {told} are of {base.name} as it is built, and not known of this device: give {keys}"
            )
        if power is not None and "idle_w" not in power_given:
            caveats.append(
                f"{above}: its passive power is that of {base.name} as it is built, {power.idle_w:g} W: give "
                "cluster.device.power.idle_w"
            )
        update = {"power": power, "caveats": (*self.caveats, *caveats), **dict.fromkeys(kept)}
        return self.model_copy(update=update), tuple(said)
