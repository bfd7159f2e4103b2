"""Numbers with units."""

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from pimserve.quantity import (
    Gigabytes,
    GigabytesPerSecond,
    Microseconds,
    PositiveSeconds,
    Seconds,
    Teraflops,
)


class Parts(BaseModel):
    model_config = ConfigDict(extra="forbid")

    speed: GigabytesPerSecond = 1.0
    size: Gigabytes = 1.0
    peak: Teraflops = 1.0
    wait: Seconds = 0.0
    limit: PositiveSeconds = 1.0
    hop: Microseconds = 0.0


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("speed", 450, 450.0),
        ("speed", "450 GB/s", 450.0),
        ("speed", "3.352TB/s", 3352.0),
        ("speed", "400 Gb/s", 50.0),
        ("speed", "1 GiB/s", 1.073741824),
        ("size", "80 GiB", 85.89934592),
        ("size", "16e3 MB", 16.0),
        ("peak", "1.9789 PFLOP/s", 1978.9),
        ("wait", "1.5 ms", 0.0015),
        ("wait", "2 min", 120.0),
        ("wait", 0, 0.0),
        ("limit", " 1 h ", 3600.0),
        ("hop", "800 ns", 0.8),
    ],
)
def test_numbers_with_like_units_are_converted(field: str, text: Any, value: float) -> None:
    assert getattr(Parts(**{field: text}), field) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("field", "text", "says"),
    [
        ("speed", "450", "units B/s, MB/s, GB/s"),
        ("speed", "450 GB", "nor a number with one of the units"),
        ("speed", "450 gb/s", "nor a number with one of the units"),  # bits or bytes: the case tells
        ("speed", "fast", "not a number in GB/s"),
        ("speed", "1.2.3 GB/s", "1.2.3"),
        ("speed", "1e999 GB/s", "not finite"),
        ("speed", float("nan"), "finite"),
        ("speed", float("inf"), "finite"),
        ("speed", True, "a number in GB/s is needed"),
        ("speed", None, "number"),
        ("speed", 0, "greater than or equal to 0.000001"),
        ("speed", "-1 GB/s", "greater than or equal to 0.000001"),
        ("wait", "-1 s", "greater than or equal to 0"),
        ("limit", 0, "greater than 0"),
        ("hop", "1 min", "units ns, us, ms, s"),
    ],
)
def test_anything_else_is_refused_and_says_what_is_allowed(field: str, text: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Parts(**{field: text})
