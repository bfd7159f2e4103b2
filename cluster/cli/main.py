"""The command line. What is heavy is imported by the command that needs it, so that --help is quick.

Results go to standard output, all else to standard error. Exit codes: 0; 1 a published figure is missed; 2 something
that the user can mend; 70 a fault of pimserve's own; 130 interrupted.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from pimserve import __version__
from pimserve.cluster.cli import (
    metrics_command,
    report_command,
    serve_command,
    service_commands,
    sweep_command,
    validate_command,
)
from pimserve.cluster.cli.output import AsJson, print_json, print_page
from pimserve.cluster.cli.signals import handle_signals, interrupted, saying_when_interrupted
from pimserve.errors import InputError, PimserveError

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(
    help="Simulate serving large language models on clusters of near- and in-memory devices.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(validate_command.validate, name="validate")
app.add_typer(metrics_command.metrics, name="metrics")
serve_command.add_commands(app)
service_commands.add_commands(app)
sweep_command.add_commands(app)
report_command.add_commands(app)


class DeviceChoice(StrEnum):
    """How device actors are driven."""

    planned = "planned"
    lockstep = "lockstep"
    none = "none"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pimserve {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command("run")
def run_command(
    scenario: Annotated[
        Path | None,
        typer.Argument(help="Scenario (YAML); without it: Mixtral-8x7B on 4 Duplex devices.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Override a key, such as cluster.replicas=2; repeatable."),
    ] = None,
    trace: Annotated[
        str | None, typer.Option(metavar="FORMAT:PATH", help="Replay a trace, such as azure:trace.csv.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Results folder; default: results/NAME.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and nothing else.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress and no table, only the results folder's path.")
    ] = False,
    speed: Annotated[
        str | None,
        typer.Option(metavar="FACTOR", help="Pace, such as 60x: simulated seconds per second.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the run's state there; go on from it if it is.", show_default=False),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="local: this process; ray: a Ray of our own on this machine; auto, HOST:PORT or ray://HOST:PORT: "
            "a Ray that runs; processes: plain processes.",
        ),
    ] = "local",
    shards: Annotated[
        int | None, typer.Option(min=1, max=4096, help="With --on: actors that run engines.", show_default="1")
    ] = None,
    devices: Annotated[
        DeviceChoice | None,
        typer.Option(
            help="With --on: device actors. planned: they check the engine's steps in batches; lockstep: every step "
            "waits for them; none: there are none.",
            show_default="planned",
        ),
    ] = None,
    devices_per_actor: Annotated[
        int | None,
        typer.Option(min=1, help="With --on: simulated devices of an actor.", show_default="those of a replica"),
    ] = None,
    resource: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="With Ray: custom resource that a device holds; repeatable."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Expose metrics for Prometheus while the run goes.", show_default=False),
    ] = None,
    metrics_linger: Annotated[
        float, typer.Option(min=0, max=3600, metavar="SECONDS", help="Expose them for so long after its end.")
    ] = 0.0,
    metrics_token_file: Annotated[
        Path | None, typer.Option(help="File with the token that scrapers need.", show_default=False)
    ] = None,
    metrics_tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate of the endpoint of metrics (PEM).", show_default=False)
    ] = None,
    metrics_tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).", show_default=False)] = None,
    metrics_tls_client_ca: Annotated[
        Path | None, typer.Option(help="Take only scrapers with a certificate of this authority.", show_default=False)
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Expose metrics beyond this machine to whoever asks.")
    ] = False,
) -> None:
    """Simulate a scenario and print what came of it."""
    from pimserve.cluster.cli.progress import progress_bar  # noqa: PLC0415
    from pimserve.cluster.distributed.run_on import control_of, run_on, spread_of  # noqa: PLC0415
    from pimserve.cluster.run.results import UnwrittenError  # noqa: PLC0415
    from pimserve.cluster.run.run import results_place  # noqa: PLC0415
    from pimserve.cluster.run.run_times import earlier_run  # noqa: PLC0415
    from pimserve.cluster.scenario.document import load_scenario  # noqa: PLC0415

    tls = (metrics_tls_cert, metrics_tls_key, metrics_tls_client_ca)
    if metrics is None and (metrics_linger or insecure or any((metrics_token_file, *tls))):
        raise InputError("--metrics", "is missing: it says where, and the other options for metrics need it")
    spread = spread_of(on, shards, None if devices is None else devices.value, devices_per_actor, resource or ())
    loaded = load_scenario(scenario, overrides or (), trace)
    earlier = earlier_run(loaded.name, place := results_place(loaded, out, checkpoint)) if out is None else None
    if earlier is not None:
        typer.echo(f"note: {earlier}; this one will be in {place}", err=True)
    with ExitStack() as stack:
        how: dict[str, Any] = {"control": control_of(speed)}
        if metrics is not None:
            from pimserve.cluster.base.rpc.security import TlsFiles, token_of  # noqa: PLC0415
            from pimserve.cluster.metrics.endpoint import EndpointOptions  # noqa: PLC0415
            from pimserve.cluster.metrics.metered import metered  # noqa: PLC0415

            options = EndpointOptions(metrics, token_of(metrics_token_file), TlsFiles(*tls), insecure)
            control, feed, address = stack.enter_context(
                metered(loaded, out, speed, options, metrics_linger, checkpoint)
            )
            how = {"control": control, "metrics": feed}
            typer.echo(f"metrics on {address}", err=True)
        try:
            with saying_when_interrupted(_after_interrupt(checkpoint)), progress_bar(shown=not quiet) as progress:
                summary = run_on(on, loaded, out, spread=spread, progress=progress, checkpoints=checkpoint, **how)
        except UnwrittenError as error:
            _show(error.summary, as_json=as_json, quiet=quiet)
            raise
        _show(summary, as_json=as_json, quiet=quiet)  # before metrics linger
        if earlier is not None:
            typer.echo(f"note: {earlier}", err=True)
        sys.stdout.flush()


def _after_interrupt(checkpoint: Path | None) -> str:
    """How an interrupted run goes on."""
    if checkpoint is None:
        return "interrupted, and nothing is kept; with --checkpoint DIR the same command goes on where a run was"
    return f"interrupted; the same command, with --checkpoint {checkpoint}, goes on from the last checkpoint"


def _show(summary: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    """What came of a run."""
    if as_json:
        print_json(summary)
    elif quiet:
        if "results" in summary:
            typer.echo(summary["results"])
    else:
        from pimserve.cluster.cli.render import summary_report  # noqa: PLC0415

        print_page(summary_report(summary))
    if not quiet and "results" in summary:
        # Not in the table: a path is for copying, and breaks only where the terminal ends.
        typer.echo(f"results in {summary['results']}", err=as_json)
    if as_json or quiet:
        for each in summary["warnings"]:
            typer.echo(f"warning: {each}", err=True)


@app.command("compare")
def compare_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Results folders, or summary.json files.")],
    as_json: AsJson = False,
) -> None:
    """Print runs side by side, as ratios to the first."""
    from pimserve.cluster.run.compare import compare  # noqa: PLC0415

    comparison = compare(runs)
    if as_json:
        print_json(comparison.document())
        return
    from pimserve.cluster.cli.render import comparison_report, console  # noqa: PLC0415

    print_page(comparison_report(comparison, console(sys.stdout)))


@app.command("models")
def models_command(
    name: Annotated[
        str | None, typer.Argument(help="Show this one in full; a YAML file shows one of your own.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the models of the catalogue, or show one with what follows from its shapes."""
    from pimserve.cluster.cli.listing import describe_model, model_list  # noqa: PLC0415
    from pimserve.device_models.catalogue import model_names  # noqa: PLC0415

    _catalogue(name, as_json, model_names, describe_model, model_list)


