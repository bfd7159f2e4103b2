"""Commands that show what may be written in a scenario: models, devices, the schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pimserve.cluster.cli.options import AsJson
from pimserve.cluster.cli.output import print_json, print_page

if TYPE_CHECKING:
    from rich.console import RenderableType

EntryName = Annotated[
    str | None, typer.Argument(help="Show this one in full; a YAML file shows one of your own.", show_default=False)
]


def models_command(name: EntryName = None, as_json: AsJson = False) -> None:
    """List the models of the catalogue, or show one with what follows from its shapes."""
    from pimserve.cluster.cli.listing import describe_model, model_list  # noqa: PLC0415
    from pimserve.device_models.catalogue import model_names  # noqa: PLC0415

    _print_catalogue(name, as_json, model_names, describe_model, model_list)


def devices_command(name: EntryName = None, as_json: AsJson = False) -> None:
    """List the devices of the catalogue, or show one with its key figures."""
    from pimserve.cluster.cli.listing import describe_device, device_list  # noqa: PLC0415
    from pimserve.device_models.catalogue import device_names  # noqa: PLC0415

    _print_catalogue(name, as_json, device_names, describe_device, device_list)


def schema_command(
    summary: Annotated[bool, typer.Option("--summary", help="Of summary.json, instead of a scenario.")] = False,
) -> None:
    """Print the JSON Schema of a scenario, or of what a run writes."""
    if summary:
        from pimserve.cluster.run.summary_schema import summary_schema  # noqa: PLC0415

        print_json(summary_schema())
        return
    from pimserve.cluster.scenario.document import json_schema  # noqa: PLC0415

    print_json(json_schema())


def _print_catalogue(
    name: str | None,
    as_json: bool,
    names: Callable[[], list[str]],
    describe: Callable[[str], dict[str, Any]],
    table: Callable[[list[dict[str, Any]]], RenderableType],
) -> None:
    from pimserve.cluster.cli.listing import entry_page  # noqa: PLC0415

    if name is not None:
        entry = describe(name)
        print_json(entry) if as_json else print_page(entry_page(entry))
        return
    entries = [describe(known) for known in names()]
    print_json(entries) if as_json else print_page(table(entries))
