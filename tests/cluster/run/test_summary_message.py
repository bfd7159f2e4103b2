"""The summary as a message: generated from the schema, with all figures and their units."""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from pimserve.cluster.run.summary_schema import summary_schema
from pimserve.v1 import summary_pb2

PROTOS = Path(__file__).parents[3] / "protos"
ENDINGS = {"J": "joules", "hand-overs": "handovers"}  # else the unit itself


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("summary_proto", PROTOS / "summary_proto.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_message_is_that_of_the_schema(generator: ModuleType) -> None:
    current = generator.FILE.read_text(encoding="utf-8")
    assert generator.proto(current) == current, "run make protos"


def test_fields_keep_their_numbers_and_new_ones_get_others(generator: ModuleType) -> None:
    current = generator.FILE.read_text(encoding="utf-8")
    earlier = "".join(line for line in current.splitlines(keepends=True) if " whole_run = 4;" not in line)
    earlier = earlier.replace(" start_s = 1;", " start_s = 7;", 1)
    assert " start_s = 7;" in generator.proto(earlier)
    assert " whole_run = 8;" in generator.proto(earlier)


def figures_of(schema: Mapping[str, Any], kinds: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """(path, unit) of every figure of a JSON Schema."""
    for option in (schema, *schema.get("anyOf", ())):
        if "unit" in option:
            yield path, option["unit"]
            return
        if "$ref" in option:
            option = kinds[option["$ref"].rpartition("/")[2]]  # noqa: PLW2901
        for key, field in option.get("properties", {}).items():
            yield from figures_of(field, kinds, f"{path}.{key}" if path else key)
        for inner in ("items", "additionalProperties"):
            if isinstance(option.get(inner), Mapping):
                yield from figures_of(option[inner], kinds, path)


def fields_of(message: Descriptor, path: str = "") -> Iterator[str]:
    """Paths of all fields of a message, and of those below them."""
    for field in message.fields:
        place = f"{path}.{field.name}" if path else field.name
        yield place
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            inner = inner.fields_by_name["value"].message_type
        if inner is not None and inner.full_name.startswith("pimserve."):
            yield from fields_of(inner, place)


def test_every_figure_is_in_the_message_with_its_unit_in_its_name() -> None:
    schema = summary_schema()
    figures = list(figures_of(schema, schema["$defs"]))
    assert len(figures) > 150
    fields = set(fields_of(summary_pb2.Summary.DESCRIPTOR))
    named = {"s": "_s", "J": "joules", "tokens": "tokens", "GB": "_gb", "MB": "_mb", "W": "_w", "mm2": "_mm2"}
    for path, unit in figures:
        above, _, key = path.rpartition(".")
        places = {f"{above}.{name}" if above else name for name in (key, f"{key}_{ENDINGS.get(unit, unit)}")} & fields
        assert len(places) == 1, path
        assert named.get(unit, "") in places.pop().rpartition(".")[2], path
