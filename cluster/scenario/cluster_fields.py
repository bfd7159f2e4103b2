"""Types of fields that several sections of a scenario have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

Count = Annotated[int, Field(gt=0, le=4096)]


def is_auto(value: object) -> str | None:
    """Tag of a number, which has no place in the paths of errors, or of auto."""
    return "" if not isinstance(value, str) else "auto" if value == "auto" else None


Devices = Annotated[
    Annotated[Count, Tag("")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(is_auto, custom_error_type="devices", custom_error_message="must be a whole number, or auto"),
]


def _name_or_mapping(value: object) -> object:
    if not isinstance(value, str | dict):
        raise ValueError("must be a name of the catalogue, a YAML file, or a mapping of keys to values")  # noqa: TRY004 pydantic wants ValueError
    return value


Entry = Annotated[str | dict[str, Any], BeforeValidator(_name_or_mapping)]
