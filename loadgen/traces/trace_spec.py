"""What a scenario says of a trace."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pimserve.errors import InputError, validation_error
from pimserve.loadgen.spec import MAX_REQUESTS, Spec
from pimserve.loadgen.traces.formats import TRACE_FORMATS
from pimserve.loadgen.traces.rows import Columns
from pimserve.loadgen.traces.times import CLOCKS
from pimserve.loadgen.traces.trace_files import TRACES_ENV
from pimserve.quantity import Quantity

# Clocks of traces may begin in 1970, and count anything.
_Start = Annotated[float, Quantity("s", most=1e18)]
_End = Annotated[float, Quantity("s", above=0, most=1e18)]


class ColumnsSpec(Spec):
    """What a file calls the columns; at most one of the arrivals, by what it holds."""

    arrival_s: str | None = Field(None, description="column of arrival times in seconds; default: arrival_s")
    arrival_ms: str | None = Field(None, description="column of arrival times in milliseconds")
    arrival_date: str | None = Field(None, description="column of arrivals as date and time (ISO 8601)")
    input_tokens: str = Field("input_tokens", min_length=1, description="column of prompt lengths")
    output_tokens: str = Field("output_tokens", min_length=1, description="column of output lengths")

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        given = [name for name in CLOCKS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: they say what the column of arrivals holds")
        return self

    def columns(self) -> Columns:
        """The same for a reader."""
        clock = next((name for name in CLOCKS if getattr(self, name) is not None), "arrival_s")
        return Columns(getattr(self, clock) or clock, self.input_tokens, self.output_tokens, clock)


class TraceSpec(Spec):
    """A recorded trace to replay."""

    format: Literal["azure", "csv", "jsonl", "mooncake", "vidur"] = Field(
        description="; ".join(f"{name}: {form.title}" for name, form in TRACE_FORMATS.items())
        + ". Columns are found by name; further ones are ignored. Plain or gzip"
    )
    path: str = Field(
        min_length=1, description=f"file; a relative path is tried from the current directory, then from ${TRACES_ENV}"
    )
    columns: ColumnsSpec | None = Field(None, description="with format csv or jsonl: what the file calls them")
    start_s: _Start = Field(
        0.0,
        description="skip rows before this time of the trace's own clock (where its times are "
        "dates, time since the first row), s; whichever row is the first that is used arrives at 0",
    )
    end_s: _End | None = Field(None, description="skip rows from this time of the trace's own clock on, s")
    time_scale: float | None = Field(
        None, gt=0, le=1e6, description="multiplies arrival times; 0.5 doubles the rate. Not with target_rate_per_s"
    )
    target_rate_per_s: float | None = Field(
        None, gt=0, le=1e9, description="stretch or compress time to this mean rate, requests per second"
    )
    max_requests: int | None = Field(
        None, ge=1, le=MAX_REQUESTS, description="keep at most this many rows; the file is read little further"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"end_s ({self.end_s}) must be greater than start_s ({self.start_s})")
        if self.time_scale is not None and self.target_rate_per_s is not None:
            raise ValueError("give time_scale or target_rate_per_s, not both")
        if self.columns is not None and not TRACE_FORMATS[self.format].open_names:
            takes = " or ".join(name for name, form in TRACE_FORMATS.items() if form.open_names)
            raise ValueError(f"columns goes with format {takes}: {self.format} has names of its own")
        return self


def parse_trace_argument(text: str) -> TraceSpec:
    """Read the short form FORMAT:PATH, e.g. "azure:conv.csv.gz". Raises InputError naming the formats."""
    kind, colon, path = text.partition(":")
    if not colon or not path or kind not in TRACE_FORMATS:
        raise InputError("--trace", f"{text!r} is not FORMAT:PATH with FORMAT one of {', '.join(TRACE_FORMATS)}")
    try:
        return TraceSpec.model_validate({"format": kind, "path": path})
    except ValidationError as error:
        raise validation_error("--trace", error, TraceSpec) from None
