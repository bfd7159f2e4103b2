"""Limits on the errors of the measured setting: what a GPU baseline must hold to be believed.

Operators: no class is worse than simple least-squares fits of the same tables, and mixtures of experts better (the fits
reach 27 % for balanced, 18 % median for skewed routing). Served: Llama-3.1-70B, for each GPU and backend. MLPerf: each
figure that was read in its log. And no prediction is faster than the hardware.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pimserve.cluster.base.figures import named
from pimserve.cluster.validation.gpu_errors import (
    AnchorComparison,
    Compared,
    OperatorResult,
    ServedComparison,
    errors_of,
    grouped,
)
from pimserve.cluster.validation.gpu_operators import operator_class
from pimserve.cluster.validation.gpu_rows import catalogue_gpu
from pimserve.cluster.validation.gpu_served import model_name

GATED_MODEL = "llama-3.1-70b"
ANCHOR_LIMIT = 0.15
_EXPLAINED = 0.6  # more than this no known reason explains

# Class of operator: most that the median and the 90th percentile of its errors may be.
_OPERATORS: dict[str, tuple[float, float | None]] = {
    "gemm bf16": (0.06, 0.19),
    "gemm fp8": (0.04, 0.12),
    "gemm nvfp4": (0.24, 0.36),
    "decode_attention": (0.10, 0.27),
    "moe balanced": (0.10, 0.20),
    "moe power law": (0.10, None),
}
_SERVED: tuple[tuple[str, float, float | None], ...] = (
    ("tpot", 0.07, 0.15),
    ("ttft", 0.15, None),
    ("throughput", 0.08, None),
)
_BOUND_SLACK = 1e-6  # times are whole femtoseconds


@dataclass(frozen=True, slots=True)
class Gate:
    """A statistic over `n` rows and the most that it may be; both are shares, but for counts.

    `note` says why it is missed, where that is known.
    """

    name: str
    statistic: Literal["median", "p90", "error", "count"]
    value: float
    limit: float
    n: int
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        return self.value <= self.limit


def operator_gates(results: Sequence[OperatorResult]) -> Iterator[Gate]:
    """Gates of the classes that have rows, and that of the physical bound."""
    for name, limits in _OPERATORS.items():
        members = [result for result in results if name in (operator_class(result.row), result.row.op)]
        yield from _gates(name.replace("_", " "), members, "time", *limits)
    if results:
        faster = sum(result.predicted_us < result.bound_us * (1 - _BOUND_SLACK) for result in results)
        yield Gate("faster than the hardware", "count", faster, 0, len(results))


def served_gates(results: Sequence[ServedComparison]) -> Iterator[Gate]:
    """Gates of the model that has them, for each GPU and backend."""
    gated = (result for result in results if model_name(result.row.model) == GATED_MODEL)
    for system, members in grouped(
        gated, lambda result: (catalogue_gpu(result.row.gpu).upper(), result.row.backend)
    ).items():
        for quantity, median, p90 in _SERVED:
            yield from _gates(f"{GATED_MODEL} on {' '.join(system)}, {named(quantity)}", members, quantity, median, p90)


def anchor_gates(results: Iterable[AnchorComparison]) -> Iterator[Gate]:
    """A gate for each MLPerf figure that counts."""
    for result in results:
        if result.counted and result.family == "MLPerf":
            row = result.row
            name = f"{row.scenario}, {row.model}, {row.system.partition('-')[0]}"
            note = _why(result) if ANCHOR_LIMIT < abs(result.error) <= _EXPLAINED else ""
            yield Gate(name, "error", abs(result.error), ANCHOR_LIMIT, 1, note)


def _why(result: AnchorComparison) -> str:
    if "4" in result.row.precision and result.error < 0:
        return "FP4 products run faster in this engine than they were timed; other published FP4 rows are short as well"
    if model_name(result.row.model) == "mixtral-8x7b" and result.error > 0:
        return "the engine is of 2024, its kernels were timed in one of 2026"
    return ""


def _gates(name: str, results: Sequence[Compared], quantity: str, median: float, p90: float | None) -> Iterator[Gate]:
    if not results:
        return
    errors = errors_of(results, quantity)
    yield Gate(name, "median", errors.median, median, errors.n)
    if p90 is not None:
        yield Gate(name, "p90", errors.p90, p90, errors.n)
