"""Commands that talk to a server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pimserve.cluster.cli.connection import Connection
from pimserve.cluster.cli.deployment_options import DeploymentOptions
from pimserve.cluster.cli.options import AsJson, Overrides, ScenarioFile
from pimserve.cluster.cli.output import print_json, print_page
from pimserve.errors import InputError, PimserveError, shortened

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pimserve.cluster.client import Client
    from pimserve.cluster.client.answers import Run

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, as `pimserve list` shows it.")]


@dataclass(frozen=True)
class _Call(Connection):
    """A call of a server, and how its answer is printed."""

    as_json: AsJson = False

    def show(self, document: object, text: str | Callable[[], RenderableType]) -> None:
        """Print the answer as JSON, or as text or tables."""
        if self.as_json:
            print_json(document)
        elif isinstance(text, str):
            typer.echo(text)
        else:
            print_page(text())


@dataclass(frozen=True)
class _SummaryCall(_Call):
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False


def launch_command(
    scenario: ScenarioFile = None,
    overrides: Overrides = None,
    trace: Annotated[
        str, typer.Option(metavar="[FORMAT:]PATH", help="Replay a trace of the server's folder for traces.")
    ] = "",
    speed: Annotated[
        str | None,
        typer.Option(metavar="FACTOR", help="Pace, such as 60x; default: as fast as possible.", show_default=False),
    ] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Hold the run before its first step.")] = False,
    idempotency_key: Annotated[
        str, typer.Option(metavar="KEY", help="A second launch with the same key gives the run of the first.")
    ] = "",
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="Label to find it by; repeatable.", show_default=False),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it until it has ended.")] = False,
    *,
    deployment: DeploymentOptions,
    call: _Call,
) -> None:
    """Launch a simulation on a server; prints its id."""
    from pimserve.cluster.base.speed import parse_speed  # noqa: PLC0415

    place = deployment.place()
    place.spread()  # what means nothing here needs no server to say so
    text = _text(scenario) if scenario is not None else ""
    factor = parse_speed(speed) if speed is not None else 0.0
    with call.client() as client:
        run = client.launch(
            text,
            overrides or (),
            trace,
            speed=factor,
            paused=paused,
            idempotency_key=idempotency_key,
            on=place.on,
            shards=place.shards,
            devices=place.devices,
            devices_per_actor=place.devices_per_actor,
            resource=place.resource,
            host_timeout_s=place.host_timeout_s,
            labels=_labels(labels),
        )
        if not watch:
            call.show(run, run.id)
            return
        typer.echo(f"launched run {run.id}", err=True)
        _watch(client, run.id, 0.5, as_json=call.as_json)


def list_command(
    states: Annotated[
        list[str] | None, typer.Option("--state", help="Only runs in this state; repeatable.", show_default=False)
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="Only runs with this label; repeatable.", show_default=False),
    ] = None,
    name: Annotated[str, typer.Option(help="Only runs of this name; * stands for any characters.")] = "",
    since: Annotated[
        datetime | None, typer.Option(metavar="TIME", help="Only runs launched then or later, UTC.", show_default=False)
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(metavar="TIME", help="Only runs launched before then, UTC.", show_default=False)
    ] = None,
    *,
    call: _Call,
) -> None:
    """List the runs of a server, newest first."""
    from pimserve.cluster.cli.service_tables import run_list  # noqa: PLC0415
    from pimserve.cluster.client import RunFilter  # noqa: PLC0415
    from pimserve.cluster.service.run_registry import STATES  # noqa: PLC0415

    for state in states or ():
        if state not in STATES:
            raise InputError("--state", f"must be one of {', '.join(STATES)} (got {state!r})")
    with call.client() as client:
        runs = list(client.list(matching=RunFilter(states or (), _labels(labels), name, since, until)))
    call.show(runs, lambda: run_list(runs))


def watch_command(
    run: RunId,
    interval: Annotated[float, typer.Option(min=0.05, max=60, help="Seconds between two looks at least.")] = 0.5,
    *,
    connection: Connection,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each change.")] = False,
) -> None:
    """Watch a run until it has ended; exit code 2 unless it finished."""
    with connection.client() as client:
        _watch(client, run, interval, as_json=as_json)


def query_command(
    run: RunId,
    request: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="This request's life, instead.", show_default=False)
    ] = None,
    ledgers: Annotated[bool, typer.Option("--ledgers", help="What devices have done, instead.")] = False,
    devices: Annotated[bool, typer.Option("--devices", help="What each device actor has done, instead.")] = False,
    placement: Annotated[bool, typer.Option("--placement", help="Which devices replicas have, instead.")] = False,
    scenario: Annotated[bool, typer.Option("--scenario", help="Its scenario with all defaults, instead.")] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Its summary once it has finished, instead.")] = False,
    *,
    call: _Call,
) -> None:
    """Show a run as it stands: replicas, latencies and SLO attainment so far."""
    from pimserve.cluster.cli import service_tables  # noqa: PLC0415
    from pimserve.cluster.cli.render import summary_report  # noqa: PLC0415

    if sum((request is not None, ledgers, devices, placement, scenario, summary)) > 1:
        options = "--request, --ledgers, --devices, --placement, --scenario and --summary"
        raise InputError("query", f"give one of {options}")
    with call.client() as client:
        if request is not None:
            life = client.request(run, request)
            call.show(life, lambda: service_tables.request_page(life))
        elif ledgers:
            books = client.ledgers(run)
            call.show(books, lambda: service_tables.ledger_table(books))
        elif devices:
            actors = client.devices(run)
            call.show(actors, lambda: service_tables.device_table(actors))
        elif placement:
            places = client.placement(run)
            call.show(places, lambda: service_tables.placement_table(places))
        elif scenario:
            text = client.scenario(run)
            call.show({"scenario": text}, text.rstrip())
        elif summary:
            figures = client.summary(run)
            call.show(figures.document(), lambda: summary_report(figures))
        else:
            _query(client, run, call)


def change_command(
    run: RunId,
    router: Annotated[str | None, typer.Option(help="Router.", show_default=False)] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Requests that run at once on a replica.", show_default=False)
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one step.", show_default=False)
    ] = None,
    speed: Annotated[
        str | None, typer.Option(metavar="FACTOR", help="Pace, such as 60x; max: no pace.", show_default=False)
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="FACTOR", help="Requests still to come arrive this much faster.", show_default=False),
    ] = None,
    *,
    call: _Call,
) -> None:
    """Change the scheduler, the pace or the rate for the rest of a run."""
    from pimserve.cluster.base.speed import parse_speed  # noqa: PLC0415

    settings = {"router": router, "max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    changed = any(value is not None for value in settings.values())
    if not changed and rate is None and speed is None:
        raise InputError("change", "give --router, --max-num-seqs, --max-num-batched-tokens, --speed or --rate")
    factor = 0.0 if speed in {None, "max"} else parse_speed(str(speed))
    with call.client() as client:
        since_s = 0.0
        if changed:
            since_s = client.change_scheduler(
                run, router=router, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
            )
        if speed is not None:
            since_s = client.change_speed(run, factor)
        if rate is not None:
            since_s = client.scale_rate(run, rate)
    call.show({"run": run, "simulated_s": since_s}, f"in force since {since_s:,.6f} s")


def inject_command(
    run: RunId,
    input_tokens: Annotated[int, typer.Option(min=1, help="Prompt of each.")],
    output_tokens: Annotated[int, typer.Option(min=1, help="Output of each.")],
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 1,
    delay: Annotated[float, typer.Option(min=0, help="Simulated seconds from now at which they arrive.")] = 0.0,
    *,
    call: _Call,
) -> None:
    """Add requests to a run."""
    with call.client() as client:
        done = client.inject(run, [input_tokens] * count, [output_tokens] * count, delay)
    last = done.first_request + count - 1
    numbers = f"request {last}" if count == 1 else f"requests {done.first_request} to {last}"
    call.show(done, f"{numbers}, injected at {done.simulated_s:,.6f} s")


def pause_command(run: RunId, *, call: _Call) -> None:
    """Hold a run."""
    with call.client() as client:
        now_s = client.pause(run)
    call.show({"run": run, "simulated_s": now_s}, f"run {run} is held at {now_s:,.6f} s")


def resume_command(run: RunId, *, call: _Call) -> None:
    """Let a run go on."""
    with call.client() as client:
        now_s = client.resume(run)
    call.show({"run": run, "simulated_s": now_s}, f"run {run} goes on from {now_s:,.6f} s")


def cancel_command(run: RunId, *, call: _Call) -> None:
    """End a run without results."""
    with call.client() as client:
        client.cancel(run)
        ended = client.get(run)
        for ended in client.watch(run, 0.05):  # to its end  # noqa: B007
            continue
    call.show(ended, f"run {run} is {ended.state}")


def continue_command(
    run: RunId,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it until it has ended.")] = False,
    *,
    call: _Call,
) -> None:
    """Go on with a run that has failed, from its last checkpoint."""
    with call.client() as client:
        going_on = client.continue_(run)
        if watch:
            _watch(client, run, 0.5, as_json=call.as_json)
        else:
            call.show(going_on, f"run {run} is {going_on.state}, to go on from its last checkpoint")


def delete_command(run: RunId, *, call: _Call) -> None:
    """Forget a run that has ended, and remove its results from the server."""
    with call.client() as client:
        client.delete(run)
    call.show({"run": run, "deleted": True}, f"run {run} is deleted")


def results_command(
    run: RunId,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: results/NAME-RUN.", show_default=False)
    ] = None,
    files: Annotated[
        list[str] | None, typer.Option("--file", help="Only this file; repeatable.", show_default=False)
    ] = None,
    *,
    call: _SummaryCall,
) -> None:
    """Fetch the results of a run and print its summary."""
    from pimserve.cluster.cli.render import summary_report  # noqa: PLC0415
    from pimserve.cluster.run.read_summary import load_document, summary_of_document  # noqa: PLC0415

    with call.client() as client:
        folder = out if out is not None else Path("results") / f"{client.get(run).name}-{run}"
        sizes = client.results(run, folder, files or ())
    if files:
        call.show({"results": str(folder), "bytes": sizes}, f"{', '.join(sizes)} in {folder}")
        return
    document = load_document(folder)
    call.show(document, lambda: summary_report(summary_of_document(document)))
    typer.echo(f"results in {folder}", err=call.as_json)


def _query(client: Client, run_id: str, call: _Call) -> None:
    from pimserve.cluster.cli.service_tables import run_line, run_page  # noqa: PLC0415
    from pimserve.cluster.client import ServiceError  # noqa: PLC0415

    run = client.get(run_id)
    if run.state not in {"running", "paused", "finished"}:
        call.show({"run": run}, run_line(run) + (f"\n{run.error}" if run.error else ""))
        return
    try:
        replicas, latencies = client.replicas(run_id), client.latencies(run_id)
    except ServiceError as error:
        if run.state != "finished":
            raise
        call.show({"run": run}, f"{run_line(run)}\n{error}")
        return
    document = {"run": run, "replicas": replicas, "latencies": latencies}
    call.show(document, lambda: run_page(run, replicas, latencies))


def _watch(client: Client, run_id: str, interval_s: float, *, as_json: bool) -> None:
    """Show a run until it has ended.

    Raises:
        PimserveError: it has not finished.
    """
    from pimserve.cluster.cli.progress import progress_bar  # noqa: PLC0415

    run: Run | None = None
    with progress_bar(shown=not as_json) as bar:
        for run in client.watch(run_id, interval_s):
            if as_json:
                print_json(run, indent=None)
                sys.stdout.flush()
            elif bar is not None and run.progress is not None:
                bar(run.progress.finished + run.progress.rejected, run.progress.requests)
            elif bar is None:
                _print_line(run)
    assert run is not None
    if bar is not None:
        _print_line(run)
    if run.state != "finished":
        raise PimserveError(f"run {run.id} {'failed: ' + run.error if run.state == 'failed' else 'was cancelled'}")


def _print_line(run: Run) -> None:
    from pimserve.cluster.cli.service_tables import run_line  # noqa: PLC0415

    typer.echo(run_line(run))
    sys.stdout.flush()


def _labels(given: list[str] | None) -> dict[str, str]:
    """Labels, from "KEY=VALUE" each.

    Raises:
        InputError: one is none, or comes twice.
    """
    labels: dict[str, str] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or key in labels:
            raise InputError("--label", f"must be KEY=VALUE, each key once (got {shortened(repr(text))})")
        labels[key] = value
    return labels


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"is not UTF-8 text (byte {error.start}); a scenario is a YAML file") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None