@app.command("devices")
def devices_command(
    name: Annotated[
        str | None, typer.Argument(help="Show this one in full; a YAML file shows one of your own.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the devices of the catalogue, or show one with its key figures."""
    from pimserve.cluster.cli.listing import describe_device, device_list  # noqa: PLC0415
    from pimserve.device_models.catalogue import device_names  # noqa: PLC0415

    _catalogue(name, as_json, device_names, describe_device, device_list)


@app.command("schema")
def schema_command(
    summary: Annotated[bool, typer.Option("--summary", help="Of summary.json, instead of a scenario.")] = False,
) -> None:
    """Print the JSON Schema of a scenario, or of what a run writes."""
    if summary:
        from pimserve.cluster.run.summary_schema import summary_schema  # noqa: PLC0415

        print_json(summary_schema())
        return
    from pimserve.cluster.scenario.document import json_schema  # noqa: PLC0415

    print_json(json_schema())


@app.command("timeline")
def timeline_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Results folder.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: timeline.json in the folder.", show_default=False)
    ] = None,
    requests: Annotated[int, typer.Option(min=0, max=100_000, help="How many requests it shows, at most.")] = 1000,
) -> None:
    """Write a run over time for Perfetto (ui.perfetto.dev): replicas, units and requests."""
    from pimserve.cluster.run.timeline import write_timeline  # noqa: PLC0415

    target = out or run / "timeline.json"
    found = write_timeline(run, target, most_requests=requests)
    typer.echo(f"{', '.join(f'{number:,} {kind}' for kind, number in found.items())} in {target}")


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="Results folder.")],
    steps: Annotated[bool, typer.Option("--steps", help="Every step, instead of every request.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: standard output.", show_default=False)
    ] = None,
) -> None:
    """Write a run's requests or steps as CSV."""
    from pimserve.cluster.run.export import export_table  # noqa: PLC0415
    from pimserve.cluster.run.results import naming  # noqa: PLC0415

    what: Literal["requests", "steps"] = "steps" if steps else "requests"
    if out is None:
        export_table(run, what, sys.stdout)
        return
    try:
        file = out.open("x", encoding="utf-8")
    except FileExistsError:
        raise InputError(str(out), "exists already; give another file with --out") from None
    try:
        with naming(out), file:
            rows = export_table(run, what, file)
    except BaseException:
        out.unlink()
        raise
    typer.echo(f"{rows:,} {what} in {out}", err=True)


