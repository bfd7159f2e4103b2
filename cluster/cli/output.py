"""What commands print on standard output. What is heavy is imported when something is printed."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType


def print_page(what: RenderableType) -> None:
    """Print tables and text."""
    from pimserve.cluster.cli.terminal import write  # noqa: PLC0415

    write(what, sys.stdout)


def print_json(document: object, indent: int | None = 2) -> None:
    """Print JSON; on one line where `indent` is None. Dataclasses become objects, times ISO 8601."""
    typer.echo(json.dumps(document, indent=indent, allow_nan=False, default=_plain))


def _plain(value: Any) -> object:  # noqa: ANN401 what JSON has no notion of
    return value.isoformat() if hasattr(value, "isoformat") else asdict(value)


def quiet_grpc() -> None:
    """Keep gRPC from writing to standard error what we say ourselves; before it is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
