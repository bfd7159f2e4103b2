"""Which kernels of a GPU with a backend are fitted, and what is known of them before: priors, bounds, weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from calibrate.fitting import Parameter
from calibrate.operators import Task
from calibrate.points import Point, calls_of, decode_points, gemm_points, moe_points, prefill_points, spec_of, tables
from pimserve.cluster.validation.gpu_operators import kv_bytes, operator_class
from pimserve.device_models.kernels import Backend
from pimserve.device_models.model import Dtype

_MOE_DTYPES: tuple[Dtype, ...] = ("bf16", "fp8", "fp8_block")
_LONG_US = 40.0  # reading the cache takes longer than the launch: such calls are what a loaded server makes
_PREFILL_MEMORY = 0.8  # never what bounds flash attention
_EXPERT_US = 0.32


def gemm_tasks(gpu: str, backend: Backend) -> Iterator[Task]:
    """Matrix products of which single calls are at hand; of others the fit of the whole table is the kernel."""
    for dtype, whole in tables()["gemm"]["fits"][f"{gpu}-{backend}"].items():
        calls = [Point(row) for row in calls_of(gpu, backend, "gemm", dtype)]
        if not calls:
            continue
        # The whole-table fit of nvfp4 is off by 41 % in one call of ten, and says little of small products.
        loose = 4.5 if dtype == "nvfp4" else 1.0
        compute, memory, passes = whole["compute"], whole["memory"], whole.get("activation_passes")
        parameters = [
            Parameter("compute", compute, 0.22 * compute, 0.05, 1, 0.1),
            Parameter("memory", memory, 0.41 * loose * memory, 0.05, 0.95, 0.1),
            Parameter("launch_us", 0, np.inf, 3 if dtype == "nvfp4" else 0, 50, 3),
            Parameter("depth_us", 1, 7, 0, 5, 0.5),
            Parameter("reread", 0.1, 0.45, 0, 0.4, 0.1),
        ]
        if passes is not None:
            parameters.append(Parameter("activation_passes", passes, 1.8 * loose**0.5 * (passes + 0.1), 0, 30, 2))
        starts = [
            {
                **whole,
                "memory": 1.03 * memory,
                "launch_us": launch * whole["launch_us"],
                "depth_us": depth,
                "reread": reread,
            }
            for launch in (0.7, 1)
            for depth in (0.4, 0.8, 1.2, 1.6)
            for reread in (0.05, 0.15)
        ]
        yield Task("gemm", dtype, [*calls, *gemm_points(gpu, backend, dtype)], parameters, starts, {}, digits=2)


def decode_tasks(gpu: str, backend: Backend) -> Iterator[Task]:
    """Decode attention by the data type of the cache."""
    for dtype, whole in tables()["decode_attention"]["fits"].get(f"{gpu}-{backend}", {}).items():
        memory, launch, tokens = whole["memory"], whole["launch_us"], whole["sequence_tokens"]
        parameters = [
            Parameter("memory", memory, 0.36 * memory, 0.1, 0.97, 0.1),
            Parameter("launch_us", launch, 0.47 * launch, 0, 50, 3),
            Parameter("sequence_tokens", tokens, 1.3 * tokens, 0, 1000, 50),
        ]
        calls = [Point(row) for row in calls_of(gpu, backend, "decode_attention", dtype)]
        bandwidth = spec_of(gpu).memory_gb_per_s * 1e9
        points = [
            replace(point, weight=3.0) if kv_bytes(point.row) / bandwidth * 1e6 > _LONG_US else point
            for point in [*calls, *decode_points(gpu, backend, dtype)]
        ]
        yield Task("decode_attention", dtype, points, parameters, [whole], {})


def prefill_tasks(gpu: str, backend: Backend) -> Iterator[Task]:
    """Prefill attention with 16-bit queries."""
    parameters = [
        Parameter("compute", 0.5, np.inf, 0.05, 1, 0.1),
        Parameter("launch_us", 13, 25, 0, 60, 5),
        Parameter("ramp_tokens", 0, np.inf, 0, 10000, 300),
    ]
    starts = [
        {"compute": compute, "launch_us": 13, "ramp_tokens": ramp}
        for compute in (0.45, 0.6)
        for ramp in (300, 1200, 2000)
    ]
    calls = [Point(row) for row in calls_of(gpu, backend, "prefill_attention", "bf16")]
    points = [*calls, *prefill_points(gpu, backend)]
    yield Task("prefill_attention", "bf16", points, parameters, starts, {"memory": _PREFILL_MEMORY})


def moe_tasks(gpu: str, backend: Backend) -> Iterator[Task]:
    """Experts by the data type of their weights. Balanced calls count more: how others fell on experts is a guess."""
    for dtype in _MOE_DTYPES:
        calls = [
            Point(row, 3.0 if operator_class(row) == "moe balanced" else 1.0)
            for row in calls_of(gpu, backend, "moe", dtype)
        ]
        points = [*calls, *moe_points(gpu, backend, dtype)]
        if not points:
            continue
        # Launches by expert, which few calls tell from the launch of all. Left free, they come out as 0.31 us on both
        # Hopper GPUs, but then calls that are left out are missed by twice as much.
        by_expert = backend == "trtllm" and dtype == "fp8_block"
        given = {"expert_us": _EXPERT_US} if by_expert and gpu != "b200" else {}
        launch, spread = (20, 15) if by_expert and gpu == "b200" else (0, np.inf)
        parameters = [
            Parameter("compute", 0.6, 1.3, 0.1, 1, 0.1),
            Parameter("memory", 0.88, np.inf, 0.3, 1, 0.1),
            Parameter("launch_us", launch, spread, 0, 200, 10),
            Parameter("expert_us", 0, 1.4, 0, 2, 0.1),
            Parameter("padding_tokens", 32, 60, 0, 200, 30),  # half a tile of 64 rows
            Parameter("row_passes", 3, 13, 0, 12, 2),
        ]
        first = {"memory": 0.88, "launch_us": 15, "expert_us": 0.1}
        starts = [
            {**first, "compute": compute, "padding_tokens": padding, "row_passes": passes}
            for compute in (0.35, 0.75)
            for padding, passes in ((30, 2), (5, 5))
        ]
        yield Task(
            "moe", dtype, points, [parameter for parameter in parameters if parameter.name not in given], starts, given
        )


TASKS = {"gemm": gemm_tasks, "decode_attention": decode_tasks, "prefill_attention": prefill_tasks, "moe": moe_tasks}
