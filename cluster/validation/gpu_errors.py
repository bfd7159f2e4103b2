"""What becomes of rows: predictions beside measurements, and tables of their errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from pimserve.cluster.validation import gpu_rows
from pimserve.cluster.validation.gpu_anchors import COUNTED, AnchorResult
from pimserve.cluster.validation.gpu_operators import kv_bytes, operator_class
from pimserve.cluster.validation.gpu_routing import expert_loads
from pimserve.cluster.validation.gpu_rows import Anchor, OperatorRow, Row, ServedRow, catalogue_gpu, tokens_per_s
from pimserve.cluster.validation.gpu_served import ServedResult, model_name

_T = TypeVar("_T")
_Compared = TypeVar("_Compared", bound="Compared")
_MIB = 2**20


@dataclass(frozen=True)
class Compared(ABC):
    """A row with what is predicted for it."""

    row: Row

    @property
    @abstractmethod
    def errors(self) -> Mapping[str, float]:
        """Ours over theirs, less 1, by quantity."""


@dataclass(frozen=True)
class OperatorResult(Compared):
    """A timed operator, what is predicted for it, and its physical bound, us."""

    row: OperatorRow
    predicted_us: float
    bound_us: float

    @property
    def error(self) -> float:
        """Predicted over measured time, less 1."""
        return self.predicted_us / self.row.time_us - 1

    @property
    def errors(self) -> Mapping[str, float]:
        """Of its `time`."""
        return {"time": self.error}


@dataclass(frozen=True)
class ServedComparison(Compared):
    """A served configuration and the run of it."""

    row: ServedRow
    ours: ServedResult

    @property
    def errors(self) -> Mapping[str, float]:
        """Of `tpot`, `ttft` and `throughput`, which is derived alike on both sides, from TTFT and TPOT."""
        row, ours = self.row, self.ours
        return {
            "tpot": ours.tpot_ms / row.tpot_ms - 1,
            "ttft": ours.ttft_ms / row.ttft_ms - 1,
            "throughput": tokens_per_s(row, ours.ttft_ms, ours.tpot_ms) / row.tokens_per_s - 1,
        }


@dataclass(frozen=True)
class AnchorComparison(Compared):
    """A published throughput and ours."""

    row: Anchor
    ours: AnchorResult

    @property
    def error(self) -> float:
        """Ours over theirs, less 1."""
        return self.ours.tokens_per_s / self.row.tokens_per_s - 1

    @property
    def errors(self) -> Mapping[str, float]:
        """Of the `throughput`."""
        return {"throughput": self.error}

    @property
    def counted(self) -> bool:
        """Whether the figure was read in its source; others are only shown."""
        return self.row.confidence == COUNTED

    @property
    def family(self) -> str:
        """Where it comes from."""
        if "MLPerf" in self.row.scenario:
            return "MLPerf"
        return "closed loop" if self.row.concurrency is not None else "queued"


@dataclass(frozen=True, slots=True)
class Uncovered:
    """A row without a prediction, and why."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Errors:
    """Statistics of relative errors: of their sizes, the median and the 90th percentile; of themselves, the median.

    Percentiles lie between neighbours where they fall between them. `worst` is the largest, with its sign, at the row
    `worst_at`.
    """

    n: int
    median: float
    p90: float
    bias: float
    worst: float
    worst_at: str

    @staticmethod
    def of(errors: Sequence[tuple[str, float]]) -> Errors:
        """Statistics of (row, signed error), at least one."""
        signed = np.array([error for _, error in errors])
        sizes = np.abs(signed)
        worst = int(sizes.argmax())
        median, p90 = np.quantile(sizes, [0.5, 0.9])
        return Errors(
            len(errors), float(median), float(p90), float(np.median(signed)), float(signed[worst]), errors[worst][0]
        )


def errors_of(results: Iterable[Compared], quantity: str) -> Errors:
    """Statistics of the errors of a quantity in at least one result."""
    return Errors.of([(place(result.row.where), result.errors[quantity]) for result in results])


