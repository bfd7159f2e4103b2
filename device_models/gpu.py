"""A GPU: one processor in front of its HBM. Also the base of devices that add a processing unit in the memory.

Every operator takes max(FLOPs / (share x peak), bytes / (share x bandwidth)) and what its launch costs; operators run
one after the other. An ideal GPU has shares of its own description and free launches (arXiv 2409.01141), a measured
one those of kernels in the catalogue (`kernels.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pimserve.device_models.catalogue import device_names, kernel_names, load_device_document
from pimserve.device_models.device import (
    Demand,
    Fitted,
    OperatorDevice,
    Roof,
    kv_pool_bytes_per_token,
    measured_kernels,
)
from pimserve.device_models.experts import ExpertTerm, ExpertUnit, Selection
from pimserve.device_models.gpu_rates import GpuRates
from pimserve.device_models.gpu_spec import GpuSpec
from pimserve.device_models.kernels import (
    FS_PER_US,
    SPLIT_K,
    Kernels,
    load_kernels,
)
from pimserve.device_models.model import ModelSpec
from pimserve.device_models.operators import (
    ACTIVATION_BYTES,
    DecodeAttention,
    Experts,
    Gemm,
    Operator,
    Parallelism,
    PrefillAttention,
    Rest,
)
from pimserve.device_models.pipeline import PassivePower
from pimserve.device_models.plan import (
    FS_PER_S,
    CostPlan,
    DecodeAttentionTerm,
    Energy,
    PrefillAttentionTerm,
    RowTerm,
)
from pimserve.device_models.registry import load_device

UW_PER_W = 10**6
_USUAL_BACKEND = "vllm"
_TELLING_SHARE = 0.2  # of the KV cache
# By measured kernels.
_UNUSED = ("dram_efficiency", "compute_efficiency", "link_gb_per_s", "link_latency_us", "one_shot_latency_us")
_RATES = {"peak_tflop_per_s", "memory_gb_per_s", "link_gb_per_s"}


class Gpu(OperatorDevice):
    """Compiles operators to the cost terms of one GPU of a replica: an ideal one, or one with measured kernels."""

    Spec: type[GpuSpec] = GpuSpec
    UNIT = "xpu"

    spec: GpuSpec

    def __init__(self, spec: GpuSpec, kernels: Kernels | None = None) -> None:
        self.spec = spec
        self.kernels = kernels
        self.memory_bytes = spec.memory_gb * 1e9
        self.area_mm2 = spec.area_mm2
        self.rates = GpuRates(spec, kernels)

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the device's processing units."""
        return (self.UNIT,)

    @property
    def key_figures(self) -> Mapping[str, Any]:
        """Memory, its nominal bandwidth, the 16-bit peak, and passive power."""
        spec = self.spec
        peaks = spec.peak_tflop_per_s
        return {
            "memory_gb": spec.memory_gb,
            "memory_gb_per_s": spec.memory_gb_per_s,
            "tflop_per_s_16_bit": peaks.get("bf16", peaks.get("fp16")),
            "passive_w": self.passive_w,
        }

    @property
    def passive_w(self) -> float | None:
        """Power of one device that does nothing, its weights loaded; None where its description does not tell."""
        return None if self.spec.power is None else self.spec.power.idle_w

    def fit(self, demand: Demand) -> Fitted:
        """As every device that runs operators; with a backend, on kernels measured with it."""
        if self.kernels is not None:
            return super().fit(demand)
        if demand.backend is None:
            fitted = super().fit(demand)
            return replace(fitted, warnings=(*fitted.warnings, *self._unreserved(demand, fitted)))
        kernels = measured_kernels(self.spec, demand)
        device = type(self)(self.spec, kernels.captured())
        fitted = device.fit(demand)
        model = demand.model
        routed = () if model.moe is None else (model.routed_dtype,)
        stand_ins = kernels.stand_ins((model.dense_dtype,), routed, model.kv_dtype)
        return replace(
            fitted,
            costs={
                **kernels.label,
                "measured": device.measured_parts,
                "stand_ins": stand_ins,
                "projected": device.projected,
            },
            collective_kernels=kernels.collectives,
            warnings=(*fitted.warnings, *stand_ins, *device.projected, *self._unused(kernels)),
        )

    def roofs(self, model: ModelSpec) -> tuple[Roof, ...]:
        """Of the processor, one for each peak among those of the model's data types and of attention's."""
        dtypes = dict.fromkeys((model.dense_dtype, model.routed_dtype, "fp16"))  # attention computes in 16 bit
        peaks = {self.rates.flop_per_s(dtype, 1.0): dtype for dtype in reversed(dtypes)}
        return tuple(
            Roof(self.UNIT, self.spec.memory_gb_per_s * 1e9, peak, peaks[peak] if len(peaks) > 1 else None)
            for peak in sorted(peaks, reverse=True)
        )

    def reserved_bytes(self, demand: Demand) -> float:
        """What is asked for, else what the measured backend keeps."""
        if demand.reserve_gb is not None or self.kernels is None:
            return super().reserved_bytes(demand)
        return self._backend_keeps(self.kernels, demand)

    def shares_what_is_free(self, demand: Demand) -> bool:
        """As the measured backend does; a stated reserve is of all memory."""
        return demand.reserve_gb is None and self.kernels is not None and self.kernels.memory.share_of == "free"

    def _backend_keeps(self, kernels: Kernels, demand: Demand) -> float:
        return kernels.memory.bytes_beside(
            demand.model,
            demand.split,
            utilization=demand.memory_utilization,
            step_tokens=demand.max_step_tokens,
            step_requests=demand.max_num_seqs,
            parts=demand.parts,
        )

    def _unreserved(self, demand: Demand, fitted: Fitted) -> list[str]:
        """An ideal device keeps memory for nothing else; where that tells, a sentence."""
        kernels = self.spec.kernels
        if demand.reserve_gb is not None or kernels is None or f"{kernels}-{_USUAL_BACKEND}" not in kernel_names():
            return []
        if "attention" not in demand.parts:  # nor is there a KV cache
            return []
        kept = self._backend_keeps(load_kernels(kernels, _USUAL_BACKEND), demand)
        lost = kept * demand.split.data / kv_pool_bytes_per_token(demand.model, demand.split)
        if lost < _TELLING_SHARE * fitted.kv_capacity_tokens:
            return []
        left = max(0, int(fitted.kv_capacity_tokens - lost))
        return [
            f"{self.spec.name} is ideal: of its {fitted.kv_capacity_tokens:,} tokens of KV cache a serving engine has "
            f"room for {left:,}, since it keeps {kept / 1e9:.2f} GB of each device for activations, graphs, libraries; "
            "scheduler.reserve_gb or costs.setting: measured counts them"
        ]

    def _unused(self, kernels: Kernels) -> list[str]:
        """Figures of the description that are not the catalogue's, and that measured kernels make no use of."""
        usual = load_device(self.spec.name if self.spec.name in device_names() else kernels.gpu).spec
        changed = [key for key in _UNUSED if getattr(self.spec, key) != getattr(usual, key)]
        if not changed:
            return []
        keys = ", ".join(changed)
        return [f"{self.spec.name}: measured kernels make no use of {keys}; costs.kernels says what they reach"]

    @property
    def measured_parts(self) -> str:
        """What of a device the kernels tell."""
        return "all"

    @property
    def projected(self) -> list[str]:
        """What no measurement stands behind, though its kernels are measured: sentences."""
        if self.kernels is None:
            return []
        sentences = []
        timed = load_device_document(self.kernels.gpu)
        described = {**timed, **self.spec.model_dump(include=_RATES, exclude_none=True)}
        if self.kernels.gpu != self.spec.name or described != timed:
            sentences.append(
                f"{self.spec.name} runs at the shares of peak and bandwidth measured on {self.kernels.gpu}"
            )
        if self.spec.power is None or self.spec.power.decode_w is None:
            sentences.append("active energy is from circuit figures")
        return sentences

    def compile(self, operators: Sequence[Operator], split: Parallelism) -> CostPlan:
        """Cost plan of all operators that run on devices of this kind; collectives belong to the links."""
        experts = [op for op in operators if isinstance(op, Experts)]
        decode = [(op, self.decode_attention(op, split)) for op in operators if isinstance(op, DecodeAttention)]
        prefill = [op for op in operators if isinstance(op, PrefillAttention)]
        rows = [self.gemm(op, split) for op in operators if isinstance(op, Gemm)]
        if self.kernels is not None:
            rows += [self._decode_launch(op, term.unit) for op, term in decode]
            rows += [self._prefill_launch(op) for op in prefill]
            rows += [self._expert_launch(op, split) for op in experts]
            rows += [term for op in operators if isinstance(op, Rest) for term in self._rest(op, self.kernels)]
        return CostPlan(
            devices=split.devices,
            data_parallel=split.data,
            units=self.units,
            rows=tuple(rows),
            decode=tuple(term for _, term in decode),
            prefill=tuple(self.prefill_attention(op, split) for op in prefill),
            experts=self.experts(experts[0]) if experts else None,
            passive=self._passive(split),
            frontend_ps=0 if self.kernels is None else self.kernels.step.frontend_ps,
        )

    def gemm(self, op: Gemm, split: Parallelism) -> RowTerm:
        """A matrix product: weights are read once, inputs and outputs once per row."""
        kernel = self.rates.gemm_kernel(op.dtype)
        weights = op.weight_bytes_per_element * op.k * op.n
        row_bytes = ACTIVATION_BYTES * (op.k + op.n)
        row_fs = 2 * op.k * op.n / self.rates.gemm_flop_per_s(op.dtype) * FS_PER_S
        launch_fs, depth_fs = kernel.launch_us * FS_PER_US, kernel.depth_us * min(op.k, SPLIT_K) / 1024 * FS_PER_US
        quantise_fs = kernel.activation_passes * self.rates.memory_fs(ACTIVATION_BYTES * op.k, 1.0)
        memory_fs, memory_row_fs = (self.rates.memory_fs(size, kernel.memory) for size in (weights, row_bytes))
        roofs = [(0.0, row_fs), (memory_fs, memory_row_fs + kernel.reread / 128 * memory_fs)]
        if depth_fs:
            roofs.append((depth_fs, 0.0))
        pieces = tuple(
            (round(op.layers * (const + launch_fs)), round(op.layers * (slope + quantise_fs))) for const, slope in roofs
        )
        energy = Energy(
            dram_const=round(split.tensor * op.layers * weights * self.rates.pj_per_byte),
            dram_per_row=round(split.tensor * op.layers * row_bytes * self.rates.pj_per_byte),
            compute_per_row=round(split.tensor * op.layers * op.k * op.n * self.rates.mac_pj(op.dtype)),
        )
        return RowTerm(op.name, op.category, self.UNIT, op.rows, pieces, energy, runs=op.runs)

    def decode_attention(self, op: DecodeAttention, split: Parallelism) -> DecodeAttentionTerm:
        """Decode attention: bound by reading the cache, or by compute with many query heads per KV head."""
        kernel = self.rates.decode_kernel(op.kv_dtype)
        bandwidth = self.spec.memory_gb_per_s * 1e9 * kernel.memory
        compute = self.rates.flop_per_s("fp16", self.rates.gemm_kernel("bf16").compute)
        seconds = max(op.kv_bytes / bandwidth, op.flops / compute)
        term = self.decode_term(op, split, self.UNIT, seconds, (self.rates.pj_per_byte, self.rates.mac_pj("fp16")))
        sequence_fs = self.rates.memory_fs(kernel.sequence_tokens * op.kv_bytes, kernel.memory)
        return replace(term, per_request=round(op.layers * sequence_fs))

    def decode_term(
        self, op: DecodeAttention, split: Parallelism, unit: str, seconds: float, pj: tuple[float, float]
    ) -> DecodeAttentionTerm:
        """Term for an operator that takes `seconds` per context token and layer, and `pj` per byte and product."""
        pj_per_byte, mac_pj = pj
        return DecodeAttentionTerm(
            unit=unit,
            window_tokens=op.window_tokens,
            slope=max(1, round(op.layers * seconds * FS_PER_S / split.data)),
            dram_per_token=round(split.tensor * op.layers * op.kv_bytes * pj_per_byte),
            compute_per_token=round(split.tensor * op.layers * op.flops / 2 * mac_pj),
        )

    def _decode_launch(self, op: DecodeAttention, unit: str) -> RowTerm:
        """Launches of decode attention."""
        launch = round(op.layers * self.rates.decode_kernel(op.kv_dtype).launch_us * FS_PER_US)
        return RowTerm("decode attention, launch", "attention_decode", unit, "decodes", ((launch, 0),))

    def prefill_attention(self, op: PrefillAttention, split: Parallelism) -> PrefillAttentionTerm:
        """Prefill attention, with the score matrix on chip (`flash`) or written to DRAM once and read once."""
        kernel = self.rates.prefill_kernel()
        width = op.qk_dim + op.v_dim
        flash = self.spec.prefill_attention == "flash"
        query_bytes = ACTIVATION_BYTES * op.heads * width
        kv_bytes = op.kv_bytes_per_element * op.kv_heads * width
        pair_bytes = 0.0 if flash else 2 * ACTIVATION_BYTES * op.heads
        pair_fs = 2 * op.heads * width / self.rates.flop_per_s("fp16", kernel.compute) * FS_PER_S
        moved = (query_bytes, kv_bytes, pair_bytes)
        # A causal pass computes half of each square, so that its ramp counts half too.
        ramp_fs = op.layers * pair_fs * kernel.ramp_tokens / (2 if flash else 1)
        memory = [round(op.layers * self.rates.memory_fs(size, kernel.memory)) for size in moved]
        dram = [round(split.tensor * op.layers * size * self.rates.pj_per_byte) for size in moved]
        return PrefillAttentionTerm(
            unit=self.UNIT,
            window_tokens=op.window_tokens,
            causal=flash,
            pieces=((round(ramp_fs), 0, round(op.layers * pair_fs)), (memory[0], memory[1], memory[2])),
            dram=(dram[0], dram[1], dram[2]),
            compute_per_pair=round(split.tensor * op.layers * op.heads * width * self.rates.mac_pj("fp16")),
        )

    def _prefill_launch(self, op: PrefillAttention) -> RowTerm:
        """One launch for all prompts of a step."""
        launch = round(op.layers * self.rates.prefill_kernel().launch_us * FS_PER_US)
        return RowTerm("prefill attention, launch", "attention_prefill", self.UNIT, "prompts", ((launch, 0),))

    def experts(self, op: Experts) -> ExpertTerm:
        """Routed experts, one after the other."""
        return self.expert_term(op, (self.xpu_experts(op),), "first", spaces=1)

    def expert_term(self, op: Experts, units: tuple[ExpertUnit, ...], selection: Selection, spaces: int) -> ExpertTerm:
        """Term that runs experts on `units` as `selection` says."""
        return ExpertTerm(op.layers, op.experts, op.top_k, op.groups, spaces, units, selection)

    def _expert_launch(self, op: Experts, split: Parallelism) -> RowTerm:
        """Launches of a layer's experts, and sorting and summing the tokens that are routed to a device."""
        kernel = self.rates.moe_kernel(op.dtype)
        routed = op.top_k * split.data / op.groups  # of a device's tokens, per token of its data-parallel group
        row_fs = kernel.row_passes * self.rates.memory_fs(routed * op.hidden * ACTIVATION_BYTES, 1.0)
        launch_us = kernel.launch_us + kernel.expert_us * op.physical / op.groups
        pieces = ((round(op.layers * launch_us * FS_PER_US), round(op.layers * row_fs)),)
        return RowTerm("experts, launch and sorting", "moe", self.UNIT, "tokens", pieces, runs="moe_layers")

    def xpu_experts(self, op: Experts) -> ExpertUnit:
        """An expert on the processor: its weights at the processor's bandwidth."""
        spec, kernel = self.spec, self.rates.moe_kernel(op.dtype)
        ideal = self.rates.flop_per_s(op.dtype, spec.compute_efficiency)
        return self.expert_unit(
            op,
            unit=self.UNIT,
            weight_fs_per_byte=self.rates.memory_fs(1.0, kernel.memory),
            flop_per_s=self.rates.moe_flop_per_s(op.dtype),
            padding_tokens=kernel.padding_tokens,
            weight_pj_per_byte=self.rates.pj_per_byte,
            mac_pj=self.rates.mac_pj(op.dtype),
            decision=(1.0, decision_slope(op, ideal / (spec.memory_gb_per_s * 1e9))),
        )

    def expert_unit(
        self,
        op: Experts,
        *,
        unit: str,
        weight_fs_per_byte: float,
        flop_per_s: float,
        weight_pj_per_byte: float,
        mac_pj: float,
        decision: tuple[float, float],
        padding_tokens: float = 0.0,
    ) -> ExpertUnit:
        """An expert's slice on a unit: products into the inner width (gate and up), one back, and the activation.

        Inputs and outputs move over the processor's path whatever the unit. The activation function reads and writes
        `matrices` vectors of the inner width per token.
        """
        share = self.rates.moe_kernel(op.dtype).memory
        inner = op.intermediate / op.slices
        weights = op.hidden * inner * op.weight_bytes_per_element
        row_bytes = ACTIVATION_BYTES * (op.hidden + inner)
        product_fs = 2 * op.hidden * inner / flop_per_s * FS_PER_S

        def product(times: int) -> tuple[tuple[int, int], ...]:
            return (
                (round(times * padding_tokens * product_fs), round(times * product_fs)),
                (round(times * weights * weight_fs_per_byte), round(times * self.rates.memory_fs(row_bytes, share))),
            )

        activation_bytes = op.matrices * inner * ACTIVATION_BYTES
        token_bytes = op.slices * (op.matrices * row_bytes + activation_bytes)
        return ExpertUnit(
            unit=unit,
            terms=(product(op.matrices - 1), product(1), ((0, round(self.rates.memory_fs(activation_bytes, share))),)),
            decision=decision,
            weight_pj=round(op.slices * op.matrices * weights * weight_pj_per_byte),
            token_dram_pj=round(token_bytes * self.rates.pj_per_byte),
            token_compute_pj=round(op.matrices * op.hidden * op.intermediate * mac_pj),
        )

    def _passive(self, split: Parallelism) -> PassivePower | None:
        """Power that the devices draw whether they work or not."""
        if self.passive_w is None:
            return None
        idle = round(split.devices * self.passive_w * UW_PER_W)
        return PassivePower(idle_uw=idle, step_uw=idle)

    def _rest(self, op: Rest, kernels: Kernels) -> tuple[RowTerm, ...]:
        """Norms and the like, and the host of the serving engine."""
        step = kernels.step
        row_fs = self.rates.memory_fs(op.elements * ACTIVATION_BYTES, step.memory)
        layers = ((round(op.layers * step.layer_us * FS_PER_US), round(row_fs)),)
        return (RowTerm("norms and the like", "step", self.UNIT, "tokens", layers), *step.host_terms())


def decision_slope(op: Experts, flop_per_byte: float) -> float:
    """Slope of the decision table in tokens, for a unit that computes `flop_per_byte` for each byte that it reads.

    A token does 2 FLOPs per weight; 0.75 is the flat DRAM efficiency that the paper's table assumes for every unit.
    """
    return 0.75 * 2 / op.weight_bytes_per_element / flop_per_byte
