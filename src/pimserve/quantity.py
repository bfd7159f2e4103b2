"""Numbers with units: a field whose name ends in a unit takes a plain number in it, or a string with any like unit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

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


def _parser(unit: str) -> Callable[[object], object]:
    scales = _SCALES[unit]

    def parse(value: object) -> object:
        if isinstance(value, bool):
            raise ValueError(f"a number in {unit} is needed, or a string such as '1 {unit}'")  # noqa: TRY004 pydantic wants ValueError
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be a finite number")
        if not isinstance(value, str):
            return value
        match = _QUANTITY.fullmatch(value.strip())
        if match is None or match[2] not in scales:
            raise ValueError(
                f"'{value}' is not a number in {unit} nor a number with one of the units {', '.join(scales)}"
            )
        number = float(match[1]) * scales[match[2]]
        if not math.isfinite(number):
            raise ValueError(f"'{value}' is not finite")
        return number

    return parse


def _schema(unit: str, *, zero: bool = False) -> WithJsonSchema:
    """What an editor may know: a number in `unit`, or text with one of the like units."""
    units = "|".join(re.escape(name) for name in _SCALES[unit])
    number = {"type": "number", "minimum": 0} if zero else {"type": "number", "exclusiveMinimum": 0}
    text = {"type": "string", "pattern": rf"^\s*\+?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*({units})\s*$"}
    text["x-units"] = ", ".join(_SCALES[unit])
    return WithJsonSchema({"anyOf": [number, text]})


_RATE = Field(ge=1e-6, le=1e12, allow_inf_nan=False)  # generous; beyond it times leave the clock's range
_POSITIVE = Field(gt=0, allow_inf_nan=False)
_NOT_NEGATIVE = Field(ge=0, allow_inf_nan=False)

GigabytesPerSecond = Annotated[float, BeforeValidator(_parser("GB/s")), _RATE, _schema("GB/s")]
Gigabytes = Annotated[float, BeforeValidator(_parser("GB")), _RATE, _schema("GB")]
ReservedGigabytes = Annotated[float, BeforeValidator(_parser("GB")), _NOT_NEGATIVE, _schema("GB", zero=True)]
Teraflops = Annotated[float, BeforeValidator(_parser("TFLOP/s")), _RATE, _schema("TFLOP/s")]
Seconds = Annotated[float, BeforeValidator(_parser("s")), _NOT_NEGATIVE, _schema("s", zero=True)]
PositiveSeconds = Annotated[float, BeforeValidator(_parser("s")), _POSITIVE, _schema("s")]
Microseconds = Annotated[
    float, BeforeValidator(_parser("us")), Field(ge=0, le=1e9, allow_inf_nan=False), _schema("us", zero=True)
]
