"""Trace readers: request times and lengths from CSV files, plain or gzip-compressed.

A reader parses a whole file with numpy. When anything looks odd it parses again row by row, which is slow but
decides, and finds the line to blame.
"""

import gzip
import hashlib
import io
import math
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pimserve.errors import InputError
from pimserve.loadgen.spec import MAX_REQUESTS, MAX_TIME_S, MAX_TOKENS, PS_PER_S, Spec
from pimserve.quantity import PositiveSeconds, Seconds

IntArray = NDArray[np.int64]
TIME_LIMIT_PS = int(MAX_TIME_S) * PS_PER_S
TRACES_ENV = "PIMSERVE_TRACES"
_DEFAULT_TRACES = "../shared/traces"


class TraceSpec(Spec):
    """A recorded trace to replay."""

    format: Literal["azure", "csv"] = Field(
        description="azure: TIMESTAMP,ContextTokens,GeneratedTokens as published for Azure LLM inference 2023 (times "
        "count from the first row); csv: arrival_s,input_tokens,output_tokens (times count from 0). Plain or gzip"
    )
    path: str = Field(
        min_length=1, description=f"file; a relative path is tried from the current directory, then from ${TRACES_ENV}"
    )
    start_s: Seconds = Field(0.0, le=MAX_TIME_S, description="skip rows before this trace time, s; it becomes 0")
    end_s: PositiveSeconds | None = Field(None, le=MAX_TIME_S, description="skip rows from this trace time on, s")
    time_scale: float | None = Field(
        None, gt=0, le=1e6, description="multiplies arrival times; 0.5 doubles the rate. Not with target_rate_per_s"
    )
    target_rate_per_s: float | None = Field(
        None, gt=0, le=1e9, description="stretch or compress time to this mean rate, requests per second"
    )
    max_requests: int | None = Field(None, ge=1, le=MAX_REQUESTS, description="keep at most this many rows")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"end_s ({self.end_s}) must be greater than start_s ({self.start_s})")
        if self.time_scale is not None and self.target_rate_per_s is not None:
            raise ValueError("give time_scale or target_rate_per_s, not both")
        return self


def parse_trace_argument(text: str) -> TraceSpec:
    """Read the short form FORMAT:PATH, e.g. "azure:conv.csv.gz". Raises InputError naming the formats."""
    kind, colon, path = text.partition(":")
    if not colon or not path or kind not in TRACE_READERS:
        raise InputError("--trace", f"{text!r} is not FORMAT:PATH with FORMAT one of {', '.join(TRACE_READERS)}")
    return TraceSpec.model_validate({"format": kind, "path": path})


@dataclass(frozen=True)
class Trace:
    """Rows of a trace in file order: arrival (ps, ascending), lengths (tokens), and what became of the rows."""

    arrival_ps: IntArray
    input_tokens: IntArray
    output_tokens: IntArray
    rows_read: int
    rows_dropped: dict[str, int]


@dataclass(frozen=True)
class _Format:
    """A CSV format: its columns in canonical order (time, input, output), and how time is written."""

    columns: tuple[str, str, str]
    any_order: bool
    time_dtype: str
    time_to_ps: Callable[[Any], IntArray | None]
    time_text_to_ps: Callable[[str], int]
    time_allowed: str
    relative: bool


def load_trace(spec: TraceSpec) -> Trace:
    """Read, select and rescale a trace. Raises InputError with "path:line" for a bad row."""
    path = find_trace(spec.path)
    arrival, inputs, outputs = TRACE_READERS[spec.format](path)
    first = int(np.searchsorted(arrival, round(spec.start_s * PS_PER_S)))
    last = len(arrival) if spec.end_s is None else int(np.searchsorted(arrival, round(spec.end_s * PS_PER_S)))
    end = last if spec.max_requests is None else min(last, first + spec.max_requests)
    if end <= first:
        raise InputError(
            str(path), f"no row lies from start_s to end_s; the trace ends at {arrival[-1] / PS_PER_S:g} s"
        )
    dropped = {"before start_s": first, "from end_s on": len(arrival) - last, "beyond max_requests": last - end}
    return Trace(
        arrival_ps=_rescale(spec, path, arrival[first:end] - round(spec.start_s * PS_PER_S)),
        input_tokens=inputs[first:end],
        output_tokens=outputs[first:end],
        rows_read=len(arrival),
        rows_dropped={reason: rows for reason, rows in dropped.items() if rows},
    )


