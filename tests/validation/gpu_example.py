"""Made-up rows in the forms of the reference data, and where that data is."""

import json
import os
from pathlib import Path

import pytest

from pimserve.cluster.validation.gpu_rows import MEASURED, REFERENCE_ENV, SERVED, read_measured, read_served

ROOT = Path(__file__).parents[2]
REFERENCE = Path(os.environ.get(REFERENCE_ENV) or ROOT.parent / "shared" / "reference")
needs_reference = pytest.mark.skipif(
    not (REFERENCE / MEASURED).is_file() or not (REFERENCE / SERVED).is_file(),
    reason=f"no GPU reference data in {REFERENCE} (set {REFERENCE_ENV})",
)

GEMM = {
    "gpu": "H100-SXM-80GB",
    "op": "gemm",
    "shape": {"m": 64, "n": 8192, "k": 8192},
    "dtype": "bfloat16",
    "backend": "vllm",
    "version": "0.24.0",
    "kernel": "linear",
    "time_us": 50.0,
    "source": "made up",
}
DECODE = GEMM | {
    "op": "decode_attention",
    "shape": {"batch": 32, "context": 4096, "q_heads": 32, "kv_heads": 8, "head_dim": 128},
    "dtype": "q:bfloat16 kv:bfloat16",
}
PREFILL = GEMM | {
    "op": "prefill_attention",
    "shape": {"batch": 2, "length": 4096, "q_heads": 32, "kv_heads": 8, "head_dim": 128},
    "dtype": "q:bfloat16 kv:bfloat16",
}
MOE = GEMM | {
    "op": "moe",
    "shape": {
        "model": "Mixtral-8x7B",
        "tokens": 256,
        "hidden": 4096,
        "inter": 14336,
        "topk": 2,
        "experts": 8,
        "tp": 2,
        "routing": "balanced",
    },
}
ALL_REDUCE = GEMM | {"op": "all_reduce", "shape": {"gpus": 8, "bytes": 1 << 20}, "kernel": "vLLM_custom_graph"}
NCCL = ALL_REDUCE | {"backend": "nccl", "dtype": "half"}
OPERATORS = (GEMM, DECODE, PREFILL, MOE, ALL_REDUCE, NCCL)

LLAMA = {
    "gpu": "H100-SXM-80GB",
    "model": "meta-llama/Llama-3.1-70B",
    "backend": "vllm",
    "version": "",
    "precision": "fp8",
    "gpus": 4,
    "tp": 4,
    "moe_tp": 4,
    "moe_ep": 1,
    "isl": 256,
    "osl": 32,
    "concurrency": 4,
    "ttft_ms": 60.0,
    "tpot_ms": 12.0,
    "measured": "",
}
QUEUED = {
    "system": "2x H100",
    "model": "Llama-3.3-70B",
    "scenario": "max throughput, ISL 128 OSL 128, TP2",
    "tokens_per_s": 6378.0,
    "precision": "FP8",
    "software": "TensorRT-LLM 1.0",
    "confidence": "seen",
    "isl": 128,
    "osl": 128,
    "gpus": 2,
}
MLPERF = {
    "system": "8x H200-SXM-141GB",
    "model": "Llama2-70B",
    "scenario": "MLPerf v4.1 Server",
    "tokens_per_s": 29228.0,
    "samples_per_s": 100.35,
    "precision": "FP8",
    "software": "TensorRT-LLM (MLPerf v4.1 harness)",
    "confidence": "seen",
    "ttft_ms": {"mean": 198.3, "p50": 180.8},
    "tpot_ms": {"mean": 123.3, "p50": 124.3},
}


def write(folder: Path, name: str, document: object) -> Path:
    path = folder / name
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def operators(folder: Path, *rows):
    """Rows as the package reads them."""
    return read_measured(write(folder, "measured.json", {"rows": rows}))


def served(folder: Path, *rows):
    return read_served(write(folder, "served.json", {"served": {"rows": rows}}))[0]


def anchors(folder: Path, *rows):
    return read_served(write(folder, "anchors.json", {"anchors": rows}))[1]
