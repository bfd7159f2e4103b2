"""Every size that a document may give has an upper bound, and what is at the bounds is checked in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import BaseModel

from pimserve.cluster.scenario.document import Scenario
from pimserve.device_models.aimc.aimc_spec import AimcSpec
from pimserve.device_models.duplex import DuplexSpec
from pimserve.device_models.gpu_spec import GpuSpec
from pimserve.device_models.kernels import Kernels
from pimserve.device_models.model import ModelSpec

Schema = Mapping[str, Any]
DOCUMENTS: tuple[type[BaseModel], ...] = (Scenario, ModelSpec, GpuSpec, DuplexSpec, AimcSpec, Kernels)


def numbers(schema: Schema, definitions: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """(path, schema) of every number below a schema."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from numbers(definitions[name], definitions, path)
    if schema.get("type") in {"integer", "number"}:
        yield path, schema
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for option in schema.get(key, ()):
            yield from numbers(option, definitions, path)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield from numbers(schema[key], definitions, f"{path}.*")
    for key, value in schema.get("properties", {}).items():
        yield from numbers(value, definitions, f"{path}.{key}")


def numbers_of(document: type[BaseModel]) -> list[tuple[str, Schema]]:
    schema = document.model_json_schema()
    return list(numbers(schema, schema.get("$defs", {}), document.__name__))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.__name__)
def test_every_number_has_an_upper_bound(document: type[BaseModel]) -> None:
    found = numbers_of(document)
    assert len(found) > 10
    bounded = {"maximum", "exclusiveMaximum", "const", "enum"}
    assert [path for path, schema in found if not bounded & schema.keys()] == []


def test_the_walk_sees_numbers_wherever_they_stand() -> None:
    class Inner(BaseModel):
        size: int

    class Outer(BaseModel):
        plain: float
        optional: int | None = None
        listed: tuple[tuple[int, float], ...] = ()
        mapped: dict[str, Inner] = {}

    paths = {path for path, _ in numbers_of(Outer)}
    assert paths == {"Outer.plain", "Outer.optional", "Outer.listed.*", "Outer.mapped.*.size"}
