"""One kernel fitted to timed calls, each predicted through the path that a served step takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel

from calibrate.fitting import Array, Parameter, fit
from calibrate.points import Point, fold, spec_of
from pimserve.cluster.validation.gpu_operators import device_us
from pimserve.cluster.validation.gpu_rows import OperatorRow
from pimserve.device_models.gpu import Gpu
from pimserve.device_models.kernels import DecodeAttentionKernel, GemmKernel, Kernels, MoeKernel, PrefillAttentionKernel
from pimserve.device_models.model import Dtype

KINDS: Mapping[str, type[BaseModel]] = {
    "gemm": GemmKernel,
    "decode_attention": DecodeAttentionKernel,
    "prefill_attention": PrefillAttentionKernel,
    "moe": MoeKernel,
}
_ALWAYS = ("compute", "memory", "launch_us")
_DIGITS = {"compute": 3, "memory": 3, "expert_us": 3, "padding_tokens": 0, "sequence_tokens": 0, "ramp_tokens": 0}


@dataclass(frozen=True, slots=True)
class Task:
    """One kernel to fit: to what, in which parameters, from which guesses, with which coefficients given.

    `digits` are those that its launch is written with.
    """

    section: str
    dtype: Dtype
    points: Sequence[Point]
    parameters: Sequence[Parameter]
    starts: Sequence[Mapping[str, float]]
    given: Mapping[str, float]
    digits: int = 1

    def kernel(self, values: Array) -> dict[str, float]:
        """The kernel as the catalogue has it: rounded, without coefficients that come out as nothing."""
        fitted = {**dict(zip((parameter.name for parameter in self.parameters), values, strict=True)), **self.given}
        rounded = {
            name: round(float(fitted[name]), self.digits if name == "launch_us" else _DIGITS.get(name, 2))
            for name in KINDS[self.section].model_fields
            if name in fitted
        }
        return {name: value for name, value in rounded.items() if value or name in _ALWAYS}


def log_errors(rows: Iterable[OperatorRow], gpu: Gpu) -> Array:
    """Logarithm of predicted over measured time."""
    return np.array([math.log(device_us(row, gpu) / row.time_us) for row in rows])


def with_kernel(base: Kernels, section: str, dtype: Dtype, values: Mapping[str, float]) -> Kernels:
    """A set of kernels with one of them replaced; nothing is checked, as a fit tries many."""
    kernel = KINDS[section].model_construct(None, **values)
    return base.model_copy(update={section: {**getattr(base, section), dtype: kernel}})


def solve(task: Task, base: Kernels, gpu: str, left_out: int | None = None) -> dict[str, float]:
    """The kernel that fits a task's points best.

    Args:
        task: what to fit.
        base: a set of kernels, of which the task's is replaced.
        gpu: name of the device.
        left_out: part of the single calls not to look at.
    """
    spec = spec_of(gpu)
    points = [point for point in task.points if not (point.single and fold(point.row) == left_out)]
    names = [parameter.name for parameter in task.parameters]

    def errors(values: Array) -> Array:
        kernel = {**dict(zip(names, map(float, values), strict=True)), **task.given}
        device = Gpu(spec, with_kernel(base, task.section, task.dtype, kernel))
        return log_errors((point.row for point in points), device)

    starts = [[start[name] for name in names] for start in task.starts]
    values = fit(errors, task.parameters, starts, np.array([point.weight for point in points]))
    return task.kernel(values)
