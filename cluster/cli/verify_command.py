"""`pimserve verify`. What is heavy is imported when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pimserve.cluster.cli.options import AsJson
from pimserve.cluster.cli.output import print_json


def verify_command(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER", help="Results folder, folder of --checkpoint, or folder of a sweep; several."),
    ],
    as_json: AsJson = False,
) -> None:
    """Compare the files of folders with their checksums; exits with 1 if any is damaged, missing or unknown."""
    from pimserve.cluster.sweep.verify import verify  # noqa: PLC0415

    verdicts = [verdict for folder in folders for verdict in verify(folder)]
    if as_json:
        print_json(verdicts)
    else:
        for verdict in verdicts:
            for finding in verdict.findings:
                typer.echo(f"{finding.problem}: {finding.file}: {finding.message}")
            if not verdict.findings:
                typer.echo(f"ok: {verdict.folder}: {verdict.kind}, {verdict.checked} files as they were written")
    if any(verdict.findings for verdict in verdicts):
        raise typer.Exit(1)
