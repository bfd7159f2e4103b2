"""Errors of the measured setting in tables: by operator, GPU, backend and regime, and by served model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pimserve.cluster.validation import gpu_rows
from pimserve.cluster.validation.gpu_errors import (
    AnchorComparison,
    Errors,
    OperatorResult,
    ServedComparison,
    grouped,
    place,
)
from pimserve.cluster.validation.gpu_operators import kv_bytes, operator_class
from pimserve.cluster.validation.gpu_routing import expert_loads
from pimserve.cluster.validation.gpu_rows import OperatorRow, catalogue_gpu
from pimserve.cluster.validation.gpu_served import model_name

QUANTITIES = ("tpot", "ttft", "throughput")
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """Rows of one grouping: their labels, under the columns' names, and the errors of each quantity."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[tuple[str, ...], Mapping[str, Errors]]]


def operator_tables(results: Sequence[OperatorResult]) -> list[ErrorTable]:
    """Errors of timed operators, in three groupings."""
    return [
        _operators("by operator", ("operator",), {(name,): rows for (name,), rows in _by_class(results).items()}),
        _operators(
            "by GPU and backend",
            ("operator", "GPU", "backend"),
            grouped(
                results, lambda result: (_op(result.row), catalogue_gpu(result.row.gpu).upper(), result.row.backend)
            ),
        ),
        _operators(
            "by regime",
            ("operator", "regime"),
            {
                (op, name[2:]): rows
                for (op, name), rows in grouped(results, lambda result: (_op(result.row), regime(result.row))).items()
            },
        ),
    ]


def served_table(results: Sequence[ServedComparison]) -> ErrorTable:
    """Errors of served configurations: TPOT, TTFT and throughput."""
    groups = grouped(
        results,
        lambda result: (
            model_name(result.row.model),
            catalogue_gpu(result.row.gpu).upper(),
            result.row.backend,
            result.row.precision or "16 bit",
        ),
    )
    rows = [
        (
            key,
            {
                what: Errors.of([(place(result.row.where), result.errors[what]) for result in mine])
                for what in QUANTITIES
            },
        )
        for key, mine in groups.items()
    ]
    return ErrorTable("served configurations", ("model", "GPU", "backend", "precision"), rows)


def anchor_table(results: Iterable[AnchorComparison]) -> ErrorTable:
    """Errors of published throughputs that count."""
    groups = grouped(
        (result for result in results if result.counted),
        lambda result: (result.family, model_name(result.anchor.model)),
    )
    rows = [
        (key, {"throughput": Errors.of([(place(result.anchor.where), result.error) for result in mine])})
        for key, mine in groups.items()
    ]
    return ErrorTable("published throughput", ("source", "model"), rows)


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


def _by_class(results: Sequence[OperatorResult]) -> dict[tuple[str, ...], list[OperatorResult]]:
    return grouped(results, lambda result: (operator_class(result.row).replace("_", " "),))


def _op(row: OperatorRow) -> str:
    return row.op.replace("_", " ")


def _operators(
    title: str, columns: tuple[str, ...], groups: Mapping[tuple[str, ...], Sequence[OperatorResult]]
) -> ErrorTable:
    rows = [
        (key, {"time": Errors.of([(place(result.row.where), result.error) for result in mine])})
        for key, mine in groups.items()
    ]
    return ErrorTable(title, columns, rows)
