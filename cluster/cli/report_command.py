"""`pimserve report`. What is heavy is imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Results folder; several are compared; or a sweep's folder.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="HTML file to write; default: report.html in the folder, or here where there are several.",
            show_default=False,
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Heading of the page; default: the run's name.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write what runs did as one HTML file with pictures, which opens offline."""
    from pimserve.cluster.cli.progress import spinner  # noqa: PLC0415
    from pimserve.cluster.report.report import write_report  # noqa: PLC0415

    with spinner("drawing"):
        written = write_report(runs, out, title=title, force=force)
    typer.echo(f"report in {written}")
