"""What sections of the summary are made of: figures, with units and meanings, and text."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


def figure(unit: str, meaning: str) -> Any:  # noqa: ANN401 as pydantic's Field
    """A field that is a figure, in that unit."""
    return Field(description=meaning, json_schema_extra={"unit": unit})


def text(meaning: str) -> Any:  # noqa: ANN401 as pydantic's Field
    """A field that is no figure."""
    return Field(description=meaning)


class Section(BaseModel):
    """A part of the summary."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)

    def document(self) -> dict[str, Any]:
        """As JSON holds it; parts that do not apply to the run are absent."""
        return self.model_dump(exclude_unset=True)

    def set_parts(self) -> dict[str, Any]:
        """Its parts, by name, without those that do not apply."""
        return {name: part for name, part in self if name in self.model_fields_set}


Share = Annotated[float | int | None, figure("1", "share, from 0 to 1")]
Joules = Annotated[float | None, figure("J", "energy")]
AskedPercentiles = dict[str, Annotated[float | None, figure("s", "percentile")]]
