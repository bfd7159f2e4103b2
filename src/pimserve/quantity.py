"""Numbers with units: a field whose name ends in a unit takes a plain number in it, or a string with any like unit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_SCALES: dict[str, dict[str, float]] = {
    "GB/s": {
        "B/s": 1e-9,
        "MB/s": 1e-3,
        "GB/s": 1.0,
        "TB/s": 1e3,
        "GiB/s": 2**30 / 1e9,
        "TiB/s": 2**40 / 1e9,
        "Gb/s": 0.125,
    },
    "GB": {"B": 1e-9, "MB": 1e-3, "GB": 1.0, "TB": 1e3, "MiB": 2**20 / 1e9, "GiB": 2**30 / 1e9, "TiB": 2**40 / 1e9},
    "TFLOP/s": {"GFLOP/s": 1e-3, "TFLOP/s": 1.0, "PFLOP/s": 1e3},
    "s": {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
    "us": {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6},
}
_QUANTITY = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z/]+)")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number in `unit`, within bounds, or text with a number and a unit of the same kind.

    Args:
        unit: of the number.
        most: the upper bound. It stands in the schema, as the lower one does.
        least: the lower bound.
        above: a lower bound that is itself not allowed, in place of `least`.
    """

    unit: str
    most: float
    least: float = 0.0
    above: float | None = None

    def parse(self, value: object) -> object:
        """What stands in a document, as a number where it is text.

        Raises:
            ValueError: it is no number in this unit, nor one with a like unit.
        """
        scales = _SCALES[self.unit]
        if isinstance(value, bool):
            raise ValueError(f"a number in {self.unit} is needed, or a string such as '1 {self.unit}'")  # noqa: TRY004 pydantic wants ValueError
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be a finite number")
        if not isinstance(value, str):
            return value
        match = _QUANTITY.fullmatch(value.strip())
        if match is None or match[2] not in scales:
            raise ValueError(
                f"'{value}' is not a number in {self.unit} nor a number with one of the units {', '.join(scales)}"
            )
        number = float(match[1]) * scales[match[2]]
        if not math.isfinite(number):
            raise ValueError(f"'{value}' is not finite")
        return number

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401 as pydantic has it
        least = self.least if self.above is None else None
        number = core_schema.float_schema(ge=least, gt=self.above, le=self.most, allow_inf_nan=False)
        return core_schema.no_info_before_validator_function(self.parse, number)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """What an editor may know: a number in `unit`, or text with one of the like units."""
        units = "|".join(re.escape(name) for name in _SCALES[self.unit])
        text = {"type": "string", "pattern": rf"^\s*\+?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*({units})\s*$"}
        text["x-units"] = ", ".join(_SCALES[self.unit])
        return {"anyOf": [handler(schema), text]}


MAX_TIME_S = 9_000_000.0
"""End of the clock in seconds: int64 picoseconds end at 9.22e6 s (about 106 days)."""

# Bounds of rates are generous; beyond them times leave the clock's range.
GigabytesPerSecond = Annotated[float, Quantity("GB/s", least=1e-6, most=1e12)]
Gigabytes = Annotated[float, Quantity("GB", least=1e-6, most=1e12)]
ReservedGigabytes = Annotated[float, Quantity("GB", most=1e12)]
Teraflops = Annotated[float, Quantity("TFLOP/s", least=1e-6, most=1e12)]
Seconds = Annotated[float, Quantity("s", most=MAX_TIME_S)]
PositiveSeconds = Annotated[float, Quantity("s", above=0, most=MAX_TIME_S)]
Microseconds = Annotated[float, Quantity("us", most=1e9)]
