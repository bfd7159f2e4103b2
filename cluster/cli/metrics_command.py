"""`pimserve metrics`: finished runs for Prometheus."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pimserve.cluster.cli.options import PerEngine

if TYPE_CHECKING:
    from pimserve.cluster.metrics.backfill import Part

Runs = Annotated[list[Path], typer.Argument(metavar="RUN", help="Results folders; their names become run_id.")]
Interval = Annotated[
    float | None,
    typer.Option(
        min=0.001, metavar="SECONDS", help="Simulated time between samples.", show_default="by the run's length"
    ),
]
Epoch = Annotated[
    str | None,
    typer.Option(metavar="DATE", help="When the runs begin, such as 2026-01-01T00:00Z.", show_default="they end now"),
]

metrics = typer.Typer(help="Give finished runs to Prometheus.", no_args_is_help=True)


@metrics.command("export")
def export_command(
    runs: Runs,
    out: Annotated[Path | None, typer.Option(help="File; default: standard output.", show_default=False)] = None,
    interval: Interval = None,
    epoch: Epoch = None,
    per_engine: PerEngine = False,
) -> None:
    """Write runs over time as OpenMetrics text with timestamps."""
    from pimserve.cluster.metrics.backfill import epoch_of, parts_of, write, write_file  # noqa: PLC0415

    parts = parts_of(runs, interval, per_engine=per_engine)
    if interval is None:
        _say_intervals(parts)
    begin = epoch_of(epoch, parts)
    if out is None:
        write(parts, begin, sys.stdout)
        return
    written = write_file(parts, begin, out)
    typer.echo(f"{sum(written.values()):,} samples in {out}", err=True)


@metrics.command("backfill")
def backfill_command(
    runs: Runs,
    into: Annotated[Path, typer.Option(metavar="DIR", help="Data directory of Prometheus.")],
    interval: Interval = None,
    epoch: Epoch = None,
    per_engine: PerEngine = False,
) -> None:
    """Load runs over time into a data directory of Prometheus, with promtool."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from pimserve.cluster.metrics.backfill import epoch_of, load, parts_of  # noqa: PLC0415

    parts = parts_of(runs, interval, per_engine=per_engine)
    if interval is None:
        _say_intervals(parts)
    begin = epoch_of(epoch, parts)
    written = load(parts, begin, into)
    for part in parts:
        first, last = (
            f"{datetime.fromtimestamp(begin + time_s, UTC):%Y-%m-%d %H:%M:%S}"
            for time_s in (part.times_s[0], part.times_s[-1])
        )
        typer.echo(f"{part.run_id}: {written[part.run_id]:,} samples, {first} to {last} UTC")
    typer.echo(
        "a Prometheus that runs there sees them within a minute; it must keep them, or they vanish:\n"
        f"prometheus --config.file=/dev/null --storage.tsdb.path={shlex.quote(str(into))} "
        "--storage.tsdb.retention.time=100y --web.listen-address=127.0.0.1:9090",
        err=True,
    )


def _say_intervals(parts: Sequence[Part]) -> None:
    """Which intervals were chosen, on standard error."""
    for part in parts:
        typer.echo(f"{part.run_id}: a sample every {part.interval_s:,.10g} s of simulated time (--interval)", err=True)
