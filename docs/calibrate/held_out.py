"""Errors on what was left out of a fit: whether coefficients say something of other calls and servers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calibrate.operators import log_errors, solve, with_kernel
from calibrate.points import FOLDS, fold, spec_of
from calibrate.report import Errors
from calibrate.sets import SYSTEMS, base_kernels
from calibrate.step import FOLDS as SERVED_FOLDS
from calibrate.step import fit_step, served_rows
from calibrate.step import fold as served_fold
from calibrate.step import log_errors as served_log_errors
from calibrate.tasks import TASKS
from pimserve.cluster.validation.gpu_operators import operator_class
from pimserve.device_models.gpu import Gpu
from pimserve.device_models.kernels import Kernels, StepKernel


def held_out_operators() -> Errors:
    """Relative errors of single calls, each predicted by kernels fitted without the third that it is in.

    The shares of whole tables stay: they are medians over thousands of calls.
    """
    errors_by_class: Errors = {}
    for gpu, backend in SYSTEMS:
        base = base_kernels(gpu, backend)
        for task in (task for tasks in TASKS.values() for task in tasks(gpu, backend)):
            for part in range(FOLDS):
                rows = [point.row for point in task.points if point.single and fold(point.row) == part]
                if not rows:
                    continue
                kernel = solve(task, base, gpu, part)
                device = Gpu(spec_of(gpu), with_kernel(base, task.section, task.dtype, kernel))
                for row, error in zip(rows, np.expm1(log_errors(rows, device)), strict=True):
                    errors_by_class.setdefault(operator_class(row), []).append(float(error))
    return dict(sorted(errors_by_class.items()))


def held_out_served(sets: Mapping[str, Kernels]) -> Errors:
    """Relative errors of TPOT and TTFT, each predicted with a step fitted to the other half."""
    errors_by_quantity: Errors = {}
    for name, kernels in sets.items():
        rows = served_rows(name)
        for part in range(SERVED_FOLDS if rows else 0):
            step = StepKernel(**fit_step(kernels, [row for row in rows if served_fold(row) != part]))
            rest = [row for row in rows if served_fold(row) == part]
            errors = served_log_errors(kernels.model_copy(update={"step": step}), rest)
            for quantity, logs in zip(("TPOT", "TTFT"), errors, strict=True):
                errors_by_quantity.setdefault(f"{name} {quantity}", []).extend(np.expm1(logs))
    return errors_by_quantity
