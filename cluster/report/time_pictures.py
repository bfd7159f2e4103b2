"""Pictures of runs over simulated time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pimserve.arrays import FloatArray
from pimserve.cluster.base.figures import figure, share
from pimserve.cluster.report import charts
from pimserve.cluster.report.axes import Draw
from pimserve.cluster.report.inputs import ReportRun
from pimserve.cluster.report.pictures import Named
from pimserve.cluster.report.series import (
    RATE_BINS,
    Binned,
    RequestSeries,
    StepSeries,
    request_series,
    step_series,
)
from pimserve.cluster.report.svg import Picture, picture

_MOST_BANDS = 3  # over each other in one picture
Curve = tuple[str, FloatArray, FloatArray]  # its name, edges of its bins in s, a rate in each


@dataclass(frozen=True)
class _TimeAxis:
    """What all pictures over time have across. Args: end_s: of the longest run; measured, moments: marked."""

    end_s: float
    measured: tuple[float, float] | None = None
    moments: Sequence[float] = ()

    def _draw(self, lines: Sequence[charts.Line], label: str, *, share: bool = False) -> Draw:
        return charts.over_time(lines, label, self.end_s, measured=self.measured, moments=self.moments, share=share)

    def gauge(
        self,
        key: str,
        title: str,
        label: str,
        caption: str,
        gauges: Sequence[tuple[Named, Binned]],
        *,
        as_share: bool = False,
    ) -> Picture:
        """How much there is of something."""
        write = share if as_share else figure
        alt = f"{title} over time. " + " ".join(
            run.labelled(f"mean {write(float(gauge.mean.mean()))}, most {write(float(gauge.high.max()))}.")
            for run, gauge in gauges
        )
        band = len(gauges) <= _MOST_BANDS
        lines = [charts.Line.of_gauge(run.name or "mean", gauge, band=band) for run, gauge in gauges]
        return picture(key, title, alt, caption, self._draw(lines, label, share=as_share))

    def rate(
        self, key: str, title: str, label: str, caption: str, rates: Sequence[tuple[Named, Sequence[Curve]]]
    ) -> Picture:
        """How much of something comes in a second."""
        curves = [(run, *curve) for run, of_run in rates for curve in of_run]
        alt = f"{title} over time. " + " ".join(
            run.labelled(f"{name}{' ' if name else ''}mean {figure(float(y.mean()))}, most {figure(float(y.max()))}.")
            for run, name, _, y in curves
        )
        lines = [
            charts.Line.of_bins(" ".join(filter(None, (run.name, name))) or "mean", edges, y)
            for run, name, edges, y in curves
        ]
        return picture(key, title, alt, caption, self._draw(lines, label))


def over_time_pictures(runs: Sequence[Named]) -> list[Picture]:
    """Tokens and requests per second, queue, batch and KV use over simulated time."""
    requests = [(run, series) for run in runs if (series := request_series(run.run)) is not None]
    steps = [(run, stepped) for run in runs if (stepped := step_series(run.run)) is not None]
    alone = len(runs) == 1
    axis = _TimeAxis(max((run.run.end_s for run in runs), default=0.0), *(_marks(runs[0].run) if alone else ()))
    pictures: list[Picture] = []
    if steps:
        pictures += _tokens(axis, steps)
    if requests:
        pictures += _requests(axis, requests, alone=alone)
    if steps:
        pictures += _steps(axis, steps)
    return pictures


def _tokens(axis: _TimeAxis, steps: Sequence[tuple[Named, StepSeries]]) -> list[Picture]:
    return [
        axis.rate(
            "tokens-output",
            "Output tokens per second",
            "tokens/s",
            f"Mean of each of {RATE_BINS} equal stretches of time.",
            [(run, [("", series.edges, series.output)]) for run, series in steps],
        ),
        axis.rate(
            "tokens-prompt",
            "Prompt tokens per second",
            "tokens/s",
            "Tokens of prompts that were computed, repeats after preemption included.",
            [(run, [("", series.edges, series.prompt)]) for run, series in steps],
        ),
    ]


def _requests(axis: _TimeAxis, requests: Sequence[tuple[Named, RequestSeries]], *, alone: bool) -> list[Picture]:
    return [
        axis.rate(
            "requests-rate",
            "Requests per second",
            "requests/s",
            "Requests that arrived and that finished." if alone else "Requests that finished.",
            [(run, _arrivals(series, alone=alone)) for run, series in requests],
        ),
        axis.gauge(
            "requests-waiting",
            "Requests waiting",
            "requests",
            "In all queues together: arrived, and not scheduled yet.",
            [(run, series.waiting) for run, series in requests],
        ),
        axis.gauge(
            "requests-running",
            "Requests running",
            "requests",
            "On all replicas together: scheduled once, and not finished.",
            [(run, series.running) for run, series in requests],
        ),
    ]


def _steps(axis: _TimeAxis, steps: Sequence[tuple[Named, StepSeries]]) -> list[Picture]:
    band = ""
    if len(steps) <= _MOST_BANDS:
        band = " The band reaches from the least to the most in any step of any replica."
    return [
        axis.gauge(
            "batch",
            "Requests in a step",
            "requests",
            f"Mean over time and replicas, 0 while one has nothing to do.{band}",
            [(run, series.batch) for run, series in steps],
        ),
        axis.gauge(
            "kv",
            "KV cache in use",
            "share of blocks",
            f"Of the blocks of a replica's KV cache, mean over replicas.{band}",
            [(run, series.kv) for run, series in steps],
            as_share=True,
        ),
    ]


def _arrivals(series: RequestSeries, *, alone: bool) -> list[Curve]:
    finished = ("finished", series.edges, series.finished)
    return [("arrived", series.edges, series.arrived), finished] if alone else [finished]


def _marks(run: ReportRun) -> tuple[tuple[float, float] | None, Sequence[float]]:
    """The measured window where it is not all of the run, and when devices failed, slowed down or left, s."""
    events = run.summary.faults.events if run.summary.faults is not None else ()
    return run.measured if run.trimmed else None, [event.at_s for event in events if event.at_s is not None]
