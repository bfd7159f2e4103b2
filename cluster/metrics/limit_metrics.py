"""Metrics of limits at percentiles, of the run and of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pimserve.cluster.metrics.run_metrics import RunMetrics
from pimserve.loadgen.objectives import Objectives
from pimserve.scheduler.control import Ledger
from pimserve.scheduler.histogram import DurationHistogram
from pimserve.scheduler.latencies import Latencies
from pimserve.scheduler.latency_sections import AtPercentile
from pimserve.scheduler.running_limits import RunningLimits


class LimitMetrics:
    """Says what limits at percentiles come to.

    Args:
        metrics: to fill.
        objectives: limits.
    """

    def __init__(self, metrics: RunMetrics, objectives: Objectives) -> None:
        self._values = metrics.values
        self._of_run = RunningLimits(objectives.of_run)
        self._of_classes = {
            number: RunningLimits(slo)
            for number, slo in enumerate(objectives.of_classes, start=1)
            if slo.at_percentiles()
        }
        self._gaps = any(limit.latency == "itl" for limit in objectives.of_run.at_percentiles())
        self._itl = DurationHistogram()

    def add(self, latencies: Latencies) -> None:
        """Take in measured requests that have left, or that the end of the run has cut off."""
        self._of_run.add(latencies)
        for number, limits in self._of_classes.items():
            limits.add(latencies.of(latencies.class_ids == number))

    def show(self, ledgers: Sequence[Ledger]) -> None:
        """Fill in what is known by now; gaps between tokens are those of the last ledgers."""
        if ledgers and self._gaps:
            self._itl = DurationHistogram.merged(ledger.itl for ledger in ledgers)
        self._fill("", list(self._of_run.so_far(self._itl).values()))
        of_classes = (limits.so_far(None).values() for limits in self._of_classes.values())
        self._fill("class_", [limit for limits in of_classes for limit in limits])

    def _fill(self, of: str, limits: Sequence[AtPercentile]) -> None:
        """What is not known without samples is not a number; who was never served is later than anything."""
        measured = [limit.measured if limit.measured is not None else np.inf if limit.n else np.nan for limit in limits]
        family = f"pimserve_{of}slo_percentile"
        self._values[f"{family}_seconds"][:] = measured
        self._values[f"{family}_margin_seconds"][:] = [
            limit.limit - seconds for limit, seconds in zip(limits, measured, strict=True)
        ]
        self._values[f"{family}_met"][:] = [np.nan if limit.passed is None else limit.passed for limit in limits]
