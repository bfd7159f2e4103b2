"""Commands that read results folders: runs side by side, over time, and as CSV."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pimserve.cluster.cli.options import AsJson
from pimserve.cluster.cli.output import print_json, print_page


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
    from pimserve.cluster.cli.comparison_report import comparison_report  # noqa: PLC0415
    from pimserve.cluster.cli.terminal import console  # noqa: PLC0415

    print_page(comparison_report(comparison, console(sys.stdout)))


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
    written = write_timeline(run, target, most_requests=requests)
    typer.echo(f"{', '.join(f'{number:,} {kind}' for kind, number in written.items())} in {target}")


def export_command(
    run: Annotated[Path, typer.Argument(help="Results folder.")],
    steps: Annotated[bool, typer.Option("--steps", help="Every step, instead of every request.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: standard output.", show_default=False)
    ] = None,
) -> None:
    """Write a run's requests or steps as CSV."""
    from pimserve.cluster.base.files import output_file  # noqa: PLC0415
    from pimserve.cluster.run.export import export_table  # noqa: PLC0415

    what: Literal["requests", "steps"] = "steps" if steps else "requests"
    if out is None:
        export_table(run, what, sys.stdout)
        return
    with output_file(out, exists="exists already; give another file with --out") as file:
        rows = export_table(run, what, file)
    typer.echo(f"{rows:,} {what} in {out}", err=True)
