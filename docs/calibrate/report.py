"""Errors of sets of kernels on timed calls and served systems, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from calibrate.collectives import all_reduce_rows, of_library, time_us
from calibrate.files import Calibration, mapping
from calibrate.operators import KINDS, log_errors
from calibrate.points import single_calls, spec_of
from calibrate.step import log_errors as served_log_errors
from calibrate.step import served_rows
from pimserve.cluster.validation.gpu_operators import operator_class
from pimserve.cluster.validation.gpu_rows import catalogue_gpu
from pimserve.device_models.catalogue import load_kernel_document
from pimserve.device_models.gpu import Gpu
from pimserve.device_models.kernels import Kernels

Errors = dict[str, list[float]]


def operator_errors(sets: Mapping[str, Kernels]) -> Errors:
    """Relative errors of all single calls, by class."""
    errors_by_class: Errors = {}
    for name, kernels in sets.items():
        gpu = Gpu(spec_of(kernels.gpu), kernels)
        for row in single_calls():
            if f"{catalogue_gpu(row.gpu)}-{row.backend.lower()}" == name and row.op in KINDS:
                errors_by_class.setdefault(operator_class(row), []).extend(np.expm1(log_errors([row], gpu)))
    for row in all_reduce_rows():
        backend = "vllm" if row.backend.lower() == "nccl" else row.backend.lower()
        algorithms = of_library(row, sets[f"{catalogue_gpu(row.gpu)}-{backend}"].collectives)
        errors_by_class.setdefault(operator_class(row), []).append(time_us(row, algorithms) / row.time_us - 1)
    return dict(sorted(errors_by_class.items()))


def served_errors(sets: Mapping[str, Kernels]) -> Errors:
    """Relative errors of TPOT and TTFT of served systems."""
    errors_by_quantity: Errors = {}
    for name, kernels in sets.items():
        if rows := served_rows(name):
            for quantity, errors in zip(("TPOT", "TTFT"), served_log_errors(kernels, rows), strict=True):
                errors_by_quantity[f"{name} {quantity}"] = list(np.expm1(errors))
    return errors_by_quantity


def compared(headings: tuple[str, str], one: Errors, other: Errors) -> Iterator[str]:
    """Median and 90th percentile of the sizes of errors, of two versions of each class."""
    yield f"{'':26} {'n':>4}  {headings[0]:>15}  {headings[1]:>15}   median and 90th percentile of errors, %"
    for name, errors in one.items():
        yield f"{name:26} {len(errors):4}  {_sizes(errors):>15}  {_sizes(other[name]):>15}"


def changes(calibration: Calibration) -> Iterator[str]:
    """Coefficients, and under them those of the catalogue's file where they differ."""
    yield calibration.name
    new, old = dict(_kernels(calibration.document())), dict(_kernels(load_kernel_document(calibration.name)))
    for place in {**new, **old}:
        yield f"  {place:24} {mapping(new[place]) if place in new else 'left out'}"
        if place not in old:
            yield f"  {'':20} was not there"
        elif old[place] != new.get(place):
            yield f"  {'':20} was {mapping(old[place])}"


def _kernels(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for section in KINDS:
        for dtype, kernel in document[section].items():
            yield f"{section} {dtype}", kernel
    for name, groups in document["collectives"].items():
        for group, algorithms in groups.items():
            for kernel in algorithms:
                yield f"{name} {group} {kernel['name']}", {key: value for key, value in kernel.items() if key != "name"}
    yield "step", document["step"]


def _sizes(errors: Sequence[float]) -> str:
    median, p90 = 100 * np.quantile(np.abs(errors), [0.5, 0.9])
    return f"{median:.1f} {p90:.1f}"
