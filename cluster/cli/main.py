"""The command line. What is heavy is imported by the command that needs it, so that --help is quick.

Results go to standard output, all else to standard error. Exit codes: 0; 1 a published figure is missed, or a file is
damaged; 2 something that the user can mend; 70 a fault of pimserve's own; 130 interrupted.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pimserve import __version__
from pimserve.cluster.cli import (
    catalogue_commands,
    metrics_command,
    report_command,
    results_commands,
    run_command,
    serve_command,
    service_commands,
    sweep_command,
    trace_commands,
    validate_command,
    verify_command,
)
from pimserve.cluster.cli.options import with_option_groups
from pimserve.cluster.cli.signals import handle_signals, interrupted
from pimserve.errors import PimserveError

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
app.add_typer(trace_commands.trace, name="trace")
for name, command in (
    ("serve", serve_command.serve_command),
    ("launch", service_commands.launch_command),
    ("list", service_commands.list_command),
    ("watch", service_commands.watch_command),
    ("query", service_commands.query_command),
    ("change", service_commands.change_command),
    ("inject", service_commands.inject_command),
    ("pause", service_commands.pause_command),
    ("resume", service_commands.resume_command),
    ("cancel", service_commands.cancel_command),
    ("continue", service_commands.continue_command),
    ("delete", service_commands.delete_command),
    ("results", service_commands.results_command),
    ("sweep", sweep_command.sweep_command),
    ("report", report_command.report_command),
    ("run", run_command.run_command),
    ("verify", verify_command.verify_command),
    ("compare", results_commands.compare_command),
    ("models", catalogue_commands.models_command),
    ("devices", catalogue_commands.devices_command),
    ("schema", catalogue_commands.schema_command),
    ("timeline", results_commands.timeline_command),
    ("export", results_commands.export_command),
):
    app.command(name)(with_option_groups(command))


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


if __name__ == "__main__":
    main()
