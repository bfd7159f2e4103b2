"""All sets of kernels of the catalogue: first operators and collectives, then the step of those that were served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from calibrate.collectives import Common, collectives
from calibrate.files import Calibration
from calibrate.operators import solve
from calibrate.points import BACKENDS, GPUS, tables
from calibrate.step import TAKEN_OVER, fit_step, served_rows
from calibrate.tasks import TASKS
from pimserve.device_models.kernels import Backend, Kernels

SYSTEMS: tuple[tuple[str, Backend], ...] = tuple((gpu, backend) for gpu in GPUS for backend in BACKENDS)
_DECODE_OF: dict[tuple[str, Backend], tuple[str, Backend]] = {("a100", "trtllm"): ("a100", "vllm")}


def base_kernels(gpu: str, backend: Backend) -> Kernels:
    """What operators are fitted beside: matrix products as the whole tables have them, and nothing else."""
    return Kernels.model_validate(
        {
            "gpu": gpu,
            "backend": backend,
            "version": "fitted",
            "gemm": tables()["gemm"]["fits"][f"{gpu}-{backend}"],
            "decode_attention": {},
            "prefill_attention": {},
            "moe": {},
            "collectives": {"all_reduce": {}},
            "step": {},
            "memory": tables()["memory"],
            "sources": (),
        }
    )


def fit_operators(gpu: str, backend: Backend, section: str) -> dict[str, dict[str, float]]:
    """Kernels of one section by data type."""
    if section == "decode_attention":
        gpu, backend = _DECODE_OF.get((gpu, backend), (gpu, backend))
    # What no single call is at hand of stays as the whole table has it.
    fits = dict(tables()["gemm"]["fits"][f"{gpu}-{backend}"]) if section == "gemm" else {}
    base = base_kernels(gpu, backend)
    for task in TASKS[section](gpu, backend):
        fits[task.dtype] = solve(task, base, gpu)
        captured = tables()[section].get("captured_us", {}).get(f"{gpu}-{backend}", {}).get(task.dtype)
        if captured is not None:
            fits[task.dtype]["captured_us"] = captured
    return fits


def fit_set(gpu: str, backend: Backend, common: Common) -> Calibration:
    """One set of kernels, whose step costs nothing yet."""
    kernels = {section: fit_operators(gpu, backend, section) for section in TASKS}
    return Calibration(gpu, backend, kernels, collectives(gpu, backend, common), {}, f"{gpu}-{backend}")


def with_steps(sets: dict[str, Calibration]) -> Iterator[Calibration]:
    """The sets with their steps: fitted, or taken over from the nearest that was served."""
    steps = {
        name: fit_step(calibration.validated(), served_rows(name))
        for name, calibration in sets.items()
        if name not in TAKEN_OVER
    }
    for name, calibration in sets.items():
        source = TAKEN_OVER.get(name, name)
        yield replace(calibration, step=steps[source], step_of=source)
