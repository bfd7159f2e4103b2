"""`pimserve validate`. What is heavy is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pimserve.cluster.cli.options import AsJson
from pimserve.cluster.cli.output import print_json, print_page
from pimserve.errors import InputError

if TYPE_CHECKING:
    from pimserve.cluster.validation.targets import Finding

validate = typer.Typer(help="Hold the simulator against published figures.", no_args_is_help=True)


@validate.command("duplex")
def validate_duplex_command(
    targets: Annotated[
        Path | None, typer.Option(help="File of targets; default: the built-in list.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the figures of the Duplex paper (arXiv 2409.01141); exit code 1 if one is missed."""
    from pimserve.cluster.cli.progress import spinner  # noqa: PLC0415
    from pimserve.cluster.validation.validate_duplex import validate_duplex  # noqa: PLC0415

    with spinner("recomputing the paper's figures"):
        findings = validate_duplex(targets)
    _print_findings(findings, as_json=as_json)


@validate.command("aimc")
def validate_aimc_command(
    cases: Annotated[
        Path | None, typer.Option(help="File of cases; default: the built-in list.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rerun cases of the 3D AIMC paper's simulator (3D-SiM); exit code 1 if a figure is missed."""
    from pimserve.cluster.cli.progress import progress_bar  # noqa: PLC0415
    from pimserve.cluster.validation.validate_aimc import validate_aimc  # noqa: PLC0415

    with progress_bar(shown=True, of="cases") as progress:
        findings = validate_aimc(cases, progress)
    _print_findings(findings, as_json=as_json)


@validate.command("gpu")
def validate_gpu_command(
    measured: Annotated[
        Path | None, typer.Option(help="Timed operators (JSON); alone: only these.", show_default=False)
    ] = None,
    served: Annotated[
        Path | None, typer.Option(help="Served systems (JSON); alone: only these.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict timed operators and served systems of GPUs; exit code 1 if an error passes its limit for no known reason.

    Without a file: gpu/measured.json and gpu/end_to_end.json in $PIMSERVE_REFERENCE, or else in ../shared/reference.
    """
    from pimserve.cluster.cli.progress import progress_bar  # noqa: PLC0415
    from pimserve.cluster.validation.gpu_report import gpu_document, gpu_report  # noqa: PLC0415
    from pimserve.cluster.validation.validate_gpu import validate_gpu  # noqa: PLC0415

    with progress_bar(shown=True, of="rows") as progress:
        report = validate_gpu(measured, served, progress)
    if as_json:
        print_json(gpu_document(report))
    else:
        print_page(gpu_report(report))
    if not report.passed:
        raise typer.Exit(1)


@validate.command("disaggregation")
def validate_disaggregation_command(
    cases: Annotated[
        Path | None, typer.Option(help="File of cases; default: the built-in list.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute published formulas of attention-FFN disaggregation; exit code 1 if a published figure is missed."""
    from pimserve.cluster.validation.validate_disaggregation import validate_disaggregation  # noqa: PLC0415

    _print_findings(validate_disaggregation(cases), as_json=as_json)


@validate.command("pools")
def validate_pools_command(as_json: AsJson = False) -> None:
    """Hold prefill, decode and both against DistServe's figures (half a minute); exit code 1 if one is missed."""
    from pimserve.cluster.cli.progress import progress_bar  # noqa: PLC0415
    from pimserve.cluster.validation.validate_pools import validate_pools  # noqa: PLC0415

    with progress_bar(shown=True, of="figures") as progress:
        findings = validate_pools(progress)
    _print_findings(findings, as_json=as_json)


@validate.command("fleets")
def validate_fleets_command(
    cases: Annotated[
        Path | None, typer.Option(help="File of fleets and cases; default: the built-in list.", show_default=False)
    ] = None,
    fleet: Annotated[
        str | None, typer.Option(help="Run this fleet instead, and show its stages.", show_default=False)
    ] = None,
    router: Annotated[
        str | None,
        typer.Option(
            help="With --fleet: instead of its own router, a name, or {name: dynamo, temperature: 0.5}.",
            show_default=False,
        ),
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="With --fleet: RATE:SECONDS, instead of its own stages; may be repeated.",
            metavar="RATE:SECONDS",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="With --fleet: override a key of its scenario, such as scheduler.kv_tiers=[]; repeatable.",
            metavar="PATH=VALUE",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run fleets that others have measured, as they did; exit code 1 if a figure is missed for no known reason."""
    from pimserve.cluster.cli.fleet_table import read_stages, stage_rows, stages_report  # noqa: PLC0415
    from pimserve.cluster.cli.progress import progress_bar, spinner  # noqa: PLC0415
    from pimserve.cluster.validation.validate_fleets import stages_of_fleet, validate_fleets  # noqa: PLC0415

    if fleet is not None:
        changes = [*([] if router is None else [f"scheduler.router={router}"]), *(overrides or [])]
        with spinner(f"running {fleet}"):
            stages = stages_of_fleet(fleet, changes, read_stages(stage or []), cases)
        if as_json:
            print_json(stage_rows(stages))
        else:
            print_page(stages_report(stages))
        return
    if router is not None or stage or overrides:
        raise InputError("--router, --set, --stage", "need --fleet")
    with progress_bar(shown=True, of="cases") as progress:
        findings = validate_fleets(cases, progress)
    _print_findings(findings, as_json=as_json, known=True)


def _print_findings(findings: list[Finding], *, as_json: bool, known: bool = False) -> None:
    """And exit with 1 if a figure is missed; where causes are `known`, if one is without."""
    if as_json:
        print_json(findings)
    else:
        from pimserve.cluster.cli.findings_table import findings_report  # noqa: PLC0415

        print_page(findings_report(findings))
    if any(finding.passed is False and not (known and finding.note) for finding in findings):
        raise typer.Exit(1)
