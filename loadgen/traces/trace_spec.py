"""What a scenario says of a trace."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from pimserve.errors import InputError, validation_error
from pimserve.loadgen.spec import MAX_REQUESTS, Spec
from pimserve.loadgen.traces.known_formats import AUTO, BUILT_IN_FORMATS, format_names
from pimserve.loadgen.traces.pacing import Timing
from pimserve.loadgen.traces.rows import Columns
from pimserve.loadgen.traces.thinning import TickJitter
from pimserve.loadgen.traces.trace_files import TRACES_ENV
from pimserve.loadgen.traces.trace_format import OWN_NAMES
from pimserve.quantity import PositiveSeconds, Quantity

# Clocks of traces may begin in 1970, and count anything.
_Start = Annotated[float, Quantity("s", most=1e18)]
_End = Annotated[float, Quantity("s", above=0, most=1e18)]
_Name = Annotated[str, Field(min_length=1)]
_OPEN = ", ".join([AUTO, *(name for name, form in BUILT_IN_FORMATS.items() if form.open_names)])
# Names of before, which say the unit too.
_FORMER = {"arrival_s": "s", "arrival_ms": "ms", "arrival_date": "date"}


def _known(name: str) -> str:
    known = [AUTO, *format_names()]
    if name not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return name


def _list_formats(schema: dict[str, Any]) -> None:
    schema["enum"] = [AUTO, *format_names()]


class ColumnsSpec(Spec):
    """What a file calls the columns, and what its times are.

    `arrival_s`, `arrival_ms` and `arrival_date` name the column of arrivals and its unit in one, and `input_tokens` and
    `output_tokens` are taken for `input` and `output`.
    """

    arrival: _Name = Field(OWN_NAMES.arrival, description="column of arrival times")
    input: _Name = Field(OWN_NAMES.input_tokens, description="column of prompt lengths, tokens")
    output: _Name = Field(OWN_NAMES.output_tokens, description="column of output lengths, tokens")
    unit: Literal["s", "ms", "us", "ns", "date"] = Field(
        "s", description="of arrival times; date: date and time (ISO 8601), UTC where no zone is given"
    )
    request: _Name | None = Field(None, description="column that names requests, each once")
    session: _Name | None = Field(
        None, description="column that names sessions, whose turns follow each other; empty: a session of its own"
    )
    duration: _Name | None = Field(
        None, description="column that says how long requests took, in `unit` (date: s); think times begin after that"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_before(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        given = [name for name in (*_FORMER, "arrival") if data.get(name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: they say what the column of arrivals holds")
        renamed = {key: value for key, value in data.items() if key not in _FORMER}
        for former, now in (("input_tokens", "input"), ("output_tokens", "output")):
            if former in renamed and now not in renamed:
                renamed[now] = renamed.pop(former)
        if given and given[0] in _FORMER:
            if data.get("unit") is not None:
                raise ValueError(f"{given[0]} says the unit: leave out unit, or call the column arrival")
            renamed |= {"arrival": data[given[0]], "unit": _FORMER[given[0]]}
        return renamed

    def columns(self) -> Columns:
        """The same for a reader."""
        return Columns(
            self.arrival,
            self.input,
            self.output,
            self.unit,
            request=self.request,
            session=self.session,
            duration=self.duration,
            asked=tuple(kind for kind in ("request", "session", "duration") if getattr(self, kind) is not None),
        )


class TraceSpec(Spec):
    """A recorded trace to replay."""

    format: Annotated[str, AfterValidator(_known)] = Field(
        AUTO,
        description="auto: as the content says; "
        + "; ".join(f"{name}: {form.title}" for name, form in BUILT_IN_FORMATS.items())
        + ". Columns are found by name; further ones are ignored",
        json_schema_extra=_list_formats,
    )
    path: str = Field(
        min_length=1,
        description="file, folder of files, or tar archive of them, plain or compressed by gzip or zstd; a relative "
        f"path is tried from the current directory, then from ${TRACES_ENV}",
    )
    columns: ColumnsSpec | None = Field(None, description=f"what the file calls them; with formats {_OPEN}")
    label_column: _Name | None = Field(
        None,
        description="column of labels, by which classes take rows (default: class in own tables, Model in burstgpt, "
        "type in bailian)",
    )
    start_s: _Start = Field(
        0.0,
        description="skip rows before this time of the trace's own clock (where its times are "
        "dates, time since the first row), s; whichever row is the first that is used arrives at 0",
    )
    end_s: _End | None = Field(
        None,
        description="skip rows from this time of the trace's own clock on, s; the file is read little further, "
        "unless sort is set",
    )
    sample_ratio: float = Field(
        1.0,
        gt=0,
        le=1,
        description="keep each row with this probability, by the run's seed; all turns of a session or none",
    )
    max_requests: int | None = Field(
        None, ge=1, le=MAX_REQUESTS, description="keep at most this many rows; the file is read little further"
    )
    tick_jitter: TickJitter = Field(
        "none",
        description="where times are in ticks: uniform spreads requests within their tick at random, even evenly",
    )
    time_scale: float | None = Field(
        None, gt=0, le=1e6, description="multiplies arrival times; 0.5 doubles the rate. Not with target_rate_per_s"
    )
    target_rate_per_s: float | None = Field(
        None, gt=0, le=1e9, description="stretch or compress time to this mean rate, requests per second"
    )
    on_bad_row: Literal["error", "drop"] = Field(
        "error", description="error: the first bad row is refused with its line; drop: they are left out and counted"
    )
    sort: bool = Field(False, description="rows may be in any order of time; how far out they were is said")
    timing: Timing = Field(
        "think_only",
        description="of turns in sessions: think_only: the recorded think time after the simulated end of what they "
        "wait for; api_scaled: after that, and after what the recorded request before took, too; absolute: all "
        "requests at the times recorded, whatever they waited for",
    )
    api_time_scale: float | None = Field(
        None, ge=0, le=1e6, description="with timing api_scaled, multiplies what requests took (default: 1)"
    )
    max_idle_gap_s: PositiveSeconds | None = Field(
        None, description="longest think time between turns of a session, before time is rescaled, s"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"end_s ({self.end_s}) must be greater than start_s ({self.start_s})")
        if self.time_scale is not None and self.target_rate_per_s is not None:
            raise ValueError("give time_scale or target_rate_per_s, not both")
        if self.api_time_scale is not None and self.timing != "api_scaled":
            raise ValueError("api_time_scale goes with timing api_scaled")
        if self.max_idle_gap_s is not None and self.timing == "absolute":
            raise ValueError("max_idle_gap_s has no effect with timing absolute, in which nobody thinks")
        form = BUILT_IN_FORMATS.get(self.format)
        if self.columns is not None and form is not None and not form.open_names:
            raise ValueError(f"columns goes with formats {_OPEN}: {self.format} has names of its own")
        return self


def parse_trace_argument(text: str) -> TraceSpec:
    """Read the short form PATH or FORMAT:PATH, e.g. "azure:conv.csv.gz". Raises InputError naming the formats."""
    kind, colon, path = text.partition(":")
    named = colon and kind.replace("-", "_").isidentifier()
    if named and kind not in {AUTO, *format_names()}:
        known = ", ".join([AUTO, *format_names()])
        raise InputError("--trace", f"{text!r} is not PATH or FORMAT:PATH with FORMAT one of {known}")
    try:
        return TraceSpec.model_validate({"format": kind, "path": path} if named else {"path": text})
    except ValidationError as error:
        raise validation_error("--trace", error, TraceSpec) from None
