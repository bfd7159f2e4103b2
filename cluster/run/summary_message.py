"""The summary as a message of the wire, and back: fields have the schema's names, with their unit where it is missing.

`protos/pimserve/v1/summary.proto` is generated from the schema (`protos/summary_proto.py`), so a figure is listed once.
A name that hangs on the run and whose figure is null is left out of its map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from pydantic.fields import FieldInfo

from pimserve.cluster.run.summary_schema import Summary
from pimserve.scheduler.sections import Section
from pimserve.v1 import summary_pb2

# Units that a field's name ends with where it does not have them; the names of all others have them by themselves.
_ENDINGS = {
    "s": "s",
    "J": "joules",
    "tokens": "tokens",
    "requests": "requests",
    "samples": "samples",
    "rows": "rows",
    "hand-overs": "handovers",
}


@dataclass(frozen=True, slots=True)
class MessageField:
    """A field of a section, as its message has it.

    Args:
        key: in the section.
        name: in the message.
        form: one value, a list of these, or a map of these by name.
        kind: of a value: a scalar, a section, or Any for whatever JSON holds.
        nullable: it may be null, or absent.
        optional: it may be absent.
        unit: of a figure; empty for others.
        meaning: in words.
    """

    key: str
    name: str
    form: Literal["one", "list", "map"]
    kind: Any
    nullable: bool
    optional: bool
    unit: str
    meaning: str


def message_fields(section: type[Section]) -> Iterator[MessageField]:
    """All fields of a section, in their order."""
    for key, info in section.model_fields.items():
        kind, nullable = _without_none(info.annotation)
        form: Literal["one", "list", "map"] = "one"
        unit = _unit(info)
        if get_origin(kind) is list:
            form, kind = "list", get_args(kind)[0]
        elif get_origin(kind) is dict:
            value = get_args(kind)[1]
            if value is not Any:
                form, kind = "map", value
                unit = unit or next(filter(None, map(_unit, getattr(value, "__metadata__", ()))), "")
            else:
                kind = Any
        kind = _without_none(kind)[0]
        yield MessageField(
            key, _name(key, unit), form, kind, nullable, not info.is_required(), unit, info.description or ""
        )


def message_of(summary: Summary) -> summary_pb2.Summary:
    """The message of a summary."""
    message = summary_pb2.Summary()
    _fill(message, summary)
    return message


def summary_of_message(message: summary_pb2.Summary) -> Summary:
    """The summary of a message.

    Raises:
        pydantic.ValidationError: it lacks what every run has.
    """
    return Summary.model_validate(_read(message, Summary))


def _fill(message: Message, section: Section) -> None:
    for field in message_fields(type(section)):
        value = getattr(section, field.key)
        if value is None:
            continue
        target = getattr(message, field.name)
        if isinstance(target, Message):
            target.SetInParent()
        if field.kind is Any:
            target.update(value)
        elif field.form == "list" and _is_section(field.kind):
            for entry in value:
                _fill(target.add(), entry)
        elif field.form == "list":
            target.extend(value)
        elif field.form == "map" and _is_section(field.kind):
            for name, entry in value.items():
                _fill(target[name], entry)
        elif field.form == "map":
            target.update({name: entry for name, entry in value.items() if entry is not None})
        elif _is_section(field.kind):
            _fill(target, value)
        else:
            setattr(message, field.name, value)


def _read(message: Message, section: type[Section]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for field in message_fields(section):
        value = getattr(message, field.name)
        if message.DESCRIPTOR.fields_by_name[field.name].has_presence and not message.HasField(field.name):
            if not field.optional:
                document[field.key] = None
        elif field.form != "one" and field.optional and not value:
            continue  # absent, as lists and maps cannot tell from empty
        elif field.kind is Any:
            document[field.key] = _plain(MessageToDict(value)) if isinstance(value, Struct) else value
        elif field.form == "list":
            document[field.key] = [_read(entry, field.kind) if _is_section(field.kind) else entry for entry in value]
        elif field.form == "map":
            sections = _is_section(field.kind)
            document[field.key] = {name: _read(value[name], field.kind) if sections else value[name] for name in value}
        else:
            document[field.key] = _read(value, field.kind) if _is_section(field.kind) else value
    return document


def _plain(value: Any) -> Any:  # noqa: ANN401 whatever JSON holds
    """The same with whole numbers as such, which a Struct does not know."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_none(kind: Any) -> tuple[Any, bool]:  # noqa: ANN401 a type
    """A type without its annotations and None, and whether it had that; of whole and other numbers, other ones."""
    if get_origin(kind) is Annotated:
        return _without_none(get_args(kind)[0])
    if not isinstance(kind, UnionType):
        return kind, False
    kinds = [option for option in get_args(kind) if option is not type(None)]
    return (float if float in kinds else kinds[0]), type(None) in get_args(kind)


def _is_section(kind: Any) -> bool:  # noqa: ANN401 a type
    return isinstance(kind, type) and issubclass(kind, Section)


def _unit(info: Any) -> str:  # noqa: ANN401 what stands beside a type
    extra = info.json_schema_extra if isinstance(info, FieldInfo) else None
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def _name(key: str, unit: str) -> str:
    ending = _ENDINGS.get(unit)
    return key if ending is None or ending in key.split("_") else f"{key}_{ending}"
