"""What the service says, as plain Python: times in s, points in time as datetime (UTC), None for what is not known."""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence
from dataclasses import dataclass, field, is_dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from pimserve.cluster.client.cache_answers import KvTiersState, PrefixCacheState
from pimserve.cluster.client.replica_answers import PreemptionsByCause, RouterState, SpecDecodeState
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import simulation_pb2 as sim

ENDED = ("finished", "failed", "cancelled")
Answer = TypeVar("Answer")


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
    """A run: `state` is queued, starting, running, paused, finished, failed or cancelled.

    `speed` 0 is as fast as possible. Where it computes is said as to `Client.launch`: `on`, `shards`, `devices`,
    `devices_per_actor`, `resource`, `host_timeout_s`.
    """

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
    labels: dict[str, str] = field(default_factory=dict)
    on: str = "local"
    shards: int | None = None
    devices: str | None = None
    devices_per_actor: int | None = None
    resource: tuple[str, ...] = ()
    host_timeout_s: float | None = None

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
    """Queue and batch of a replica; what it has none of is None, as are `preemptions_by_cause` before there are any."""

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
    prefix_cache: PrefixCacheState | None = None
    kv_tiers: KvTiersState | None = None
    preemptions_by_cause: PreemptionsByCause | None = None
    spec_decode: SpecDecodeState | None = None


@dataclass(frozen=True, slots=True)
class Replicas:
    """All replicas at a simulated time; `router` is None where it has nothing to choose, or has sent nothing yet."""

    simulated_s: float
    replicas: tuple[Replica, ...]
    router: RouterState | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request's life: `state` is expected, waiting, prefill, decode, finished or rejected.

    `reject_reason` is what it is too long for: max_model_len or kv_cache; or why the replica was too busy for it:
    queue_full or predicted_ttft.
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
    """Of the requests so far: `percentiles` by percent.

    What counts is from `counted_from_s` on, the end of the warm-up, and as of `as_of_s`: the moment of the answer, but
    for itl, which is looked at once a second while the run goes.
    """

    count: int
    mean_s: float | None
    percentiles: dict[float, float]
    counted_from_s: float = 0.0
    as_of_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LimitAtPercentile:
    """A limit at a percentile, such as ttft_p99_s, of `count` samples: what it came to so far.

    `measured_s` is None without samples, or where it is of requests never served; `passed` without samples only.
    """

    name: str
    limit_s: float
    measured_s: float | None
    passed: bool | None
    margin_s: float | None
    count: int
    enough_samples: bool


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
    at_percentiles: tuple[LimitAtPercentile, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupTime:
    """What devices of attention, or of the experts, did with the time of their replica."""

    group: str
    working_s: float
    other_group_s: float
    link_s: float
    work_s: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the devices of a replica have done; `passive_joules` is None where it is not known, or left out.

    `groups`: where attention and experts have devices of their own.
    """

    replica: int
    busy_s: dict[str, float]
    active_joules: float
    passive_joules: float | None
    steps: int
    output_tokens: int
    groups: tuple[GroupTime, ...]


@dataclass(frozen=True, slots=True)
class Ledgers:
    """All ledgers at a simulated time."""

    simulated_s: float
    ledgers: tuple[Ledger, ...]


@dataclass(frozen=True, slots=True)
class DeviceTraffic:
    """What passed between a device and all others, of one kind: counts and bytes."""

    kind: str
    sent: int
    sent_bytes: int
    received: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is an actor, by its own ledger: number `device` of its replica, in process or actor `host`.

    `group`: attention, hot_experts or experts, where these have devices of their own, else empty; `parts`: of the
    model.
    """

    replica: int
    device: int
    host: str
    host_restarts: int
    steps: int
    busy_s: float
    unit_busy_s: dict[str, float]
    active_joules: float
    computed_tokens: int
    output_tokens: int
    kv_blocks: int
    peak_kv_blocks: int
    weight_bytes: int
    audited_spans: int
    experts_busy_s: float
    kv_blocks_sent: int
    kv_blocks_received: int
    traffic: tuple[DeviceTraffic, ...]
    group: str
    kind: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Devices:
    """All of them at a simulated time."""

    simulated_s: float
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Devices of a replica with attention, or with experts, from `first_device` on; `parts`: of the model."""

    group: str
    first_device: int
    devices: int
    device: str
    parts: tuple[str, ...]
    parallelism: dict[str, str]
    weights_gb_per_device: float


@dataclass(frozen=True, slots=True)
class ReplicaPlacement:
    """A replica has `devices` devices, from `first_device` on; `groups` where attention and experts have their own."""

    replica: int
    pool: str
    first_device: int
    devices: int
    parallelism: dict[str, str]
    kv_capacity_tokens: int
    weights_gb_per_device: float
    device: str
    groups: tuple[DeviceGroup, ...]


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


def read(kind: type[Answer], message: Message, **given: object) -> Answer:
    """A message as the dataclass whose fields it has; `given` are those that it does not have, or not so.

    Enumerations are the last words of their names; what is optional and not there is None.
    """
    hints = _hints(kind)  # type: ignore[arg-type]  # classes are hashable
    values = {
        field.name: _value(message, field, hints[field.name])
        for field in message.DESCRIPTOR.fields
        if field.name in hints and field.name not in given
    }
    return kind(**values, **given)


def run(message: sim.Run) -> Run:
    """A run."""
    queued = message.state == sim.RUN_STATE_QUEUED
    hints, options = _hints(Run), message.options
    how = {
        part.name: _value(options, part, hints[part.name]) for part in options.DESCRIPTOR.fields if part.name in hints
    }
    if options.devices == sim.DEVICE_ACTORS_UNSPECIFIED:
        how["devices"] = None
    return read(
        Run,
        message,
        **how,
        queue_position=message.queue_position if queued else None,
    )


def latencies(message: sched.GetLatenciesResponse) -> Latencies:
    """Latencies."""
    by_name = {
        latency.name: read(
            Latency,
            latency,
            percentiles={percentile.percent: percentile.value_s for percentile in latency.percentiles},
        )
        for latency in message.latencies
    }
    hints = _hints(Latencies)
    slo = {field.name: _value(message.slo, field, hints[field.name]) for field in message.slo.DESCRIPTOR.fields}
    return read(Latencies, message, latencies=by_name, **slo)


def _value(message: Message, field: Any, hint: Any) -> Any:  # noqa: ANN401 a descriptor, a type, and a value of it
    """The value of a field, for a field of a dataclass that has this type."""
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name.rpartition("_")[2].lower()
    if isinstance(value, Timestamp):
        return value.ToDatetime(UTC)
    if isinstance(value, Mapping):
        return dict(value)
    inner: Any = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
    if isinstance(value, Message):
        return read(inner, value)
    if isinstance(value, MutableSequence):
        return tuple(value if inner is None else (read(inner, entry) for entry in value))
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
