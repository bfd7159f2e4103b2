"""The options of commands that talk to a server, and the connection that they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pimserve.cluster.cli.output import quiet_grpc

if TYPE_CHECKING:
    from pimserve.cluster.client import Client

LISTEN = "127.0.0.1:50051"


@dataclass(frozen=True)
class Connection:
    """Where a server is, and how to reach it."""

    server: Annotated[
        str, typer.Option(envvar="PIMSERVE_SERVER", metavar="HOST:PORT", help="Where the server listens.")
    ] = LISTEN
    token_file: Annotated[
        Path | None, typer.Option(help="File with the server's token; default: $PIMSERVE_TOKEN.", show_default=False)
    ] = None
    ca: Annotated[
        Path | None,
        typer.Option(help="Certificate of the authority that signed the server's (TLS).", show_default=False),
    ] = None
    cert: Annotated[Path | None, typer.Option(help="The client's certificate (mTLS).", show_default=False)] = None
    key: Annotated[Path | None, typer.Option(help="The client's private key (mTLS).", show_default=False)] = None
    timeout: Annotated[float, typer.Option(min=0.001, max=3600, help="Seconds that a call may take.")] = 30.0

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of that server.

        Raises:
            InputError: the token or a file of TLS cannot be read.
        """
        quiet_grpc()
        from pimserve.cluster.base.rpc.security import read_token  # noqa: PLC0415
        from pimserve.cluster.client import Client, TlsFiles  # noqa: PLC0415

        tls = TlsFiles(cert=self.cert, key=self.key, ca=self.ca)
        with Client(self.server, token=read_token(self.token_file), tls=tls, timeout_s=self.timeout) as client:
            yield client
