"""What the processor of a GPU reaches, and what its work costs: rates, kernels and energies.

Of an ideal GPU these are those of its description, of a measured one those of kernels in the catalogue (`kernels.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from pimserve.device_models.gpu_spec import GpuSpec
from pimserve.device_models.kernels import (
    DecodeAttentionKernel,
    GemmKernel,
    Kernels,
    MoeKernel,
    PrefillAttentionKernel,
    stand_in,
)
from pimserve.device_models.model import Dtype, compute_dtypes
from pimserve.device_models.plan import FS_PER_S, PJ_PER_J


class GpuRates:
    """Rates and energies of one GPU; `kernels`: measured ones, None for an ideal GPU."""

    def __init__(self, spec: GpuSpec, kernels: Kernels | None) -> None:
        self.spec = spec
        self.kernels = kernels

    def flop_per_s(self, dtype: str, share: float) -> float:
        """`share` of the peak for operands of `dtype`; what has no peak of its own is widened to 16 bit."""
        peaks: dict[str, float] = {str(name): peak for name, peak in self.spec.peak_tflop_per_s.items()}
        wide = peaks["fp16"] if "fp16" in peaks else peaks["bf16"]
        peak = next((peaks[name] for name in compute_dtypes(dtype) if name in peaks), wide)
        return peak * 1e12 * share

    def memory_fs(self, size: float, share: float) -> float:
        """Time to move `size` bytes between DRAM and the processor at `share` of the nominal bandwidth, fs."""
        return size / (self.spec.memory_gb_per_s * 1e9 * share) * FS_PER_S

    def gemm_flop_per_s(self, dtype: str) -> float:
        """Rate of large matrix products with weights of `dtype`."""
        measured = () if self.kernels is None else self.kernels.gemm
        return self._peak_flop_per_s(dtype, measured) * self.gemm_kernel(dtype).compute

    def moe_flop_per_s(self, dtype: str) -> float:
        """Rate of experts with weights of `dtype`."""
        measured = () if self.kernels is None else self.kernels.moe
        return self._peak_flop_per_s(dtype, measured) * self.moe_kernel(dtype).compute

    def gemm_kernel(self, dtype: str) -> GemmKernel:
        """How matrix products with weights of `dtype` run."""
        if self.kernels is not None:
            return self.kernels.gemm[stand_in(self.kernels.gemm, dtype)]
        return GemmKernel(compute=self.spec.compute_efficiency, memory=self.spec.dram_efficiency)

    def decode_kernel(self, dtype: str) -> DecodeAttentionKernel:
        """How decode attention runs on a cache of `dtype`."""
        if self.kernels is not None:
            return self.kernels.decode_attention[stand_in(self.kernels.decode_attention, dtype)]
        return DecodeAttentionKernel(memory=self.spec.dram_efficiency)

    def prefill_kernel(self) -> PrefillAttentionKernel:
        """How prefill attention runs."""
        if self.kernels is not None:
            return self.kernels.prefill_attention[stand_in(self.kernels.prefill_attention, "bf16")]
        return PrefillAttentionKernel(compute=self.spec.compute_efficiency, memory=self.spec.dram_efficiency)

    def moe_kernel(self, dtype: str) -> MoeKernel:
        """How experts with weights of `dtype` run."""
        if self.kernels is not None:
            return self.kernels.moe[stand_in(self.kernels.moe, dtype)]
        return MoeKernel(compute=self.spec.compute_efficiency, memory=self.spec.dram_efficiency)

    def mac_pj(self, dtype: str) -> float:
        """Energy of one multiply-accumulate of `dtype`, pJ: from circuits, or from the power that prompts draw."""
        power = self.spec.power
        if self.kernels is None or power is None or power.prefill_w is None:
            return self.spec.energy.mac_pj
        rate = self.gemm_flop_per_s(dtype)
        return 2 * (power.prefill_w - power.idle_w) / rate * PJ_PER_J

    @cached_property
    def pj_per_byte(self) -> float:
        """Energy of a byte from DRAM, pJ: from circuits, or from the power that decoding draws."""
        spec, power = self.spec, self.spec.power
        if self.kernels is None or power is None or power.decode_w is None:
            return spec.energy.per_byte_pj(spec.energy.xpu_pj_per_bit)
        rate = spec.memory_gb_per_s * 1e9 * self.gemm_kernel("bf16").memory
        return (power.decode_w - power.idle_w) / rate * PJ_PER_J

    def _peak_flop_per_s(self, dtype: str, measured: Iterable[Dtype]) -> float:
        """Peak for operands of `dtype`, at most that of the data type whose kernel of those `measured` it takes."""
        own = self.flop_per_s(dtype, 1.0)
        return own if self.kernels is None else min(own, self.flop_per_s(stand_in(measured, dtype), 1.0))