def main() -> None:
    """Entry point of `pimserve`: runs the command, and turns whatever goes wrong into a message and an exit code."""
    _open_streams()
    handle_signals()
    try:
        try:
            app()
        except Exception as error:
            if interrupted(error):
                raise KeyboardInterrupt from error
            raise
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _abandon_output()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except PimserveError as error:
        _fail(str(error), 2)
    except OSError as error:
        _abandon_output()
        _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error), 2)
    except MemoryError:
        _fail("out of memory: a smaller workload needs less", 2)
    except Exception as error:  # noqa: BLE001 the last resort: no user is to see a traceback unasked
        _fail(f"internal error: {type(error).__name__}: {error}\nplease report it, with what PIMSERVE_DEBUG=1 adds", 70)


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Escapes; of bytes in names of files that are no text, the bytes: `\\xff`, where Python has U+DCFF for it."""
    text, end = codecs.backslashreplace_errors(error)
    return re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", str(text)), end


def _open_streams() -> None:
    """Let both streams take whatever is written: what a terminal cannot show is escaped, a closed one swallows all."""
    codecs.register_error("readable", _readable)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 open to the end
        else:
            stream.reconfigure(errors="readable")


def _abandon_output() -> None:
    """Send what is still buffered for standard output nowhere, else the interpreter complains about it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> NoReturn:
    """Called while an exception is handled: print the message, and the traceback if it is wanted, and exit."""
    if os.environ.get("PIMSERVE_DEBUG"):
        import traceback  # noqa: PLC0415

        traceback.print_exc()
    typer.echo("error: " + message.replace("\n", "\n       "), err=True)
    sys.exit(code)


def _catalogue(
    name: str | None,
    as_json: bool,
    names: Callable[[], list[str]],
    describe: Callable[[str], dict[str, Any]],
    table: Callable[[list[dict[str, Any]]], RenderableType],
) -> None:
    from pimserve.cluster.cli.listing import entry_page  # noqa: PLC0415

    if name is not None:
        entry = describe(name)
        print_json(entry) if as_json else print_page(entry_page(entry))
        return
    entries = [describe(known) for known in names()]
    print_json(entries) if as_json else print_page(table(entries))


if __name__ == "__main__":
    main()