def find_trace(text: str) -> Path:
    """Resolve a trace's path: as given, else inside the directory $PIMSERVE_TRACES."""
    path = Path(text)
    if path.exists():
        return path
    directory = Path(os.environ.get(TRACES_ENV) or _DEFAULT_TRACES)
    if (directory / path).is_file():
        return directory / path
    raise InputError(text, f"no such file, neither here nor in {directory} (set by {TRACES_ENV})")


def trace_digest(spec: TraceSpec) -> str:
    """sha256 of the trace's file.

    Raises:
        InputError: it cannot be read.
    """
    path = find_trace(spec.path)
    try:
        status = path.stat()
        return _file_digest(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None


@cache
def _file_digest(path: Path, _size: int, _changed_ns: int) -> str:
    """Read once, however many runs of a sweep use it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rescale(spec: TraceSpec, path: Path, arrival: IntArray) -> IntArray:
    scale = spec.time_scale or 1.0
    if spec.target_rate_per_s is not None:
        span = int(arrival[-1] - arrival[0])
        if span == 0:
            raise InputError(str(path), "target_rate_per_s needs at least two rows at different times")
        scale = (len(arrival) - 1) * PS_PER_S / span / spec.target_rate_per_s
    if scale == 1.0:
        return arrival
    if arrival[-1] * scale > TIME_LIMIT_PS:
        raise InputError(str(path), f"rescaled by {scale:g} it ends after {MAX_TIME_S:g} s, where the clock ends")
    rescaled: IntArray = np.rint(arrival * scale).astype(np.int64)
    return rescaled


def _read(path: Path, form: _Format) -> tuple[IntArray, IntArray, IntArray]:
    text = _read_text(path)
    if not text.strip():
        raise InputError(str(path), f"the file is empty; a header {','.join(form.columns)} and rows are needed")
    header, _, body = text.partition("\n")
    order = _column_order(path, header, form)
    if not body.strip():
        raise InputError(str(path), "the file holds a header but no rows")
    rows = _parse_fast(body, order, form)
    return rows if rows is not None else _parse_rows(path, body, order, form)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
    except IsADirectoryError:
        raise InputError(str(path), "is a directory; a trace is a CSV file, plain or gzip-compressed") from None
    except EOFError:
        raise InputError(str(path), "the gzip stream ends too early: the file is cut short") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(str(path), f"the gzip stream is damaged: {error}") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}", f"byte 0x{data[error.start]:02x} is not UTF-8 text") from None


def _column_order(path: Path, header: str, form: _Format) -> list[int]:
    found = [name.strip() for name in header.split(",")]
    expected = list(form.columns)
    if found == expected or (form.any_order and sorted(found) == sorted(expected)):
        return [found.index(name) for name in expected]
    missing = [name for name in expected if name not in found]
    problem = f"column {', '.join(missing)} is missing" if missing else "columns do not match"
    raise InputError(f"{path}:1", f"{problem}: the header is {header[:200]!r}, it must be {','.join(expected)!r}")


def _parse_fast(body: str, order: list[int], form: _Format) -> tuple[IntArray, IntArray, IntArray] | None:
    """Parse with numpy; None when any row is not plainly good."""
    if "\n\n" in body.rstrip("\n") or body.startswith("\n") or "\0" in body:
        return None  # numpy would skip blank lines, and ends strings at a NUL
    names = ["t", "i", "o"]
    dtype = [("", "i8")] * 3
    for name, kind, position in zip(names, (form.time_dtype, "i8", "i8"), order, strict=True):
        dtype[position] = (name, kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns when it reads 1.5 as an integer
            table = np.loadtxt(io.StringIO(body), dtype=dtype, delimiter=",", comments=None, ndmin=1)
            time = form.time_to_ps(table["t"])
    except (ValueError, OverflowError, Warning):
        return None
    if time is None or np.any(time[1:] < time[:-1]):
        return None
    rows = []
    for name in ("i", "o"):
        tokens = np.ascontiguousarray(table[name])
        if tokens.min() < 1 or tokens.max() > MAX_TOKENS:
            return None
        rows.append(tokens)
    if form.relative:
        time = time - time[0]
    if time[0] < 0 or time[-1] > TIME_LIMIT_PS or len(time) > MAX_REQUESTS:
        return None
    return time, rows[0], rows[1]


def _parse_rows(path: Path, body: str, order: list[int], form: _Format) -> tuple[IntArray, IntArray, IntArray]:
    """Parse row by row; the first bad row raises InputError."""
    rows = list(_rows(path, body, order, form))
    time, inputs, outputs = np.array(rows, dtype=np.int64).T
    return np.ascontiguousarray(time), np.ascontiguousarray(inputs), np.ascontiguousarray(outputs)


def _rows(path: Path, body: str, order: list[int], form: _Format) -> Iterator[tuple[int, int, int]]:
    origin: int | None = None if form.relative else 0
    previous = 0
    for line, row in enumerate(body.rstrip("\n").split("\n"), start=2):

        def fail(message: str, line: int = line) -> NoReturn:
            raise InputError(f"{path}:{line}", message)

        fields = row.split(",")
        if len(fields) != 3:
            fail(f"3 fields are needed ({','.join(form.columns)}), found {len(fields)}: {row[:200]!r}")
        if line - 1 > MAX_REQUESTS:
            fail(f"more than {MAX_REQUESTS} rows")
        stamp, *lengths = (fields[position].strip() for position in order)
        try:
            time = form.time_text_to_ps(stamp)
        except (ValueError, OverflowError):
            fail(f"{form.columns[0]} is {stamp[:80]!r}; {form.time_allowed}")
        origin = time if origin is None else origin
        time -= origin
        if time < previous:
            fail(f"{form.columns[0]} {stamp!r} lies before the row above; rows must be sorted by time")
        if time > TIME_LIMIT_PS:
            fail(f"{form.columns[0]} {stamp!r} lies more than {MAX_TIME_S:g} s after the start, where the clock ends")
        previous = time
        for name, value in zip(form.columns[1:], lengths, strict=True):
            if not re.fullmatch(r"\+?[0-9]{1,18}", value) or not 1 <= int(value) <= MAX_TOKENS:
                fail(f"{name} is {value[:80]!r}; a whole number from 1 to {MAX_TOKENS} is needed")
        yield time, int(lengths[0]), int(lengths[1])


_AZURE_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,7}))?", re.ASCII)
_PS_PER_TICK = 100_000  # the trace counts in 100 ns


def _azure_time(stamp: str) -> int:
    match = _AZURE_TIME.fullmatch(stamp)
    if not match:
        raise ValueError(stamp)
    seconds = (datetime.fromisoformat(match[1]).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    return int(seconds) * PS_PER_S + int((match[2] or "0").ljust(7, "0")) * _PS_PER_TICK


def _azure_times(stamps: NDArray[np.str_]) -> IntArray | None:
    size = np.char.str_len(stamps)
    if size.min() < 19 or size.max() > 27 or not np.all((stamps >= "1700") & (stamps < "2200")):
        return None  # nanoseconds since 1970 wrap around outside these years
    # Relative before the change to picoseconds, which would wrap around since 1970.
    nanoseconds = stamps.astype("datetime64[ns]").astype(np.int64)
    relative = nanoseconds - nanoseconds[0]
    return relative * 1000 if relative.min() >= 0 and relative.max() <= MAX_TIME_S * 1e9 else None


def _decimal_time(stamp: str) -> int:
    if not re.fullmatch(r"[-+.0-9eE]+", stamp):
        raise ValueError(stamp)
    seconds = float(stamp)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(stamp)
    return round(seconds * PS_PER_S)


def _decimal_times(seconds: NDArray[np.float64]) -> IntArray | None:
    if not np.all((seconds >= 0) & (seconds <= MAX_TIME_S)):  # also catches NaN
        return None
    return np.rint(seconds * PS_PER_S).astype(np.int64)


_AZURE = _Format(
    columns=("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    any_order=False,
    time_dtype="U28",
    time_to_ps=_azure_times,
    time_text_to_ps=_azure_time,
    time_allowed="YYYY-MM-DD HH:MM:SS.fffffff is needed (no time zone, at most 7 fractional digits)",
    relative=True,
)
_CSV = _Format(
    columns=("arrival_s", "input_tokens", "output_tokens"),
    any_order=True,
    time_dtype="f8",
    time_to_ps=_decimal_times,
    time_text_to_ps=_decimal_time,
    time_allowed="seconds from the start of the trace are needed, a finite number >= 0",
    relative=False,
)

TRACE_READERS: dict[str, Callable[[Path], tuple[IntArray, IntArray, IntArray]]] = {
    "azure": lambda path: _read(path, _AZURE),
    "csv": lambda path: _read(path, _CSV),
}
"""Format -> reader of (arrival ps ascending, input tokens, output tokens)."""
