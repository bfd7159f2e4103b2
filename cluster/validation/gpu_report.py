"""The report of `pimserve validate gpu`: tables for a terminal of 80 columns, or a document with all rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pimserve.cluster.base.figures import count
from pimserve.cluster.validation.gpu_errors import (
    Errors,
    ErrorTable,
    Uncovered,
    anchor_table,
    grouped,
    operator_tables,
    place,
    served_table,
)
from pimserve.cluster.validation.gpu_gates import Gate
from pimserve.cluster.validation.gpu_operators import operator_class
from pimserve.cluster.validation.validate_gpu import Report

_STATISTICS = ("n", "median", "p90", "bias", "worst", "at")
_QUANTITIES = {"tpot": "TPOT", "ttft": "TTFT", "throughput": "tok/s"}
_PLACES = 3  # of rows that are not covered, for each reason


def gpu_report(report: Report) -> RenderableType:
    """Errors of operators, served configurations and anchors in percent, what is not covered, and the limits."""
    parts: list[RenderableType] = []
    if report.operators:
        parts.append(_title(f"{count(len(report.operators))} timed operators, error in %"))
        for table in operator_tables(report.operators):
            parts += [_errors(table), ""]
    if report.served:
        parts.append(_title(f"{count(len(report.served))} served configurations, error in %"))
        parts += [_served(served_table(report.served)), ""]
    counted = sum(result.counted for result in report.anchors)
    if counted:
        parts.append(_title(f"{count(counted)} published throughputs, error in %"))
        parts += [_errors(anchor_table(report.anchors)), ""]
    if report.uncovered:
        parts += [*_uncovered(report.uncovered), ""]
    gates = report.gates
    if gates:
        parts += [_gates(gates), ""]
        notes = dict.fromkeys(gate.note for gate in gates if gate.note)
        for note in notes:
            missed = ", ".join(gate.name for gate in gates if gate.note == note)
            parts.append(Text(f"missed: {note} ({missed})"))
        parts += [""] if notes else []
    return Group(*parts, Text(_verdict(report, gates), style="bold"))


def gpu_document(report: Report) -> dict[str, Any]:
    """All of it: limits, errors by group, and every row; errors are shares."""
    return {
        "passed": report.passed,
        "limits": [{**asdict(gate), "passed": gate.passed} for gate in report.gates],
        "errors": {
            "operators": [_table_document(table) for table in operator_tables(report.operators)],
            "served": _table_document(served_table(report.served)),
            "anchors": _table_document(anchor_table(report.anchors)),
        },
        "operators": [
            {
                **result.row.model_dump(),
                "class": operator_class(result.row),
                "predicted_us": result.predicted_us,
                "bound_us": result.bound_us,
                "error": result.error,
            }
            for result in report.operators
        ],
        "served": [
            {**result.row.model_dump(), "ours": asdict(result.ours), "errors": dict(result.errors)}
            for result in report.served
        ],
        "anchors": [
            {
                **result.row.model_dump(),
                "ours": asdict(result.ours),
                "error": result.error,
                "counted": result.counted,
            }
            for result in report.anchors
        ],
        "not_covered": [asdict(row) for row in report.uncovered],
    }


def _title(text: str) -> RenderableType:
    return Padding(Text(text, style="bold"), (0, 0, 1, 0))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _errors(table: ErrorTable) -> Table:
    shown = _table(table.title, *_STATISTICS)
    for labels, errors in table.rows:
        (summary,) = errors.values()
        cells = (*_sizes(summary), _percent(summary.worst, "+"), summary.worst_at)
        shown.add_row(Text(", ".join(labels)), str(summary.n), *cells)
    return shown


def _served(table: ErrorTable) -> Table:
    """Three quantities beside each other; a model's name stands above its systems."""
    shown = _table("", "n", *(head for name in _QUANTITIES.values() for head in (name, "p90", "bias")))
    model = ""
    for (name, *system), errors in table.rows:
        if name != model:
            shown.add_row(Text(name, style="bold"))
            model = name
        cells = [cell for quantity in _QUANTITIES for cell in _sizes(errors[quantity])]
        shown.add_row(Text(f"  {' '.join(system)}"), str(errors["tpot"].n), *cells)
    return shown


def _sizes(errors: Errors) -> tuple[str, str, str]:
    """Median, 90th percentile and bias."""
    return _percent(errors.median), _percent(errors.p90), _percent(errors.bias, "+")


def _percent(error: float, sign: str = "") -> str:
    return f"{100 * error:{sign}.{1 if abs(error) < 1 else 0}f}"


def _uncovered(rows: Sequence[Uncovered]) -> Iterator[RenderableType]:
    yield _title(f"{count(len(rows))} rows not covered")
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    groups = grouped(rows, lambda row: (row.reason,))
    for (reason,), mine in sorted(groups.items(), key=lambda group: -len(group[1])):
        places = ", ".join(place(row.where) for row in mine[:_PLACES])
        more = f" and {len(mine) - _PLACES} more" if len(mine) > _PLACES else ""
        table.add_row(str(len(mine)), Text(f"{reason} ({places}{more})"))
    yield table


def _gates(gates: Sequence[Gate]) -> Table:
    table = _table("limit", "", "n", "error", "at most", "")
    for gate in gates:
        write = str if gate.statistic == "count" else lambda value: f"{100 * value:.1f} %"
        table.add_row(
            Text(gate.name),
            "" if gate.statistic in {"count", "error"} else gate.statistic,
            str(gate.n),
            write(gate.value),
            write(gate.limit),
            Text("ok") if gate.passed else Text("see below" if gate.note else "missed", style="bold"),
        )
    return table


def _verdict(report: Report, gates: Sequence[Gate]) -> str:
    predicted = len(report.operators) + len(report.served) + len(report.anchors)
    rows = f"{count(predicted)} of {count(predicted + len(report.uncovered))} rows predicted"
    if not predicted:
        return f"nothing could be predicted; {rows}"
    if not gates:
        return f"no limit applies to these rows; {rows}"
    return f"{sum(gate.passed for gate in gates)} of {len(gates)} limits held; {rows}"


def _table_document(table: ErrorTable) -> dict[str, Any]:
    groups = [
        {
            **dict(zip(table.columns, labels, strict=True)),
            "errors": {quantity: asdict(summary) for quantity, summary in errors.items()},
        }
        for labels, errors in table.rows
    ]
    return {"title": table.title, "groups": groups}
