"""Holds the measured setting against timed operators and served systems (`pimserve validate gpu`)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from pimserve.cluster.validation.gpu_anchors import serve_anchor
from pimserve.cluster.validation.gpu_errors import AnchorComparison, OperatorResult, ServedComparison, Uncovered
from pimserve.cluster.validation.gpu_gates import Gate, anchor_gates, operator_gates, served_gates
from pimserve.cluster.validation.gpu_operators import bound_us, predicted_us
from pimserve.cluster.validation.gpu_rows import (
    MEASURED,
    SERVED,
    Anchor,
    NotCovered,
    OperatorRow,
    Row,
    ServedRow,
    read_measured,
    read_served,
    reference_file,
)
from pimserve.cluster.validation.gpu_served import serve_row

Progress = Callable[[int, int], None]
_FEW = 16  # rows for which processes of their own take longer to start than they save


@dataclass(frozen=True, slots=True)
class Report:
    """All rows of the files, each predicted or with the reason why not, and the gates on their errors."""

    operators: tuple[OperatorResult, ...]
    served: tuple[ServedComparison, ...]
    anchors: tuple[AnchorComparison, ...]
    uncovered: tuple[Uncovered, ...]

    @property
    def gates(self) -> list[Gate]:
        """Gates that have rows."""
        return [*operator_gates(self.operators), *served_gates(self.served), *anchor_gates(self.anchors)]

    @property
    def passed(self) -> bool:
        """Whether something was predicted, and all gates hold or say why they do not."""
        predicted = bool(self.operators or self.served or self.anchors)
        return predicted and all(gate.passed or gate.note for gate in self.gates)


def validate_gpu(
    measured: Path | None = None, served: Path | None = None, progress: Progress | None = None, *, processes: int = 2
) -> Report:
    """Predict all rows of a file of timed operators, and of one of served configurations and anchors.

    Args:
        measured: timed operators; None beside `served` for none of them, None for both for the reference data.
        served: served configurations and anchors; likewise.
        progress: takes (rows that are done, all rows).
        processes: that share the served rows; results do not depend on it.

    Raises:
        InputError: a file is absent or malformed; names file, row and field.
    """
    if measured is None and served is None:
        measured, served = reference_file(MEASURED), reference_file(SERVED)
    operators = read_measured(measured) if measured is not None else []
    rows, anchors = read_served(served) if served is not None else ([], [])
    every: list[Row] = [*operators, *rows, *anchors]
    again = _repeated(every)
    new = [row for row in every if row.where not in again]
    outcomes: list[_Outcome] = []
    for outcome in _predicted(new, processes):
        outcomes.append(outcome)
        if progress is not None:
            progress(len(outcomes), len(new))
    left = iter(outcomes)
    uncovered = (again.get(row.where) or next(left) for row in every)
    return Report(
        operators=tuple(outcome for outcome in outcomes if isinstance(outcome, OperatorResult)),
        served=tuple(outcome for outcome in outcomes if isinstance(outcome, ServedComparison)),
        anchors=tuple(outcome for outcome in outcomes if isinstance(outcome, AnchorComparison)),
        uncovered=tuple(outcome for outcome in uncovered if isinstance(outcome, Uncovered)),
    )


_Outcome = OperatorResult | ServedComparison | AnchorComparison | Uncovered


def _predicted(rows: Sequence[Row], processes: int) -> Iterator[_Outcome]:
    """Outcomes in the order of the rows."""
    quick = [row for row in rows if isinstance(row, OperatorRow)]
    slow = rows[len(quick) :]
    yield from map(_predict, quick)
    if processes == 1 or len(slow) < _FEW:
        yield from map(_predict, slow)
        return
    with _pool(processes) as pool:
        yield from pool.map(_predict, slow)


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, whatever ends it."""
    pool = ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _predict(row: Row) -> _Outcome:
    try:
        if isinstance(row, OperatorRow):
            return OperatorResult(row, predicted_us(row), bound_us(row))
        if isinstance(row, ServedRow):
            return ServedComparison(row, serve_row(row))
        assert isinstance(row, Anchor)
        return AnchorComparison(row, serve_anchor(row))
    except NotCovered as error:
        return Uncovered(row.where, str(error))


def _repeated(rows: Iterable[Row]) -> dict[str, Uncovered]:
    """Rows that say the same of the same thing as one before them, or something else of it."""
    first: dict[tuple[object, ...], str] = {}
    again = {}
    for row in rows:
        key = row.identity
        if key in first:
            again[row.where] = Uncovered(row.where, f"repeats {first[key]}")
        else:
            first[key] = row.where.rpartition(": ")[2]
    return again
