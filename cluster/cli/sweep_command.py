"""`pimserve sweep`. What is heavy is imported when the command runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimserve.cluster.cli.options import ScenarioFile
from pimserve.cluster.cli.output import print_json, print_page
from pimserve.cluster.cli.signals import saying_when_interrupted

if TYPE_CHECKING:
    from pimserve.cluster.sweep.workers import Workers


def sweep_command(
    scenario: ScenarioFile = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="PATH=V1,V2,...",
            help="Values of a key, such as cluster.replicas=1,2,4 or =1..4; repeatable.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a key for all points; repeatable.")
    ] = None,
    repeat: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=1000, help="Runs of each point, with seeds run.seed and the next ones."),
    ] = 1,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", metavar="N", min=1, help="Runs at a time; default: as many as cores.", show_default=False
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="RAY",
            help="Run on Ray: ray (started here), auto, HOST:PORT or ray://HOST:PORT; default: processes.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; default: results/NAME-sweep. The same sweep is continued.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json, and nothing else.")] = False,
) -> None:
    """Run a scenario for every combination of values, and compare."""
    from pimserve.cluster.cli.progress import progress_bar, spinner  # noqa: PLC0415
    from pimserve.cluster.sweep.grid import load_grid  # noqa: PLC0415
    from pimserve.cluster.sweep.sweep import folder_of, sweep  # noqa: PLC0415

    with spinner("checking the grid"):
        points = load_grid(scenario, overrides or (), grid or (), repeat)
    folder = folder_of(points, out)
    with ExitStack() as stack:
        workers = _workers(on, jobs, stack)
        progress = stack.enter_context(progress_bar(shown=True, of="runs"))
        with saying_when_interrupted(f"interrupted; the same command makes what is missing in {folder}"):
            document = sweep(points, folder, workers, progress)
    if as_json:
        print_json(document)
    else:
        from pimserve.cluster.cli.sweep_table import sweep_report  # noqa: PLC0415
        from pimserve.cluster.cli.terminal import console  # noqa: PLC0415

        print_page(sweep_report(document, console(sys.stdout)))
    typer.echo(f"results in {folder}", err=as_json)
    _report_failures(document)


def _report_failures(document: Mapping[str, Any]) -> None:
    """Say how many runs failed, and exit with 2 if any did."""
    runs = [run for point in document["points"] for run in point["runs"]]
    failed = sum(run["status"] == "failed" for run in runs)
    if failed:
        typer.echo(f"error: {failed} of {len(runs)} runs failed; the same command tries them again", err=True)
        raise typer.Exit(2)


def _workers(on: str | None, jobs: int | None, stack: ExitStack) -> Workers:
    from pimserve.cluster.sweep.workers import ProcessWorkers, RayWorkers  # noqa: PLC0415

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if on is None:
        return ProcessWorkers(jobs or cores)
    from pimserve.cluster.distributed.hosts.ray_cluster import ray_on  # noqa: PLC0415

    return RayWorkers(stack.enter_context(ray_on(on, cpus=jobs or cores)), jobs)
