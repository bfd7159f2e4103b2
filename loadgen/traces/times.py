"""How traces write times, and what that is in picoseconds, exactly."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.loadgen.spec import MAX_TIME_S, PS_PER_S

Stamps = NDArray[Any]  # of bytes
Times = tuple[IntArray, int]
"""Times in ps after the first one, and the first one (which may exceed 64 bit) in ps after the clock's zero."""

TIME_LIMIT_PS = int(MAX_TIME_S) * PS_PER_S
OUTSIDE_PS = TIME_LIMIT_PS + 1
"""Where rows are put that lie beyond the limit, which are not selected: before all others (-) or behind them."""


def since_zero(times: Times) -> IntArray | None:
    """(n,) ps after the clock's zero; None where one is beyond what the simulated clock shows."""
    after_ps, first_ps = times
    return after_ps + first_ps if first_ps + int(after_ps.max()) <= TIME_LIMIT_PS else None


@dataclass(frozen=True)
class Clock:
    """A way to write times.

    `read`: one stamp to ps after the clock's zero (ValueError or OverflowError if it is none). `read_all`: many at
    once; None where that cannot be done or one is bad. `from_first`: the trace's time is 0 at its first row, whatever
    that row says; else it is what the rows say. `allowed`: for messages.
    """

    read: Callable[[str], int]
    read_all: Callable[[Stamps], Times | None]
    allowed: str
    from_first: bool = False


_NUMBER = re.compile(r"\+?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_LONGEST_WHOLE = 15  # digits before the point that fit 64 bits in any case


def _read_number(stamp: str, ps: int) -> int:
    if not _NUMBER.fullmatch(stamp) or not math.isfinite(float(stamp)):
        raise ValueError(stamp)
    return round(Decimal(stamp) * ps)


def _read_numbers(stamps: Stamps, ps: int) -> Times | None:
    """Numbers of a unit of `ps` picoseconds; a few that are not plain digits and a point are read one by one."""
    digits = len(str(ps)) - 1  # after the point, up to a picosecond
    stripped: Any = np.char.strip(stamps)
    whole, point, fraction = np.char.partition(stripped, b".").T
    plain = np.char.isdigit(whole) & (np.char.str_len(whole) <= _LONGEST_WHOLE)
    plain &= (np.char.isdigit(fraction) & (np.char.str_len(fraction) <= digits)) | (point == b"")
    units = np.where(plain, whole, b"0").astype(np.int64)
    rest = np.char.ljust(np.where(plain, fraction, b""), digits, b"0").astype(np.int64)
    odd = np.flatnonzero(~plain)
    for i in odd.tolist():
        units[i], rest[i] = divmod(_read_number(stamps[i].decode().strip(), ps), ps)
    after = units - units[0]
    if np.abs(after).max() > TIME_LIMIT_PS // ps:
        return None
    return after * ps + (rest - rest[0]), int(units[0]) * ps + int(rest[0])


def _number_clock(unit: str, ps: int) -> Clock:
    allowed = f"{unit} are needed, a finite number >= 0"
    return Clock(partial(_read_number, ps=ps), partial(_read_numbers, ps=ps), allowed)


_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,12}))?(Z|[-+]\d\d:?\d\d)?", re.ASCII)
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def _read_date(stamp: str) -> int:
    match = _STAMP.fullmatch(stamp)
    if not match:
        raise ValueError(stamp)
    since = datetime.fromisoformat(match[1] + (match[3] or "Z")) - _EPOCH
    return (since.days * 86400 + since.seconds) * PS_PER_S + int((match[2] or "0").ljust(12, "0"))


def _read_dates(stamps: Stamps) -> Times | None:
    text: NDArray[np.str_] = np.char.strip(stamps).astype(str)
    for mark, offset in (("Z", ""), ("+", "00:00")):  # other zones are read one by one
        parts: Any = np.char.partition(text, mark)
        text, marked, zone = parts.T
        if np.any(zone[marked != ""] != offset):
            return None
    size = np.char.str_len(text)
    if size.min() < 19 or size.max() > 29 or not np.all((text >= "1700") & (text < "2200")):
        return None  # nanoseconds since 1970 wrap around outside these years
    nanoseconds = text.astype("datetime64[ns]").astype(np.int64)
    after = nanoseconds - nanoseconds[0]
    return (after * 1000, int(nanoseconds[0]) * 1000) if np.abs(after).max() <= TIME_LIMIT_PS // 1000 else None


CLOCKS = {
    "s": _number_clock("seconds", PS_PER_S),
    "ms": _number_clock("milliseconds", PS_PER_S // 10**3),
    "us": _number_clock("microseconds", PS_PER_S // 10**6),
    "ns": _number_clock("nanoseconds", PS_PER_S // 10**9),
    "date": Clock(
        _read_date,
        _read_dates,
        "YYYY-MM-DD HH:MM:SS is needed, if need be with .fff (12 digits at most) and Z or +HH:MM (else it is UTC)",
        from_first=True,
    ),
}
"""What a column of times may hold, by its unit."""
