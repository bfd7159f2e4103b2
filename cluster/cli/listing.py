"""The catalogue as listed: key figures and sources of models and devices, as data and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pimserve.cluster.base.figures import ABSENT, count, figure
from pimserve.cluster.cli.terminal import headed_table
from pimserve.cluster.scenario.descriptions import is_file, read_description
from pimserve.device_models.catalogue import kernel_names, load_kernel_document, model_of
from pimserve.device_models.registry import load_device

Entry = Mapping[str, Any]


def describe_model(name: str) -> dict[str, Any]:
    """A model of the catalogue or of a file: its shapes, and what follows from them.

    Raises:
        InputError: no such model.
    """
    model = model_of(_document(name, "model"))
    derived = {
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "weight_bytes": model.weight_bytes,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "kv_window_bytes_per_request": model.kv_window_bytes_per_request,
        "decode_flops_per_token_at_1000": model.flops_per_token(1000),
        "moe_layers": model.moe_layers,
        "dense_layers": model.dense_layers,
    }
    return {**model.model_dump(mode="json", exclude_none=True), "derived": derived}


def describe_device(name: str) -> dict[str, Any]:
    """A device of the catalogue or of a file: its figures, its units, and those that all kinds have under one name.

    Raises:
        InputError: no such device.
    """
    device = load_device(_document(name, "device"))
    derived = {"units": list(device.units), **device.key_figures}
    if device.area_mm2 is not None:
        derived["area_mm2"] = device.area_mm2
    kernels = [load_kernel_document(name) for name in kernel_names()] if device.spec.kernels else []
    derived["measured_with"] = [
        f"{kernel['backend']} {kernel['version']}" for kernel in kernels if kernel["gpu"] == device.spec.kernels
    ]
    return {**device.spec.model_dump(mode="json", exclude_none=True), "derived": derived}


def _document(name: str, where: str) -> str | dict[str, Any]:
    return read_description(name, where, [Path()]) if is_file(name) else name


def model_list(entries: Sequence[Entry]) -> RenderableType:
    """Models, one a row, and their sources."""
    table = headed_table(
        "model", "parameters", "active", "weights", "KV/token", "layers", "experts", "context", wrap=True
    )
    for entry in entries:
        derived, moe = entry["derived"], entry.get("moe")
        table.add_row(
            entry["name"],
            f"{figure(derived['parameters'] / 1e9)} B",
            f"{figure(derived['active_parameters'] / 1e9)} B",
            f"{figure(derived['weight_bytes'] / 1e9)} GB",
            f"{figure(derived['kv_bytes_per_token'] / 1e3)} kB",
            str(entry["layers"]),
            f"{moe['top_k']}/{moe['experts']}" if moe else ABSENT,
            count(entry["max_model_len_tokens"]),
        )
    return Group(table, "", _sources(entries))


def device_list(entries: Sequence[Entry]) -> RenderableType:
    """Devices, one a row, and their sources."""
    columns = ("silicon\nmm2", "passive\nW", "16-bit\nTFLOP/s", "memory", "memory\nGB/s", "link\nGB/s")
    table = headed_table("device", "kind", *columns, left=2, wrap=True)
    for entry in entries:
        derived = entry["derived"]
        table.add_row(
            entry["name"],
            entry["kind"],
            figure(derived.get("area_mm2")),
            figure(derived.get("passive_w")),
            figure(derived.get("tflop_per_s_16_bit")),
            f"{figure(derived['memory_gb'])} GB",
            figure(derived.get("memory_gb_per_s")),
            figure(entry["link_gb_per_s"]),
        )
    return Group(table, "", _sources(entries))


def entry_page(entry: Entry) -> RenderableType:
    """One entry in full: every figure, what is derived from them, and the sources."""
    figures = {key: value for key, value in entry.items() if key not in {"sources", "derived"}}
    return Group(
        Text(": ".join(filter(None, (entry["name"], entry["title"]))), style="bold"),
        _keys_and_values(figures),
        Text("derived", style="bold"),
        _keys_and_values(entry["derived"]),
        Text("sources", style="bold"),
        *(_indented(source, 2) for source in entry["sources"] or ("none given",)),
    )


def _keys_and_values(document: Entry) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in _flattened(document):
        table.add_row(Text(key), Text(value))
    return _indented(table, 2)


def _sources(entries: Sequence[Entry]) -> RenderableType:
    lines = [line for entry in entries for line in (Text(entry["name"]), _indented("; ".join(entry["sources"]), 4))]
    return Group(Text("sources", style="bold"), *lines)


def _indented(what: str | Table, indent: int) -> RenderableType:
    return Padding(Text(what) if isinstance(what, str) else what, (0, 0, 0, indent))


def _flattened(document: Entry, above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and their values as text."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{above}{key}.")
        elif isinstance(value, bool):
            yield above + key, "yes" if value else "no"
        elif value is None:
            yield above + key, ABSENT
        elif isinstance(value, list):
            yield above + key, ", ".join(str(item) for item in value)
        elif isinstance(value, str):
            yield above + key, value
        else:
            yield above + key, f"{value:,.15g}"
