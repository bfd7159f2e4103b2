"""`pimserve serve`. What is heavy is imported when the command runs."""

from __future__ import annotations

import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pimserve.cluster.cli.connection import LISTEN
from pimserve.cluster.cli.options import PerEngine, ScraperAccess
from pimserve.cluster.cli.output import quiet_grpc
from pimserve.errors import InputError

if TYPE_CHECKING:
    from pimserve.cluster.service.launch_options import AllowedPlaces
    from pimserve.cluster.service.limits import CheckLimits, Limits


@dataclass(frozen=True)
class _CallerAccess:
    """Who may call."""

    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that callers need; default: $PIMSERVE_TOKEN.", show_default=False),
    ] = None
    tls_cert: Annotated[Path | None, typer.Option(help="The server's certificate (PEM).", show_default=False)] = None
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).", show_default=False)] = None
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Take only clients with a certificate of this authority.", show_default=False)
    ] = None


@dataclass(frozen=True)
class _ScraperAccess(ScraperAccess):
    """Who may read metrics: whoever may call, unless it is said here."""

    metrics_token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that scrapers need; not the server's own.", show_default=False),
    ] = None
    metrics_tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate of the endpoint of metrics (PEM).", show_default="as for gRPC")
    ] = None
    metrics_tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).", show_default="as for gRPC")] = (
        None
    )
    metrics_tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            help="Take only scrapers with a certificate of this authority.",
            show_default="as for gRPC, unless a certificate is given here",
        ),
    ] = None


@dataclass(frozen=True)
class _Runs:
    """How many runs it takes on, and where they compute."""

    max_running: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Runs at once; default: one per core.", show_default=False)
    ] = None
    max_queued: Annotated[int, typer.Option(min=0, max=1_000_000, help="Runs that may wait.")] = 100
    disk_quota: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of all runs together, such as 20GB.", show_default=False)
    ] = None
    allow_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHERE",
            help="Where runs may compute, as of `pimserve launch --on`; repeatable, all that are allowed.",
            show_default="local and processes",
        ),
    ] = None
    max_hosts: Annotated[
        int, typer.Option(min=1, max=100_000, help="Processes or actors that one run may be spread over.")
    ] = 64
    check_time: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds that checking a scenario may take before it is launched.")
    ] = 30.0
    check_memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory that this may take.")] = "2GB"

    def limits(self) -> Limits:
        """How much it takes on.

        Raises:
            InputError: the quota is no size.
        """
        from pimserve.cluster.service.limits import Limits  # noqa: PLC0415

        return Limits(self.max_running or os.cpu_count() or 1, self.max_queued, _bytes(self.disk_quota, "--disk-quota"))

    def check(self) -> CheckLimits:
        """What checking a scenario may take.

        Raises:
            InputError: its memory is no size.
        """
        from pimserve.cluster.service.limits import CheckLimits  # noqa: PLC0415

        return CheckLimits(self.check_time, _bytes(self.check_memory, "--check-memory") or 0)

    def places(self) -> AllowedPlaces:
        """Where it lets runs compute."""
        from pimserve.cluster.service.launch_options import USUAL_PLACES, AllowedPlaces  # noqa: PLC0415

        return AllowedPlaces(tuple(self.allow_on or USUAL_PLACES.on), self.max_hosts)


def serve_command(
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0: any free one.")] = LISTEN,
    data: Annotated[Path, typer.Option(help="Folder for the registry and the runs.")] = Path("pimserve-data"),
    traces: Annotated[
        Path | None,
        typer.Option(help="Folder below which scenarios may read traces; default: none.", show_default=False),
    ] = None,
    *,
    runs: _Runs,
    callers: _CallerAccess,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without a token or clients' certificates.")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Expose metrics of all runs for Prometheus.", show_default=False),
    ] = None,
    metrics_per_engine: PerEngine = False,
    scrapers: _ScraperAccess,
) -> None:
    """Serve simulations over gRPC, until SIGTERM or Ctrl-C."""
    quiet_grpc()
    from pimserve.cluster.base.rpc.security import TlsFiles, read_token  # noqa: PLC0415
    from pimserve.cluster.service.server import ServerOptions, serve  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    tls = TlsFiles(callers.tls_cert, callers.tls_key, callers.tls_client_ca)
    scrapers.check(metrics, metrics_per_engine)
    options = ServerOptions(
        listen=listen,
        data=data,
        limits=runs.limits(),
        traces=traces,
        token=read_token(callers.token_file),
        tls=tls,
        insecure=insecure,
        metrics=None
        if metrics is None
        else scrapers.endpoint(metrics, insecure=insecure, per_engine=metrics_per_engine, tls=tls),
        places=runs.places(),
        check=runs.check(),
        announce_metrics=lambda address: typer.echo(f"metrics on {address}"),
    )

    def announce(address: str) -> None:
        typer.echo(f"listening on {address}")
        sys.stdout.flush()

    serve(options, announce)


def _bytes(size: str | None, option: str) -> int | None:
    """Bytes of a size such as 20GB."""
    if size is None:
        return None
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", size.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise InputError(option, f"must be a size such as 20GB (got {size!r})")
    return int(float(match[1]) * units[match[2].upper()])
