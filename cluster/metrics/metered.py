"""Metrics of a run of the command line: where they are exposed while it goes, and for how long after."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pimserve.cluster.base.speed import parse_speed
from pimserve.cluster.metrics.endpoint import EndpointOptions
from pimserve.cluster.metrics.exporter import exporting
from pimserve.cluster.metrics.feed import MetricsFeed
from pimserve.cluster.metrics.run_metrics import metrics_of, run_id_of
from pimserve.cluster.run.live_control import LiveControl
from pimserve.cluster.run.run import results_place
from pimserve.cluster.run.running_latencies import RunningLatencies
from pimserve.cluster.scenario.prepared import Prepared


@contextmanager
def metered(
    prepared: Prepared,
    out: Path | None,
    speed: str | None,
    options: EndpointOptions,
    linger_s: float,
    checkpoints: Path | None = None,
) -> Iterator[tuple[LiveControl, MetricsFeed, str]]:
    """Expose a run's metrics while the block runs, and `linger_s` longer; yields its control, its feed, the address.

    Args:
        prepared: what runs.
        out: its results folder, whose name labels the metrics; None: that of the run that is continued, or the first
            free one, results/NAME or NAME-2.
        speed: pace, such as 60x; None: as fast as possible.
        options: where metrics are exposed, and to whom.
        linger_s: wall-clock seconds for which they stay when the run has ended, for the last scrape.
        checkpoints: folder of the run's checkpoints.

    Raises:
        InputError: an option is not acceptable, or parts of the scenario do not go together.
    """
    factor = 0.0 if speed is None else parse_speed(speed)
    run_id = run_id_of(results_place(prepared, out, checkpoints))
    metrics = metrics_of(prepared, run_id, speed=factor, per_engine=options.per_engine)
    objectives, frontend_ps = prepared.objectives, prepared.frontend_ps
    feed = MetricsFeed(metrics, objectives, frontend_ps=frontend_ps)
    latencies = RunningLatencies(objectives, frontend_ps=frontend_ps)
    control = LiveControl(latencies, speed=factor, observer=feed)
    with exporting(options, feed.latest) as address:
        yield control, feed, address
        time.sleep(linger_s)
