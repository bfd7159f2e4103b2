"""`pimserve run`. What is heavy is imported when the command runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimserve.cluster.cli import parent
from pimserve.cluster.cli.deployment_options import DeploymentOptions
from pimserve.cluster.cli.options import Overrides, PerEngine, ScenarioFile, ScraperAccess
from pimserve.cluster.cli.output import print_json, print_page
from pimserve.cluster.cli.signals import saying_when_interrupted
from pimserve.errors import InputError

if TYPE_CHECKING:
    from pimserve.cluster.run.reproduce import RecordedRun
    from pimserve.cluster.run.summary_schema import UnwrittenSummary
    from pimserve.cluster.scenario.prepared import Prepared


@dataclass(frozen=True)
class _Asked:
    """What to run: a scenario, or a run once more."""

    scenario: ScenarioFile = None
    overrides: Overrides = None
    trace: Annotated[
        str | None, typer.Option(metavar="[FORMAT:]PATH", help="Replay a trace, such as trace.csv or azure:trace.csv.")
    ] = None
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Run what is in that results folder once more, with the commands that changed it, to the same bits.",
            show_default=False,
        ),
    ] = None

    def prepared(self) -> tuple[Prepared, RecordedRun | None]:
        """What to run, and the run that it repeats.

        Raises:
            InputError: it is not acceptable.
        """
        from pimserve.cluster.scenario.document import load_scenario  # noqa: PLC0415
        from pimserve.cluster.scenario.prepared import prepare  # noqa: PLC0415

        if self.replay is None:
            return prepare(load_scenario(self.scenario, self.overrides or (), self.trace)), None
        given = {"SCENARIO": self.scenario, "--set": self.overrides, "--trace": self.trace}
        if more := [name for name, value in given.items() if value]:
            raise InputError("--replay", f"takes the whole scenario from its folder: leave out {', '.join(more)}")
        from pimserve.cluster.run.reproduce import read_recorded_run  # noqa: PLC0415

        recorded = read_recorded_run(self.replay)
        if not recorded.checked:
            typer.echo(f"note: an earlier pimserve wrote {self.replay}, without checksums of its files", err=True)
        return recorded.prepared, recorded


@dataclass(frozen=True, kw_only=True)
class _Metrics:
    """Where metrics are exposed, for how long, and to whom."""

    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Expose metrics for Prometheus while the run goes.", show_default=False),
    ] = None
    metrics_linger: Annotated[
        float, typer.Option(min=0, max=3600, metavar="SECONDS", help="Expose them for so long after its end.")
    ] = 0.0
    metrics_per_engine: PerEngine = False
    scrapers: ScraperAccess
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Expose metrics beyond this machine to whoever asks.")
    ] = False

    def check(self) -> None:
        """Refuse options that need an address where there is none.

        Raises:
            InputError: so it is.
        """
        self.scrapers.check(self.metrics, self.metrics_linger, self.metrics_per_engine, self.insecure)

    @contextmanager
    def watched(
        self, prepared: Prepared, out: Path | None, speed: str | None, checkpoint: Path | None
    ) -> Iterator[dict[str, Any]]:
        """Expose the metrics of a run, if at all; yields how it is run: its control, and what is told of it.

        Raises:
            InputError: an option is not acceptable.
        """
        if self.metrics is None:
            from pimserve.cluster.distributed.run_on import control_of  # noqa: PLC0415

            yield {"control": control_of(speed)}
            return
        from pimserve.cluster.metrics.metered import metered  # noqa: PLC0415

        endpoint = self.scrapers.endpoint(self.metrics, insecure=self.insecure, per_engine=self.metrics_per_engine)
        with metered(prepared, out, speed, endpoint, self.metrics_linger, checkpoint) as (control, feed, address):
            typer.echo(f"metrics on {address}", err=True)
            yield {"control": control, "started": lambda runtime: feed.watch(runtime.facts)}


def run_command(
    asked: _Asked,
    out: Annotated[Path | None, typer.Option(help="Results folder; default: results/NAME.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and nothing else.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress and no table, only the results folder's path.")
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the run's state there; go on from it if it is, and when the run's process is killed.",
            show_default=False,
        ),
    ] = None,
    speed: Annotated[
        str | None,
        typer.Option(metavar="FACTOR", help="Pace, such as 60x: simulated seconds per second.", show_default=False),
    ] = None,
    *,
    deployment: DeploymentOptions,
    metrics: _Metrics,
) -> None:
    """Simulate a scenario and print what came of it."""
    from pimserve.cluster.cli.progress import progress_bar  # noqa: PLC0415
    from pimserve.cluster.distributed.run_on import run_on  # noqa: PLC0415
    from pimserve.cluster.run.results import UnwrittenError  # noqa: PLC0415
    from pimserve.cluster.run.run import results_place  # noqa: PLC0415
    from pimserve.cluster.run.run_times import earlier_run  # noqa: PLC0415

    metrics.check()
    place = deployment.place()
    spread = place.spread()
    prepared, recorded = asked.prepared()
    results = results_place(prepared, out, checkpoint)
    earlier = earlier_run(prepared.scenario.name, results) if out is None else None
    if earlier is not None and not parent.restarts:
        typer.echo(f"note: {earlier}; this one will be in {results}", err=True)
    with metrics.watched(prepared, out, speed, checkpoint) as how, ExitStack() as until:
        how |= {"checkpoints": checkpoint, "until": until}
        if recorded is not None:
            how["commands"] = recorded.commands
        try:
            with saying_when_interrupted(_after_interrupt(checkpoint)), progress_bar(shown=not quiet) as progress:
                summary = run_on(place.on, prepared, out, spread=spread, progress=progress, **how)
        except UnwrittenError as error:
            _show(error.summary, as_json=as_json, quiet=quiet)
            raise
        _show(summary, as_json=as_json, quiet=quiet)  # before metrics linger
        if earlier is not None:
            typer.echo(f"note: {earlier}", err=True)
        sys.stdout.flush()
        parent.done()
    if recorded is not None:
        recorded.compare(summary)
        if not quiet:
            typer.echo(f"the same bits as {recorded.folder}", err=True)


def _after_interrupt(checkpoint: Path | None) -> str:
    """How an interrupted run goes on."""
    if checkpoint is None:
        return "interrupted, and nothing is kept; with --checkpoint DIR the same command goes on where a run was"
    return f"interrupted; the same command, with --checkpoint {checkpoint}, goes on from the last checkpoint"


def _show(summary: UnwrittenSummary, *, as_json: bool, quiet: bool) -> None:
    """What came of a run."""
    results = getattr(summary, "results", None)  # none where they could not be written
    if as_json:
        print_json(summary.document())
    elif quiet:
        if results is not None:
            typer.echo(results)
    else:
        from pimserve.cluster.cli.render import summary_report  # noqa: PLC0415

        print_page(summary_report(summary))
    if not quiet and results is not None:
        # Not in the table: a path is for copying, and breaks only where the terminal ends.
        typer.echo(f"results in {results}", err=as_json)
    if as_json or quiet:
        for warning in summary.warnings:
            typer.echo(f"warning: {warning}", err=True)
