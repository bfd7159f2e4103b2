"""What becomes of rows: predictions beside measurements, their errors, and the limits that errors are held to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pimserve.cluster.validation.gpu_anchors import COUNTED, AnchorResult
from pimserve.cluster.validation.gpu_rows import Anchor, OperatorRow, ServedRow, tokens_per_s
from pimserve.cluster.validation.gpu_served import ServedResult

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class OperatorResult:
    """A timed operator, what is predicted for it, and its physical bound, us."""

    row: OperatorRow
    predicted_us: float
    bound_us: float

    @property
    def error(self) -> float:
        """Predicted over measured time, less 1."""
        return self.predicted_us / self.row.time_us - 1


@dataclass(frozen=True, slots=True)
class ServedComparison:
    """A served configuration and the run of it."""

    row: ServedRow
    ours: ServedResult

    @property
    def errors(self) -> Mapping[str, float]:
        """Ours over measured, less 1, of `tpot`, `ttft` and `throughput`.

        Throughput is derived alike on both sides, from TTFT and TPOT.
        """
        row, ours = self.row, self.ours
        return {
            "tpot": ours.tpot_ms / row.tpot_ms - 1,
            "ttft": ours.ttft_ms / row.ttft_ms - 1,
            "throughput": tokens_per_s(row, ours.ttft_ms, ours.tpot_ms) / row.tokens_per_s - 1,
        }


@dataclass(frozen=True, slots=True)
class AnchorComparison:
    """A published throughput and ours."""

    anchor: Anchor
    ours: AnchorResult

    @property
    def error(self) -> float:
        """Ours over theirs, less 1."""
        return self.ours.tokens_per_s / self.anchor.tokens_per_s - 1

    @property
    def counted(self) -> bool:
        """Whether the figure was read in its source; others are only shown."""
        return self.anchor.confidence == COUNTED

    @property
    def family(self) -> str:
        """Where it comes from."""
        if "MLPerf" in self.anchor.scenario:
            return "MLPerf"
        return "closed loop" if self.anchor.concurrency is not None else "queued"


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


def grouped(items: Iterable[_T], key: Callable[[_T], tuple[str, ...]]) -> dict[tuple[str, ...], list[_T]]:
    """Items by key, keys in order."""
    groups: dict[tuple[str, ...], list[_T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return dict(sorted(groups.items()))


def place(where: str) -> str:
    """The row in a place in errors, without its file: "rows[3]"."""
    return where.rpartition(": ")[2]
