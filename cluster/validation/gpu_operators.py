"""What the simulator says that a timed operator takes: the operator alone, compiled and costed as in a served step.

An operator becomes a cost plan of one layer on one GPU with the kernels of the row's backend, and the plan is evaluated
for the row's sizes; a collective goes through the links. A MoE row is the mean over the draws of `gpu_routing.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from pimserve.cluster.scenario.interconnect import Interconnect
from pimserve.cluster.validation import gpu_rows
from pimserve.cluster.validation.gpu_routing import expert_loads
from pimserve.cluster.validation.gpu_rows import NotCovered, OperatorRow, catalogue_gpu
from pimserve.device_models.evaluate import evaluate, shape_of
from pimserve.device_models.gpu import Gpu
from pimserve.device_models.gpu_spec import GpuSpec
from pimserve.device_models.kernels import Backend, Kernels, load_kernels, stand_in
from pimserve.device_models.model import BYTES_PER_ELEMENT, Dtype
from pimserve.device_models.operators import (
    ACTIVATION_BYTES,
    AllReduce,
    DecodeAttention,
    Experts,
    Gemm,
    Operator,
    Parallelism,
    PrefillAttention,
)
from pimserve.device_models.registry import load_device
from pimserve.errors import InputError

_FS_PER_US = 10**9
_MATRICES = 3  # gate, up and down of an expert
_DTYPES: dict[str, Dtype] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
}
_SIXTEEN_BIT = {"bf16", "fp16"}
_NCCL = "NCCL"  # how names of its algorithms begin


def predicted_us(row: OperatorRow) -> float:
    """Microseconds that the measured setting gives for a row.

    Raises:
        NotCovered: the catalogue has no GPU, kernels or data type for it, or its operator is unknown.
    """
    device, kernels = _device(row)
    shape = row.shape
    if isinstance(shape, gpu_rows.AllReduce):
        return _all_reduce_us(row, shape, device.spec, kernels)
    return device_us(row, device)


def device_us(row: OperatorRow, device: Gpu) -> float:
    """Microseconds that a device with measured kernels needs for a row, which is no collective's.

    Raises:
        NotCovered: its data type has no measured kernel, or its operator is unknown.
    """
    assert device.kernels is not None
    plan, shape = device.compile([operator_of(row, device.kernels)], Parallelism()), row.shape
    time: float
    if isinstance(shape, gpu_rows.Gemm):
        time = plan.rows_fs(shape.m, 0, 0, 0)
    elif isinstance(shape, gpu_rows.DecodeAttention):
        time = evaluate(plan, shape_of(plan, shape.batch, shape.batch * shape.context, outputs=0)).duration_fs
    elif isinstance(shape, gpu_rows.PrefillAttention):
        time = evaluate(plan, shape_of(plan, 0, 0, [(shape.length, 0)] * shape.batch, 0)).duration_fs
    else:
        assert isinstance(shape, gpu_rows.Moe)
        assert plan.experts is not None
        time = float(
            plan.rows_fs(shape.tokens, 0, 0, 0) + plan.experts.layer_features(expert_loads(shape))[:, 0].mean()
        )
    return time / _FS_PER_US


def bound_us(row: OperatorRow) -> float:
    """Microseconds below which no GPU can do it: its bytes at nominal bandwidth, or its FLOPs at the dense peak.

    Links count one way; a GPU sends (n - 1) / n of an all-reduce's bytes at least, where the switch sums them.

    Raises:
        NotCovered: as `predicted_us`.
    """
    device, kernels = _device(row)
    spec, shape = device.spec, row.shape
    if isinstance(shape, gpu_rows.AllReduce):
        return shape.bytes * (shape.gpus - 1) / shape.gpus / (spec.link_gb_per_s * 1e3)
    operator = operator_of(row, kernels)
    dtype: Dtype = "bf16"  # FP8 queries would run at the FP8 peak, but every row that is covered has 16-bit queries
    if isinstance(shape, gpu_rows.Gemm):
        dtype, width = _dtype(row.dtype), BYTES_PER_ELEMENT[_dtype(row.dtype)]
        flops = 2.0 * shape.m * shape.n * shape.k
        moved = shape.n * shape.k * width + ACTIVATION_BYTES * shape.m * shape.n
        moved += shape.m * shape.k * min(ACTIVATION_BYTES, width)
    elif isinstance(operator, DecodeAttention):
        assert isinstance(shape, gpu_rows.DecodeAttention)
        read_tokens = shape.batch * min(shape.context, operator.window_tokens or shape.context)
        flops, moved = operator.flops * read_tokens, operator.kv_bytes * read_tokens
    elif isinstance(operator, PrefillAttention):
        assert isinstance(shape, gpu_rows.PrefillAttention)
        window = operator.window_tokens or shape.length
        pairs = window * (window + 1) // 2 + max(0, shape.length - window) * window
        flops = 4.0 * shape.batch * operator.heads * operator.qk_dim * pairs
        kv = operator.kv_heads * operator.kv_bytes_per_element
        moved = 2.0 * shape.batch * shape.length * operator.qk_dim * (operator.heads * ACTIVATION_BYTES + kv)
    else:
        assert isinstance(shape, gpu_rows.Moe)
        dtype = _dtype(row.dtype)
        expert = _MATRICES * shape.hidden * shape.inter / shape.tp
        read_experts = float((expert_loads(shape) > 0).sum(axis=1).mean())
        flops = 2.0 * shape.tokens * shape.topk * expert
        moved = read_experts * expert * BYTES_PER_ELEMENT[dtype]
    return max(flops / device.rates.flop_per_s(dtype, 1.0), moved / (spec.memory_gb_per_s * 1e9)) * 1e6


def operator_class(row: OperatorRow) -> str:
    """What a row is counted with: its operator, with its data type, or how tokens choose experts."""
    if isinstance(row.shape, gpu_rows.Moe):
        return f"{row.op} {'balanced' if row.shape.routing == 'balanced' else 'power law'}"
    if isinstance(row.shape, gpu_rows.Gemm):
        return f"{row.op} {_dtype(row.dtype)}"
    if isinstance(row.shape, gpu_rows.DecodeAttention):
        return f"{row.op} {_attention_dtypes(row.dtype)[1]} cache"
    return f"{row.op} nccl" if row.backend.lower() == "nccl" else row.op


def kv_bytes(row: OperatorRow) -> float:
    """Bytes of the KV cache that a row of decode attention reads."""
    shape = row.shape
    assert isinstance(shape, gpu_rows.DecodeAttention)
    element = BYTES_PER_ELEMENT[_attention_dtypes(row.dtype)[1]]
    return 2 * shape.batch * shape.context * (shape.kv_heads or shape.q_heads) * shape.head_dim * element


def operator_of(row: OperatorRow, kernels: Kernels) -> Operator:
    """One layer of a row's operator.

    Raises:
        NotCovered: its data type has no measured kernel.
    """
    shape = row.shape
    if isinstance(shape, gpu_rows.Gemm):
        dtype = _measured(kernels.gemm, _dtype(row.dtype), row)
        return Gemm("gemm", "fc", 1, shape.k, shape.n, BYTES_PER_ELEMENT[dtype], dtype)
    if isinstance(shape, gpu_rows.DecodeAttention | gpu_rows.PrefillAttention):
        query, kv = _attention_dtypes(row.dtype)
        heads, kv_heads, width = shape.q_heads, shape.kv_heads or shape.q_heads, shape.head_dim
        kv_bytes = BYTES_PER_ELEMENT[kv]
        window = shape.window_size or None
        if isinstance(shape, gpu_rows.PrefillAttention):
            _measured(kernels.prefill_attention, query, row)
            return PrefillAttention(1, heads, kv_heads, width, width, kv_bytes, window)
        if query not in _SIXTEEN_BIT:
            raise NotCovered(f"decode attention with queries in {query} was not measured")
        _measured(kernels.decode_attention, kv, row)
        return DecodeAttention(1, 2 * kv_heads * width * kv_bytes, 4 * heads * width, window, kv)
    if isinstance(shape, gpu_rows.Moe):
        dtype = _measured(kernels.moe, _dtype(row.dtype), row)
        if shape.ep != 1:
            raise NotCovered(f"experts spread over {shape.ep} GPUs: which of them were timed is not said")
        return Experts(
            layers=1,
            experts=shape.experts,
            top_k=shape.topk,
            hidden=shape.hidden,
            intermediate=shape.inter,
            matrices=_MATRICES,
            weight_bytes_per_element=BYTES_PER_ELEMENT[dtype],
            dtype=dtype,
            groups=1,
            slices=shape.tp,
            physical=shape.experts,
        )
    raise NotCovered(f"operator {row.op!r} is unknown (known: {', '.join(gpu_rows.SHAPES)})")


def _all_reduce_us(row: OperatorRow, shape: gpu_rows.AllReduce, spec: GpuSpec, kernels: Kernels) -> float:
    """The fastest algorithm of the library that was timed; a served step takes the fastest of all."""
    if shape.gpus == 1:
        raise NotCovered("an all-reduce needs two GPUs or more")
    if "eager" in row.kernel.lower():
        raise NotCovered("launched outside a CUDA graph; decode steps run inside one")
    of_nccl = row.backend.lower() == "nccl"
    collectives = kernels.collectives
    measured = {
        group: tuple(algorithm for algorithm in algorithms if algorithm.name.startswith(_NCCL) == of_nccl)
        for group, algorithms in collectives.all_reduce.items()
    }
    if not measured.get(shape.gpus):
        raise NotCovered(f"{row.backend} all-reduce over {shape.gpus} GPUs was not measured")
    links = Interconnect(spec.link_gb_per_s, spec.link_latency_us, spec.link_gb_per_s, spec.link_latency_us, 0.0)
    split = Parallelism(devices_per_node=shape.gpus, tensor=shape.gpus)
    operator = AllReduce(1, float(shape.bytes), shape.gpus)
    terms = links.compile([operator], split, collectives.model_copy(update={"all_reduce": measured}))
    return sum(term.time_fs(1) for term in terms) / _FS_PER_US


def _device(row: OperatorRow) -> tuple[Gpu, Kernels]:
    """The row's GPU with the kernels of its backend. NCCL is the same library under every backend."""
    spec = load_device(catalogue_gpu(row.gpu)).spec
    assert isinstance(spec, GpuSpec)
    name = row.backend.lower()
    backends: Sequence[str] = ("vllm", "trtllm") if name == "nccl" else (name,)
    known: tuple[str, ...] = get_args(Backend)
    if not set(backends) <= set(known):
        raise NotCovered(f"backend {row.backend!r} was not measured (there are {', '.join(known)})")
    for backend in backends:
        try:
            kernels = load_kernels(spec.kernels or spec.name, backend)
        except InputError as error:
            reason = error.message
        else:
            return Gpu(spec, kernels), kernels
    raise NotCovered(reason)


def _dtype(text: str) -> Dtype:
    if text not in _DTYPES:
        raise NotCovered(f"data type {text!r} is unknown (known: {', '.join(_DTYPES)})")
    return _DTYPES[text]


def _attention_dtypes(text: str) -> tuple[Dtype, Dtype]:
    """Data types of queries and of the KV cache, from a text such as "q:bfloat16 kv:fp8"."""
    parts = dict(part.split(":", 1) for part in text.split() if ":" in part)
    if parts.keys() != {"q", "kv"}:
        raise NotCovered(f"data types {text!r} are not of the form 'q:TYPE kv:TYPE'")
    return _dtype(parts["q"]), _dtype(parts["kv"])


def _measured(kernels: Iterable[Dtype], dtype: Dtype, row: OperatorRow) -> Dtype:
    """`dtype`, where a kernel of its own (or of the other 16-bit type) was measured."""
    try:
        used = stand_in(kernels, dtype)
    except InputError as error:
        raise NotCovered(error.message) from None
    if used != dtype and {used, dtype} != _SIXTEEN_BIT:
        raise NotCovered(f"no {row.op} kernel was measured in {dtype} with {row.backend}")
    return dtype