def grouped(items: Iterable[_T], key: Callable[[_T], tuple[str, ...]]) -> dict[tuple[str, ...], list[_T]]:
    """Items by key, keys in order."""
    groups: dict[tuple[str, ...], list[_T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return dict(sorted(groups.items()))


def place(where: str) -> str:
    """The row in a place in errors, without its file: "rows[3]"."""
    return where.rpartition(": ")[2]


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """Rows of one grouping: their labels, under the columns' names, and the errors of each quantity."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[tuple[str, ...], Mapping[str, Errors]]]


def operator_tables(results: Sequence[OperatorResult]) -> list[ErrorTable]:
    """Errors of timed operators, in three groupings."""
    by_regime = _table(
        "by regime", ("operator", "regime"), results, lambda result: (_op(result.row), regime(result.row))
    )
    return [
        _table("by operator", ("operator",), results, lambda result: (operator_class(result.row).replace("_", " "),)),
        _table(
            "by GPU and backend",
            ("operator", "GPU", "backend"),
            results,
            lambda result: (_op(result.row), catalogue_gpu(result.row.gpu).upper(), result.row.backend),
        ),
        replace(by_regime, rows=[((op, name[2:]), errors) for (op, name), errors in by_regime.rows]),
    ]


def served_table(results: Iterable[ServedComparison]) -> ErrorTable:
    """Errors of served configurations: TPOT, TTFT and throughput."""
    return _table(
        "served configurations",
        ("model", "GPU", "backend", "precision"),
        results,
        lambda result: (
            model_name(result.row.model),
            catalogue_gpu(result.row.gpu).upper(),
            result.row.backend,
            result.row.precision or "16 bit",
        ),
    )


def anchor_table(results: Iterable[AnchorComparison]) -> ErrorTable:
    """Errors of published throughputs that count."""
    counted = (result for result in results if result.counted)
    return _table(
        "published throughput",
        ("source", "model"),
        counted,
        lambda result: (result.family, model_name(result.row.model)),
    )


def regime(row: OperatorRow) -> str:
    """The regime of a row; the first two characters put regimes in order."""
    shape = row.shape
    if isinstance(shape, gpu_rows.Gemm):
        return "1 m <= 64" if shape.m <= 64 else "2 m 65 to 512" if shape.m <= 512 else "3 m > 512"
    if isinstance(shape, gpu_rows.DecodeAttention):
        size = kv_bytes(row) / _MIB
        return "1 KV < 16 MiB" if size < 16 else "2 KV 16 to 256 MiB" if size < 256 else "3 KV >= 256 MiB"
    if isinstance(shape, gpu_rows.PrefillAttention):
        length = shape.length
        return "1 length < 1k" if length < 1024 else "2 length 1k to 4k" if length < 4096 else "3 length >= 4k"
    if isinstance(shape, gpu_rows.Moe):
        loads = expert_loads(shape)
        mean = loads.sum() / (loads > 0).sum()  # tokens of an expert that has any
        tokens = "1 < 8" if mean < 8 else "2 8 to 128" if mean < 128 else "3 >= 128"
        kind = "balanced" if shape.routing == "balanced" else "power law"
        return f"{tokens} per expert, {kind}"
    assert isinstance(shape, gpu_rows.AllReduce)
    size = shape.bytes / _MIB
    return "1 < 256 KiB" if size < 1 / 4 else "2 256 KiB to 16 MiB" if size < 16 else "3 >= 16 MiB"


def _op(row: OperatorRow) -> str:
    return row.op.replace("_", " ")


def _table(
    title: str, columns: tuple[str, ...], results: Iterable[_Compared], key: Callable[[_Compared], tuple[str, ...]]
) -> ErrorTable:
    """A row for each group of results of one key, with the errors of all their quantities."""
    rows = [
        (labels, {quantity: errors_of(group, quantity) for quantity in group[0].errors})
        for labels, group in grouped(results, key).items()
    ]
    return ErrorTable(title, columns, rows)
