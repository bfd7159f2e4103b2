"""What operators are fitted to: single timed calls, and calls that stand for ranges of whole tables.

A share of the peak or bandwidth in gpu_tables.yaml becomes a timed call of a typical shape of its range.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pimserve.cluster.validation import gpu_rows
from pimserve.cluster.validation.gpu_rows import (
    MEASURED,
    OperatorRow,
    Shape,
    catalogue_gpu,
    read_measured,
    reference_file,
)
from pimserve.device_models.catalogue import parse_document
from pimserve.device_models.gpu_spec import GpuSpec
from pimserve.device_models.kernels import Backend
from pimserve.device_models.model import BYTES_PER_ELEMENT, Dtype, compute_dtypes
from pimserve.device_models.registry import load_device

GPUS = ("a100", "b200", "h100", "h200")
BACKENDS: tuple[Backend, ...] = ("vllm", "trtllm")
FOLDS = 3
_TABLES = Path(__file__).parents[1] / "gpu_tables.yaml"
_SIXTEEN_BIT = "q:bfloat16 kv:bfloat16"
_NAMES = {"bf16": "bfloat16"}  # of data types, in tables of calls


@dataclass(frozen=True, slots=True)
class Point:
    """A timed call, or one that stands for many (`single` False)."""

    row: OperatorRow
    weight: float = 1.0
    single: bool = True


@cache
def tables() -> dict[str, Any]:
    """The summaries of whole tables."""
    return parse_document(_TABLES.read_text(encoding="utf-8"), _TABLES.name)


@cache
def single_calls() -> tuple[OperatorRow, ...]:
    """Timed calls of the reference data.

    Raises:
        InputError: it is absent.
    """
    return tuple(read_measured(reference_file(MEASURED)))


def calls_of(gpu: str, backend: str, op: str, dtype: str | None = None) -> list[OperatorRow]:
    """Single calls of one operator; `dtype` is the last data type of a row, that of weights or of the KV cache."""
    return [
        row
        for row in single_calls()
        if (catalogue_gpu(row.gpu), row.backend.lower(), row.op) == (gpu, backend, op)
        and (dtype is None or row.dtype.rpartition(":")[2] == _NAMES.get(dtype, dtype))
    ]


def fold(row: OperatorRow) -> int:
    """Which of `FOLDS` parts a row falls in: a hash of what it measured."""
    return zlib.crc32(repr(row.identity).encode()) % FOLDS


def gemm_points(gpu: str, backend: str, dtype: Dtype) -> Iterator[Point]:
    """Decode-sized products; the largest matrices, which say most of the bandwidth, count more."""
    part = tables()["gemm"]
    for shape, share in zip(part["shapes"], part["shares"].get(f"{gpu}-{backend}", {}).get(dtype, []), strict=False):
        m, width, size = shape["m"], BYTES_PER_ELEMENT[dtype], shape["weight_mb"] * 1e6
        k = round((size / width / 2) ** 0.5)
        moved = width * 2 * k * k + 2 * m * k + 2 * m * 2 * k
        weight = 3.0 if m == 8 and size > 2e8 else 0.6
        seconds = moved / _bandwidth(gpu) / share
        yield _point(gpu, backend, "gemm", dtype, gpu_rows.Gemm(m=m, n=2 * k, k=k), seconds, weight)


def decode_points(gpu: str, backend: str, dtype: Dtype) -> Iterator[Point]:
    """Decode attention of grouped queries."""
    part = tables()["decode_attention"]
    if dtype != "bf16":
        return
    for batch, shares in part["shares"].get(f"{gpu}-{backend}", {}).items():
        for context, share in zip(part["contexts"], shares, strict=False):
            shape = gpu_rows.DecodeAttention(batch=batch, context=context, q_heads=32, kv_heads=8, head_dim=128)
            moved = batch * context * 2 * 8 * 128 * BYTES_PER_ELEMENT[dtype]
            yield _point(gpu, backend, "decode_attention", _SIXTEEN_BIT, shape, moved / _bandwidth(gpu) / share)


def prefill_points(gpu: str, backend: str) -> Iterator[Point]:
    """Prefill attention of long prompts."""
    part = tables()["prefill_attention"]
    for length, share in zip(part["lengths"], part["shares"].get(f"{gpu}-{backend}", []), strict=False):
        shape = gpu_rows.PrefillAttention(batch=4, length=length, q_heads=32, kv_heads=8, head_dim=128)
        flops = 2 * 4 * 32 * 128 * length**2
        yield _point(gpu, backend, "prefill_attention", _SIXTEEN_BIT, shape, flops / _peak(gpu, "bf16") / share)


def moe_points(gpu: str, backend: str, dtype: Dtype) -> Iterator[Point]:
    """Experts under balanced routing."""
    part = tables()["moe"]
    for model, shares in part["shares"].get(f"{gpu}-{backend}", {}).get(dtype, {}).items():
        sizes = part["models"][model]
        for tokens, share in zip(part["tokens"], shares, strict=True):
            shape = gpu_rows.Moe(model=model, tokens=tokens, routing="balanced", **sizes)
            pairs, expert = tokens * shape.topk, 3 * shape.hidden * shape.inter
            if tokens <= 256:
                time = min(shape.experts, pairs) * expert * BYTES_PER_ELEMENT[dtype] / _bandwidth(gpu)
            else:
                time = 2 * pairs * expert / _peak(gpu, dtype)
            yield _point(gpu, backend, "moe", dtype, shape, time / share)


def spec_of(gpu: str) -> GpuSpec:
    """The device of the catalogue."""
    spec = load_device(gpu).spec
    assert isinstance(spec, GpuSpec)
    return spec


def call_of(gpu: str, backend: str, op: str, dtype: str, shape: Shape, time_us: float) -> OperatorRow:
    """A timed call that is not of the reference data."""
    dtype = _NAMES.get(dtype, dtype)
    return OperatorRow(gpu=gpu, backend=backend, op=op, dtype=dtype, shape=shape, time_us=time_us)


def _point(gpu: str, backend: str, op: str, dtype: str, shape: Shape, seconds: float, weight: float = 1.0) -> Point:
    return Point(call_of(gpu, backend, op, dtype, shape, seconds * 1e6), weight, single=False)


def _bandwidth(gpu: str) -> float:
    return spec_of(gpu).memory_gb_per_s * 1e9


def _peak(gpu: str, dtype: Dtype) -> float:
    peaks = spec_of(gpu).peak_tflop_per_s
    return next(peaks[name] for name in compute_dtypes(dtype) if name in peaks) * 1e12
