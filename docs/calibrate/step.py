"""What a step costs beside its operators, fitted to served systems that run through the engine.

Gauss-Newton on the log errors of the mean TPOT and TTFT of Llama-3.1-70B; TPOT counts four times as much, as TTFT is
half queueing. Errors beyond a limit stop counting: of some servers the stated concurrency cannot have been reached.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from calibrate.fitting import Array, Parameter, fit
from pimserve.cluster.validation.gpu_gates import GATED_MODEL
from pimserve.cluster.validation.gpu_rows import (
    SERVED,
    NotCovered,
    ServedRow,
    catalogue_gpu,
    read_served,
    reference_file,
)
from pimserve.cluster.validation.gpu_served import model_name, serve_row
from pimserve.device_models.kernels import Kernels, StepKernel

TAKEN_OVER = {"a100-vllm": "h100-vllm", "a100-trtllm": "h200-trtllm", "h100-trtllm": "h200-trtllm"}
FOLDS = 2
_MEMORY = 0.8  # share of the bandwidth at which norms and the like move what they read and write
_COUNTED = ((2.0, 0.3), (0.5, 0.4))  # of TPOT and TTFT: weight of log errors, and the limit at which they stop counting
_PARAMETERS = (
    Parameter("layer_us", 2, 6, 0.3, 20, 2),
    Parameter("host_us", 500, 1500, 0, 5000, 500),
    Parameter("host_request_us", 30, 90, 0, 300, 30),
    Parameter("host_prompt_us", 2000, 9000, 0, 30000, 3000),
    Parameter("frontend_us", 20000, 60000, 0, 500000, 20000),
)
_NOTHING = 0.1  # us: below it a term is left out


@cache
def served_rows(system: str) -> tuple[ServedRow, ...]:
    """Served configurations of GPU-BACKEND, each once.

    Raises:
        InputError: the reference data is absent.
    """
    rows, _ = read_served(reference_file(SERVED))
    served: dict[tuple[object, ...], ServedRow] = {}
    for row in rows:
        if _system(row) == system:
            served.setdefault(row.identity, row)
    return tuple(served.values())


def fold(row: ServedRow) -> int:
    """Which of `FOLDS` parts a row falls in: a hash of what was served."""
    return zlib.crc32(repr(row.identity).encode()) % FOLDS


def fit_step(kernels: Kernels, rows: Sequence[ServedRow]) -> dict[str, float]:
    """The step beside a set of kernels that fits served rows best, as the catalogue has it."""
    names = [parameter.name for parameter in _PARAMETERS]

    def errors(values: Array) -> Array:
        step = StepKernel.model_construct(None, memory=_MEMORY, **dict(zip(names, map(float, values), strict=True)))
        logs = log_errors(kernels.model_copy(update={"step": step}), rows)
        return np.concatenate(
            [weight * np.clip(error, -most, most) for error, (weight, most) in zip(logs, _COUNTED, strict=True)]
        )

    start = [parameter.prior for parameter in _PARAMETERS]
    values = fit(errors, _PARAMETERS, [start], corner=0.1, difference=0.3, tolerance=1e-3)
    layer_us, *host = (float(f"{value:.3g}") for value in values)  # more digits than so few servers can tell
    step = {"layer_us": layer_us, "memory": _MEMORY, **dict(zip(names[1:], host, strict=True))}
    return {name: value for name, value in step.items() if value >= _NOTHING}


def log_errors(kernels: Kernels, rows: Sequence[ServedRow]) -> tuple[Array, Array]:
    """Logarithms of predicted over measured TPOT and TTFT."""
    changes: dict[str, Any] = kernels.model_dump(exclude={"gpu", "backend", "version", "sources"})
    served = [serve_row(row, costs={"kernels": changes}) for row in rows]
    tpot = [ours.tpot_ms / row.tpot_ms for ours, row in zip(served, rows, strict=True)]
    ttft = [ours.ttft_ms / row.ttft_ms for ours, row in zip(served, rows, strict=True)]
    return np.log(tpot), np.log(ttft)


def _system(row: ServedRow) -> str | None:
    try:
        counted = model_name(row.model) == GATED_MODEL
        return f"{catalogue_gpu(row.gpu)}-{row.backend.lower()}" if counted else None
    except NotCovered:
        return None
