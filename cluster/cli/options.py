"""Options that several commands have: single ones as types, those that belong together as dataclasses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from pimserve.errors import InputError

if TYPE_CHECKING:
    from pimserve.cluster.base.rpc.security import TlsFiles
    from pimserve.cluster.metrics.endpoint import EndpointOptions

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
ScenarioFile = Annotated[
    Path | None,
    typer.Argument(help="Scenario (YAML); without it: Mixtral-8x7B on 4 Duplex devices.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a key, such as cluster.replicas=2; repeatable."),
]
PerEngine = Annotated[
    bool,
    typer.Option(
        "--metrics-per-engine",
        help="Histograms of every engine (replica) by itself; above 8 engines they are merged otherwise.",
    ),
]
_NONE = inspect.Parameter.empty


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: a parameter whose type is a dataclass stands for one option per field.

    The command line sees the fields, in the place of the group; the command is called with the group. Groups may have
    groups as fields.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters = inspect.signature(command).parameters

    @wraps(command)
    def run(**values: Any) -> None:  # noqa: ANN401 options have many types
        command(**{name: _collected(name, hints[name], values) for name in parameters})

    options = [option for name, value in parameters.items() for option in _options(name, hints[name], value.default)]
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _options(name: str, hint: Any, default: Any) -> Iterator[inspect.Parameter]:  # noqa: ANN401 any type, and its value
    """The option of a parameter, or those of its group."""
    if not is_dataclass(hint):
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        return
    hints = get_type_hints(hint, include_extras=True)
    for field in fields(hint):
        yield from _options(field.name, hints[field.name], _NONE if field.default is MISSING else field.default)


def _collected(name: str, hint: Any, values: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The value of a parameter, or its group with all its values."""
    if not isinstance(hint, type) or not is_dataclass(hint):
        return values[name]
    hints = get_type_hints(hint, include_extras=True)
    return hint(**{field.name: _collected(field.name, hints[field.name], values) for field in fields(hint)})


@dataclass(frozen=True)
class ScraperAccess:
    """Who may read metrics."""

    metrics_token_file: Annotated[
        Path | None, typer.Option(help="File with the token that scrapers need.", show_default=False)
    ] = None
    metrics_tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate of the endpoint of metrics (PEM).", show_default=False)
    ] = None
    metrics_tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).", show_default=False)] = None
    metrics_tls_client_ca: Annotated[
        Path | None, typer.Option(help="Take only scrapers with a certificate of this authority.", show_default=False)
    ] = None

    def check(self, address: str | None, *others: object) -> None:
        """Refuse options of an endpoint that has no address; `others`: more that need one.

        Raises:
            InputError: so it is.
        """
        if address is None and any((*others, *(getattr(self, field.name) for field in fields(self)))):
            raise InputError("--metrics", "is missing: it says where, and the other options for metrics need it")

    def endpoint(
        self, address: str, *, insecure: bool, per_engine: bool, tls: TlsFiles | None = None
    ) -> EndpointOptions:
        """Where and to whom metrics are exposed.

        Args:
            address: HOST:PORT.
            insecure: whether whoever asks may read them from other machines.
            per_engine: whether histograms are of each engine, however many there are.
            tls: of an endpoint that has no files of its own.

        Raises:
            InputError: the token cannot be read.
        """
        from pimserve.cluster.base.rpc.security import NO_TLS, TlsFiles, token_of  # noqa: PLC0415
        from pimserve.cluster.metrics.endpoint import EndpointOptions  # noqa: PLC0415

        own = TlsFiles(self.metrics_tls_cert, self.metrics_tls_key, self.metrics_tls_client_ca)
        used = tls if tls is not None and own == NO_TLS else own
        return EndpointOptions(address, token_of(self.metrics_token_file), used, insecure, per_engine)
