"""The reference page of summary.json, from its schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tables import table

from pimserve.cluster.run.summary_schema import summary_schema

Schema = Mapping[str, Any]

_HEAD = """# Summary reference

Every run writes `summary.json` into its results folder; `pimserve run --json` prints the same. Times are in simulated
seconds but those of `simulator`, energies in joules, shares from 0 to 1. With a warm-up or cool-down, latencies,
throughput and SLO figures are of the measured `window`; all else is of the whole run. What is null was not known, or
had nothing to be made of. `pimserve schema --summary` prints this as JSON Schema.

Keys in angle brackets stand for names that hang on the run, such as units of devices. Fields with a question mark are
there only where they apply.
"""


def page() -> str:
    """The page."""
    schema = summary_schema()
    rows = [
        [f"`{path}`", f"`{unit}`" if unit else "", meaning] for path, unit, meaning in _fields(schema, schema["$defs"])
    ]
    return f"{_HEAD}\n{table(['field', 'unit', 'meaning'], rows)}"


def _fields(schema: Schema, kinds: Schema, above: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in schema["properties"].items():
        absent = "" if name in schema.get("required", ()) else "?"
        yield from _field(f"{above}{name}{absent}", field, kinds)


def _field(path: str, field: Schema, kinds: Schema) -> Iterator[tuple[str, str, str]]:
    meaning, unit = field.get("description", ""), field.get("unit", "")
    inner = _resolved(field, kinds)
    if "properties" in inner:
        yield path, unit, meaning
        yield from _fields(inner, kinds, f"{path}.")
        return
    items, values = inner.get("items"), inner.get("additionalProperties")
    if isinstance(values, Mapping) and values:
        entry = _resolved(values, kinds)
        yield path, values.get("unit", unit), meaning
        if "properties" in entry:
            yield from _fields(entry, kinds, f"{path}.<name>.")
        return
    yield path, unit, meaning
    if isinstance(items, Mapping) and "properties" in (entry := _resolved(items, kinds)):
        yield from _fields(entry, kinds, f"{path}[].")


def _resolved(field: Schema, kinds: Schema) -> Schema:
    """What a reference, or the alternative that is not null, points to."""
    for option in field.get("anyOf", ()):
        if option.get("type") != "null":
            return _resolved(option, kinds)
    if "$ref" in field:
        kind: Schema = kinds[field["$ref"].rpartition("/")[2]]
        return kind
    return field
