"""What the service says, as plain Python: times in s, points in time as datetime (UTC), None for what is not known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import simulation_pb2 as sim

ENDED = ("finished", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is; counts of requests, steps and windows.

    `stability`, once it has finished, is saturated, steady or too short to tell.
    """

    simulated_s: float
    requests: int
    arrived: int
    finished: int
    rejected: int
    running: int
    waiting: int
    steps: int
    windows: int
    stability: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run: `state` is queued, running, paused, finished, failed or cancelled; `speed` 0 is as fast as possible."""

    id: str
    name: str
    state: str
    speed: float
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: Progress | None
    error: str
    restarts: int
    queue_position: int | None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class Validated:
    """A scenario that is acceptable."""

    name: str
    model: str
    device: str
    replicas: int
    devices: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Replica:
    """Queue and batch of a replica."""

    replica: int
    pool: str
    up: bool
    clock_s: float
    steps: int
    running: int
    waiting: int
    decoding: int
    context_tokens: int
    kv_blocks_used: int
    kv_blocks: int
    left: int


@dataclass(frozen=True, slots=True)
class Replicas:
    """All replicas at a simulated time."""

    simulated_s: float
    replicas: tuple[Replica, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """A request's life: `state` is expected, waiting, prefill, decode, finished or rejected.

    `reject_reason` is what it is too long for: max_model_len or kv_cache.
    """

    simulated_s: float
    request: int
    state: str
    input_tokens: int
    output_tokens: int
    replica: int | None
    arrival_s: float | None
    first_scheduled_s: float | None
    first_token_s: float | None
    finish_s: float | None
    preemptions: int | None
    reject_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the requests so far: `percentiles` by percent."""

    count: int
    mean_s: float | None
    percentiles: dict[float, float]


@dataclass(frozen=True, slots=True)
class Latencies:
    """Latencies by name (ttft, tpot, e2e, queue, itl), and of the requests that left how many met the SLO.

    `censored` requests are those that the end of the run cut off before that was known.

    They are of what is measured: from `measured_from_s`, the end of the warm-up, until `measured_until_s`, None where
    all that comes counts.
    """

    simulated_s: float
    measured_from_s: float
    measured_until_s: float | None
    latencies: dict[str, Latency]
    left: int
    good: int
    attainment: float | None
    limits_s: dict[str, float]
    censored: int = 0


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the devices of a replica have done; `passive_joules` is None where it is not known, or left out."""

    replica: int
    busy_s: dict[str, float]
    active_joules: float
    passive_joules: float | None
    steps: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Ledgers:
    """All ledgers at a simulated time."""

    simulated_s: float
    ledgers: tuple[Ledger, ...]


@dataclass(frozen=True, slots=True)
class ReplicaPlacement:
    """A replica has `devices` devices, from `first_device` on."""

    replica: int
    pool: str
    first_device: int
    devices: int
    parallelism: dict[str, str]
    kv_capacity_tokens: int
    weights_gb_per_device: float
    device: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Which devices each replica has."""

    model: str
    device: str
    replicas: tuple[ReplicaPlacement, ...]


@dataclass(frozen=True, slots=True)
class Injected:
    """Requests from number `first_request` on are in the run since `simulated_s`."""

    simulated_s: float
    first_request: int


def run(message: sim.Run) -> Run:
    """A run."""
    queued = message.state == sim.RUN_STATE_QUEUED
    created = _moment(message, "created_at")
    assert created is not None
    return Run(
        id=message.id,
        name=message.name,
        state=_word(sim.RunState.Name(message.state)),
        speed=message.options.speed,
        created_at=created,
        started_at=_moment(message, "started_at"),
        ended_at=_moment(message, "ended_at"),
        progress=Progress(**_fields(message.progress)) if message.HasField("progress") else None,
        error=message.error,
        restarts=message.restarts,
        queue_position=message.queue_position if queued else None,
    )


def validated(message: sim.ValidateResponse) -> Validated:
    """A scenario."""
    return Validated(**{**_fields(message), "warnings": tuple(message.warnings)})


def replicas(message: sched.GetReplicasResponse) -> Replicas:
    """All replicas."""
    return Replicas(message.simulated_s, tuple(Replica(**_fields(replica)) for replica in message.replicas))


def request(message: sched.DescribeRequestResponse) -> Request:
    """A request."""
    return Request(**{**_fields(message), "state": _word(sched.RequestState.Name(message.state))})


def latencies(message: sched.GetLatenciesResponse) -> Latencies:
    """Latencies."""
    slo = _fields(message.slo)
    return Latencies(
        simulated_s=message.simulated_s,
        measured_from_s=message.measured_from_s,
        measured_until_s=message.measured_until_s if message.HasField("measured_until_s") else None,
        latencies={
            latency.name: Latency(
                latency.count,
                latency.mean_s if latency.HasField("mean_s") else None,
                {percentile.percent: percentile.value_s for percentile in latency.percentiles},
            )
            for latency in message.latencies
        },
        **{**slo, "limits_s": dict(message.slo.limits_s)},
    )


def ledgers(message: sched.GetLedgersResponse) -> Ledgers:
    """All ledgers."""
    return Ledgers(
        message.simulated_s,
        tuple(Ledger(**{**_fields(ledger), "busy_s": dict(ledger.busy_s)}) for ledger in message.ledgers),
    )


def placement(message: sched.GetPlacementResponse) -> Placement:
    """The placement."""
    return Placement(
        message.model,
        message.device,
        tuple(
            ReplicaPlacement(**{**_fields(replica), "parallelism": dict(replica.parallelism)})
            for replica in message.replicas
        ),
    )


def injected(message: sched.InjectRequestsResponse) -> Injected:
    """What came of an injection."""
    return Injected(message.simulated_s, message.first_request)


def _fields(message: Any) -> dict[str, Any]:  # noqa: ANN401 any message
    """Values of a message but the deprecated ones; None where a value is optional and not there."""
    return {
        field.name: None
        if field.containing_oneof is not None and not message.HasField(field.name)
        else getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if not field.GetOptions().deprecated
    }


def _moment(message: sim.Run, name: str) -> datetime | None:
    stamp: Timestamp = getattr(message, name)
    return stamp.ToDatetime(UTC) if message.HasField(name) else None  # type: ignore[arg-type]


def _word(name: str) -> str:
    """The last word of an enumeration's name."""
    return name.rpartition("_")[2].lower()
