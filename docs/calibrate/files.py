"""A calibrated set of kernels, and the file of the catalogue that holds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.points import calls_of, tables
from pimserve.device_models import catalogue
from pimserve.device_models.kernels import Kernels

FOLDER = Path(catalogue.__file__).parent / "kernels"
_MEMORY_SOURCE = (
    "memory: start-up logs of vLLM: driver, 31.37 of 31.84 GiB (RTX 5090, vllm issue 14452), 31.38 of 31.86 (RTX "
    "PRO 4500, pull request 51590), 79.19 of 79.65 (H100); libraries, collectives, logit_bytes: 49 start-ups of "
    "vLLM 0.19.0 on H100, taken over for other GPUs (llm-d-planner, "
    "docs/accuracy/vllm-v0.19.0-accuracy-report.md, Apache-2.0): 0.25 GiB alone and 2.1 with tensor parallelism, "
    "14 bytes by the vocabularies of 100,352 to 256,000 entries, step 0.12 GiB by what they leave; graphs: 0.17 "
    "to 0.37 GiB, counted since 0.21"
)
_TAKEN_OVER = "memory: of vLLM, taken over; assumed; share_of: free_gpu_memory_fraction of TensorRT-LLM's KvCacheConfig"
_SOURCE = "NVIDIA aiconfigurator (systems/data, commit 095f58a5, 2026-08-21, Apache-2.0)"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Coefficients of one GPU with one backend, in the form of the catalogue's document."""

    gpu: str
    backend: str
    kernels: Mapping[str, Mapping[str, Mapping[str, float]]]
    collectives: Mapping[str, Mapping[int, list[dict[str, Any]]]]
    step: Mapping[str, float]
    step_of: str

    @property
    def name(self) -> str:
        """GPU-BACKEND."""
        return f"{self.gpu}-{self.backend}"

    @property
    def version(self) -> str:
        """Of the backend."""
        return str(tables()["versions"][self.gpu][self.backend])

    def document(self) -> dict[str, Any]:
        """The catalogue's document."""
        return {
            "gpu": self.gpu,
            "backend": self.backend,
            "version": self.version,
            **self.kernels,
            "collectives": self.collectives,
            "step": self.step,
            "memory": self.memory,
            "sources": list(self.sources()),
        }

    @property
    def memory(self) -> dict[str, Any]:
        """What the backend keeps of a device's memory."""
        return {**({} if self.backend == "vllm" else {"share_of": "free"}), **tables()["memory"]}

    def validated(self) -> Kernels:
        """As the simulator takes it."""
        return Kernels.model_validate(self.document())

    def text(self) -> str:
        """The catalogue's file."""
        lines = [f"gpu: {self.gpu}", f"backend: {self.backend}", f"version: {self.version}"]
        for section, kernels in self.kernels.items():
            lines += [f"{section}:", *(f"  {dtype}: {mapping(kernel)}" for dtype, kernel in kernels.items())]
        lines.append("collectives:")
        for name, groups in self.collectives.items():
            lines.append(f"  {name}:")
            for group, algorithms in groups.items():
                lines += [f"    {group}:", *(f"      - {mapping(algorithm)}" for algorithm in algorithms)]
        lines += [
            f"step: {mapping(self.step)}",
            f"memory: {mapping(self.memory)}",
            "sources:",
            *(f'  - "{source}"' for source in self.sources()),
        ]
        return "\n".join(lines) + "\n"

    def sources(self) -> Iterator[str]:
        """Where the coefficients are from."""
        gemm, nccl = self.kernels["gemm"], tables()["versions"][self.gpu]["nccl"]
        fitted = [dtype for dtype in gemm if calls_of(self.gpu, self.backend, "gemm", dtype)]
        whole = [dtype for dtype in gemm if dtype not in fitted]
        yield (
            f"gemm {', '.join(fitted)}; decode_attention; prefill_attention (its memory share is assumed); moe: fitted "
            f"to rows of {_SOURCE}, "
            f"{self.backend} {self.version}, and to the shares that its whole tables show by shape "
            "(docs/gpu_tables.yaml)"
        )
        captured = [
            f"{section} {dtype}"
            for section, kernels in self.kernels.items()
            for dtype, kernel in kernels.items()
            if "captured_us" in kernel
        ]
        if captured:
            yield f"captured_us of {', '.join(captured)}: see docs/gpu_tables.yaml; from served systems"
        if whole:
            yield f"gemm {', '.join(whole)}: least-squares fit of the whole table of the same source"
        if self.name == "a100-trtllm":
            yield "decode_attention: of vLLM 0.14.0; the table of TensorRT-LLM 1.0.0 breaks the bandwidth bound"
        if self.backend == "vllm" and "fp8" in gemm:
            yield (
                f"fp8_block has no GEMM entry: the table of vLLM {self.version} was timed with warm weights, outside a "
                "CUDA graph"
            )
        yield (
            f"collectives: custom kernels in a CUDA graph, and NCCL {nccl}, same source; fits and largest sizes of "
            "whole tables (docs/gpu_tables.yaml), of which algorithms are told apart by a few numbers that all GPUs "
            "and libraries share"
        )
        if self.gpu != "h100":
            yield (
                "all_gather, reduce_scatter, all_to_all: of H100, scaled by the ratio of the two GPUs in NCCL "
                "all-reduce: of latency over 8 GPUs, and the median ratio of bandwidths"
            )
        if self.step_of == self.name:
            yield (
                "step: fitted to mean TPOT and TTFT of Llama-3.1-70B as InferenceMAX (SemiAnalysisAI/InferenceX) "
                "served it, from systems/silicon_sample.csv of the same source; its memory share is assumed"
            )
        else:
            yield f"step: taken over from {self.step_of}"
        yield _MEMORY_SOURCE if self.backend == "vllm" else _TAKEN_OVER


def mapping(values: Mapping[str, Any]) -> str:
    """A mapping on one line, as YAML."""
    parts = (f"{key}: {value:g}" if isinstance(value, float) else f"{key}: {value}" for key, value in values.items())
    return "{" + ", ".join(parts) + "}"
