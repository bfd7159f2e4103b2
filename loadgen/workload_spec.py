"""The load of a run as the user asks for it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pimserve.loadgen.arrivals import ArrivalSpec
from pimserve.loadgen.length_pairs import LengthsSpec
from pimserve.loadgen.lengths import Tokens
from pimserve.loadgen.prefix import PrefixSpec, check_lengths
from pimserve.loadgen.request_classes import MOST_CLASSES, ClassSpec, all_have_lengths, check_classes
from pimserve.loadgen.spec import MAX_REQUESTS, Spec
from pimserve.loadgen.synthetic_sessions import SessionsSpec
from pimserve.loadgen.think_times import ThinkTime
from pimserve.loadgen.traces import TraceSpec
from pimserve.quantity import PositiveSeconds

DEFAULT_REQUESTS = 2000
_DEFAULT_PRESET = "azure-conv-2023"


class WorkloadSpec(Spec):
    """Which requests arrive, when, and how long they are.

    Arrival times come from `arrival`, else from `trace`, else from the preset; lengths from `lengths`, else from
    `trace`, else from the preset. A part that would not be used is an error. Beside a trace with sessions, `arrival`
    says when these begin, in turn and over again; `num_requests` counts requests, `duration_s` ends the beginnings.
    """

    preset: Literal["azure-conv-2023"] | None = Field(
        None,
        description="embedded workload that supplies what `arrival` and `lengths` do not; the default without a trace; "
        "azure-conv-2023 has the published rate and length statistics of the Azure LLM 2023 conversation trace",
    )
    mode: Literal["open", "closed"] = Field(
        "open",
        description="open: arrivals do not wait for service; closed: `concurrency` clients have one request in flight "
        "each, or think",
    )
    num_requests: int | None = Field(
        None,
        ge=1,
        le=MAX_REQUESTS,
        description=f"stop after this many requests (default: {DEFAULT_REQUESTS}, or all rows of a trace, "
        "or those of all stages)",
    )
    duration_s: PositiveSeconds | None = Field(
        None, description="only requests that arrive before this time, s (open mode)"
    )
    arrival: ArrivalSpec | None = Field(None, description="arrival process (open mode)")
    lengths: LengthsSpec | None = Field(None, description="laws of input and output lengths")
    prefix: PrefixSpec | None = Field(None, description="what prompts have in common")
    trace: TraceSpec | None = Field(None, description="recorded trace to replay")
    classes: tuple[ClassSpec, ...] | None = Field(
        None,
        min_length=1,
        max_length=MOST_CLASSES,
        description="classes of requests, with figures and metrics of each; requests of a session are of one class",
    )
    sessions: SessionsSpec | None = Field(
        None,
        description="requests come in sessions of several turns, of which `arrival` has the first (open mode); without "
        "it, sessions.max_active clients run one session after another",
    )
    concurrency: int | None = Field(None, ge=1, le=MAX_REQUESTS, description="requests in flight (closed mode)")
    max_tokens: Tokens | None = Field(
        None,
        description="most tokens of an output, which clients declare: an output that would be longer ends there, and "
        "scheduler.kv_admission: no_evict reserves KV blocks for so many (default: none is declared)",
    )
    think_time_s: ThinkTime | None = Field(
        None,
        description="closed mode: from the end of a client's request until it sends the next one: a number of seconds, "
        "or a law (default: none)",
    )
    max_concurrency: int | None = Field(
        None,
        ge=1,
        le=MAX_REQUESTS,
        description="requests in flight at most, others wait at the client (open mode); latencies hold that time, "
        "as they count from the arrival that was planned",
    )
    stagger: bool = Field(
        False,
        description="closed mode: the first `concurrency` requests start midway (e of their output tokens, e uniform "
        "in 0..output-1, count as input), so that the loop starts near its steady state",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_preset(cls, data: object) -> object:
        if not isinstance(data, dict) or data.get("preset") is not None or data.get("trace") is not None:
            return data
        no_times = data.get("arrival") is None and data.get("mode") != "closed" and not _caps_sessions(data)
        if no_times or (data.get("lengths") is None and not all_have_lengths(data.get("classes"))):
            return {**data, "preset": _DEFAULT_PRESET}
        return data

    @model_validator(mode="before")
    @classmethod
    def _recorded_sessions_have_no_cap(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("trace") is not None and _caps_sessions(data):
            sessions = data["sessions"]
            if isinstance(sessions, dict) and sessions.get("turns") is None:
                raise ValueError(
                    "sessions.max_active is not modelled for recorded sessions of a trace: leave sessions out, or give "
                    "sessions.turns, by which they are drawn"
                )
        return data

    @model_validator(mode="after")
    def _mode_fits(self) -> Self:
        if self.arrival is not None and self.arrival.normalize_duration and self.duration_s is not None:
            raise ValueError("arrival.normalize_duration goes with num_requests, not with duration_s")
        if self.mode == "open":
            for key in ("concurrency", "think_time_s", "stagger"):
                if getattr(self, key) not in {None, False}:
                    raise ValueError(f"{key} has no effect with mode 'open'; leave it out or set mode: closed")
            return self
        if self.concurrency is None:
            raise ValueError("mode 'closed' needs concurrency (requests in flight, at least 1)")
        if self.num_requests is not None and self.num_requests < self.concurrency:
            raise ValueError(f"num_requests ({self.num_requests}) must be at least concurrency ({self.concurrency})")
        for key in ("arrival", "duration_s", "sessions", "max_concurrency"):
            if getattr(self, key) is not None:
                remedy = "; for a closed loop of sessions give sessions.max_active" if key == "sessions" else ""
                raise ValueError(f"{key} has no effect with mode 'closed', which ends after num_requests{remedy}")
        return self

    @model_validator(mode="after")
    def _sessions_fit(self) -> Self:
        if self.sessions is None:
            return self
        if self.num_requests is not None:
            raise ValueError("num_requests has no effect with sessions; give sessions.num_sessions")
        if self.max_concurrency is not None:
            raise ValueError("max_concurrency is of requests that come on their own; give sessions.max_active")
        if self.closed_sessions and self.duration_s is not None:
            raise ValueError("duration_s has no effect: without arrival all sessions are there from the beginning")
        if self.prefix is not None and self.sessions.context == "accumulate":
            raise ValueError("prefix needs sessions.context: fresh; else a prompt shares what came before it")
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        lengths, prefix, classes = self.lengths, self.prefix, self.classes or ()
        for laws in (lengths, *(each.lengths for each in classes)):
            check_lengths(laws, prefix)
        if lengths is not None and lengths.from_trace and self.trace is None:
            raise ValueError("lengths.joint of kind 'trace' needs trace (its path)")
        if prefix is not None and self.trace is not None and lengths is None:
            raise ValueError("prefix needs lengths: prompts of a trace are what they are")
        if prefix is not None and prefix.prompts_per_group is not None and any(each.lengths for each in classes):
            raise ValueError("lengths of classes exclude prefix.prompts_per_group: a prompt has one length")
        return self

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        classes, trace = self.classes or (), self.trace
        check_classes(classes)
        labelled = bool(classes) and classes[0].labels is not None
        if labelled and trace is None:
            raise ValueError("labels of classes need trace (its path), whose rows have them")
        if labelled and not self.replays_times and self.lengths is not None and self.lengths.from_trace:
            raise ValueError("labels of classes are those of the trace's rows, which are drawn here: give shares")
        if trace is not None and trace.label_column is not None and not labelled:
            raise ValueError("trace.label_column has no effect without labels of classes")
        if self.lengths is not None and all_have_lengths(classes):
            raise ValueError("lengths has no effect: every class has its own")
        return self

    @model_validator(mode="after")
    def _sources_fit(self) -> Self:
        synthetic = self.arrival is not None and self.arrival.process != "trace"
        times_from_trace = self.replays_times
        lengths_given = self.lengths is not None or all_have_lengths(self.classes)
        if self.arrival is not None and self.arrival.process == "trace" and self.trace is None:
            raise ValueError("arrival.process 'trace' needs trace (its path)")
        if self.trace is not None:
            if self.preset is not None:
                raise ValueError("preset has no effect beside trace; leave one of them out")
            if not times_from_trace and lengths_given and not (self.lengths and self.lengths.from_trace):
                raise ValueError("trace has no effect here: neither its arrival times nor its lengths are used")
            for key in ("time_scale", "target_rate_per_s"):
                if getattr(self.trace, key) is not None and not times_from_trace:
                    raise ValueError(f"trace.{key} has no effect: only the lengths of the trace are used")
        elif self.preset is not None and lengths_given and (synthetic or self.closed):
            raise ValueError("preset has no effect when everything that it supplies is given; leave it out")
        return self

    @property
    def closed_sessions(self) -> bool:
        """Whether sessions begin when others end, and at no times of their own."""
        capped = self.sessions is not None and self.sessions.max_active is not None
        return capped and self.arrival is None and self.trace is None

    @property
    def closed(self) -> bool:
        """Whether nobody arrives at a time of its own."""
        return self.mode == "closed" or self.closed_sessions

    @property
    def replays_times(self) -> bool:
        """Whether requests arrive when those of its trace did."""
        return self.mode == "open" and (self.arrival is None or self.arrival.process == "trace")


def _caps_sessions(data: dict[str, object]) -> bool:
    """Whether a document says how many sessions are active."""
    sessions = data.get("sessions")
    most = sessions.get("max_active") if isinstance(sessions, dict) else getattr(sessions, "max_active", None)
    return most is not None
