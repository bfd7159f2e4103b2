"""What a client can ask for: the method, the request, how its answer is read, and whether it may be asked twice.

Here what is asked of `SimulationService`; what of `SchedulerService`, in scheduler_calls.py.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from pimserve.cluster.base.rpc.rules import MAX_SCENARIO_BYTES
from pimserve.cluster.base.rpc.statuses import details_of
from pimserve.cluster.client import answers
from pimserve.errors import PimserveError
from pimserve.v1 import simulation_pb2 as sim

if TYPE_CHECKING:
    from pimserve.cluster.run.summary_schema import Summary

Answer = TypeVar("Answer")

_IDEMPOTENT = {
    # Launch has a key that tells a second attempt.
    "pimserve.v1.SimulationService": (
        "Validate",
        "Launch",
        "Get",
        "GetSummary",
        "List",
        "Pause",
        "Resume",
        "Cancel",
        "Continue",
        "ChangeSpeed",
    ),
    "pimserve.v1.SchedulerService": (
        "GetReplicas",
        "DescribeRequest",
        "GetLatencies",
        "GetLedgers",
        "GetDevices",
        "GetPlacement",
    ),
}
_RETRY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": service, "method": method}
                    for service, methods in _IDEMPOTENT.items()
                    for method in methods
                ],
                "retryPolicy": _RETRY,
            }
        ]
    }
)


# Which part of a request has a key of the scenario; people know where they wrote it.
_WITHIN = re.compile(r"^scenario\.(yaml|trace|overrides\[\d+\]): ")


class ServiceError(PimserveError):
    """The service refused, or did not answer.

    Args:
        code: name of the gRPC status, such as "NOT_FOUND".
        message: what is wrong.
        violations: (field, what is wrong with it) for each field of the request that is to blame.
    """

    def __init__(self, code: str, message: str, violations: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.violations = tuple(violations)


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One call: its request, whose name is that of the method, and how its answer is read."""

    request: Message
    read: Callable[[Any], Answer]

    @property
    def method(self) -> Any:  # noqa: ANN401 a descriptor
        """What is called."""
        kind = self.request.DESCRIPTOR
        (service,) = kind.file.services_by_name.values()
        return service.methods_by_name[kind.name.removesuffix("Request")]

    @property
    def path(self) -> str:
        """As gRPC names it."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def parse(self) -> Callable[[bytes], Message]:
        """Makes answers of bytes."""
        return message_factory.GetMessageClass(self.method.output_type).FromString


def error_of(error: grpc.RpcError, address: str) -> ServiceError:
    """What a failed call says, to the one who made it."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    code, details = error.code(), error.details() or ""
    said = any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
    if code is grpc.StatusCode.UNAVAILABLE and not said:
        return ServiceError(
            code.name, f"{address}: no server answers there, or one with other TLS settings ({_reason(details)})"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not said:
        return ServiceError(code.name, f"{address}: no answer in time; --timeout allows more")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "Concurrent RPC limit" in details:
        return ServiceError(code.name, f"{address}: the server has too many calls to answer; try again later")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return ServiceError(code.name, f"{address}: {details}; give it with --token-file or PIMSERVE_TOKEN")
    requests = details_of(error, error_details_pb2.BadRequest) if said else []
    violations = [
        (violation.field, violation.description) for request in requests for violation in request.field_violations
    ]
    if violations:
        places = [(_WITHIN.sub("", field), message) for field, message in violations]
        details = "\n".join(f"{place}: {message}" if place else message for place, message in places)
    return ServiceError(code.name, details or f"{address}: {code.name}", violations)


def _reason(details: str) -> str:
    """The last, most telling part of what gRPC says of a failed connection."""
    return details.rpartition(": ")[2].strip() or "no reason given"


def validate(scenario: str, overrides: Sequence[str] = (), trace: str = "") -> Call[answers.Validated]:
    """Check a scenario (YAML) without launching it.

    Raises:
        ServiceError: it is not acceptable (`violations` says where), or the server does not answer.
    """
    request = sim.ValidateRequest(scenario=_document(scenario, overrides, trace))
    return Call(request, partial(answers.read, answers.Validated))


def launch(
    scenario: str,
    overrides: Sequence[str] = (),
    trace: str = "",
    *,
    speed: float = 0.0,
    paused: bool = False,
    idempotency_key: str = "",
    on: str = "local",
    shards: int | None = None,
    devices: str | None = None,
    devices_per_actor: int | None = None,
    resource: Sequence[str] = (),
    host_timeout_s: float | None = None,
    labels: Mapping[str, str] | None = None,
) -> Call[answers.Run]:
    """Put a simulation in the queue.

    Args:
        scenario: YAML; empty for the embedded defaults.
        overrides: "path=value" each.
        trace: PATH or FORMAT:PATH, a file or folder below the folder that the server has for traces.
        speed: simulated seconds per second; 0: as fast as possible.
        paused: hold it before its first step.
        idempotency_key: a second launch with the same key gives the run of the first.
        on: where it computes, as `pimserve run --on` has it; the server must allow it.
        shards: processes or actors that run engines, not with local; None: 1.
        devices: how device actors are driven, planned, lockstep or none; None: planned, in a local run none.
        devices_per_actor: simulated devices in each; None: as `pimserve run` has it.
        resource: "NAME=N" each: what a device holds of a Ray cluster's custom resources.
        host_timeout_s: for which one of its processes or actors may be silent before it is replaced; None: 10.
        labels: to find it by.

    Raises:
        ServiceError: there is no such way to drive devices; or the server refuses, or does not answer.
    """
    options = sim.LaunchOptions(
        speed=speed,
        paused=paused,
        on=on,
        shards=shards,
        devices=_device_actors(devices),
        devices_per_actor=devices_per_actor,
        resource=resource,
        host_timeout_s=host_timeout_s,
    )
    request = sim.LaunchRequest(
        scenario=_document(scenario, overrides, trace),
        options=options,
        idempotency_key=idempotency_key or str(uuid.uuid4()),
        labels=labels or {},
    )
    return Call(request, _run_of)


def _device_actors(name: str | None) -> sim.DeviceActors.ValueType:
    """How devices are driven, on the wire.

    Raises:
        ServiceError: there is no such way.
    """
    if name is None:
        return sim.DEVICE_ACTORS_UNSPECIFIED
    ways = {key.rpartition("_")[2].lower(): number for key, number in list(sim.DeviceActors.items())[1:]}
    if name not in ways:
        message = f"must be one of {', '.join(ways)} (got {name!r})"
        raise ServiceError("INVALID_ARGUMENT", f"options.devices: {message}", [("options.devices", message)])
    return ways[name]


def _document(yaml: str, overrides: Sequence[str], trace: str) -> sim.ScenarioDocument:
    """A scenario on the wire.

    Raises:
        ServiceError: no server would take it.
    """
    if (size := len(yaml.encode("utf-8", "replace"))) > MAX_SCENARIO_BYTES:
        message = f"has {size:,} bytes; a server takes at most {MAX_SCENARIO_BYTES:,}"
        raise ServiceError("INVALID_ARGUMENT", f"scenario: {message}", [("scenario.yaml", message)])
    return sim.ScenarioDocument(yaml=yaml, overrides=overrides, trace=trace)


def get(run_id: str) -> Call[answers.Run]:
    """One run."""
    return Call(sim.GetRequest(run_id=run_id), _run_of)


def scenario(run_id: str) -> Call[str]:
    """The scenario of a run, with all defaults and catalogue entries; YAML."""
    return Call(sim.GetRequest(run_id=run_id), lambda answer: str(answer.scenario_yaml))


def summary(run_id: str) -> Call[Summary]:
    """The figures of a run that has finished, as in its summary.json."""

    def read(answer: sim.GetSummaryResponse) -> Summary:
        from pimserve.cluster.run.summary_message import summary_of_message  # noqa: PLC0415 pydantic is slow to import

        return summary_of_message(answer.summary)

    return Call(sim.GetSummaryRequest(run_id=run_id), read)


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs are listed.

    Args:
        states: in one of these; none for all.
        labels: that have all of these.
        name: with this name, in which * stands for any characters; empty for all.
        since: launched then or later.
        until: launched before then.
    """

    states: Sequence[str] = ()
    labels: Mapping[str, str] | None = None
    name: str = ""
    since: datetime | None = None
    until: datetime | None = None


def page(matching: RunFilter, token: str, size: int) -> Call[tuple[list[answers.Run], str]]:
    """A page of runs, and the token of the next."""
    request = sim.ListRequest(
        page_size=size,
        page_token=token,
        states=[sim.RunState.Value(f"RUN_STATE_{state.upper()}") for state in matching.states],
        labels=matching.labels or {},
        name=matching.name,
    )
    if matching.since is not None:
        request.created_from.FromDatetime(matching.since)
    if matching.until is not None:
        request.created_until.FromDatetime(matching.until)
    return Call(request, lambda answer: ([answers.run(run) for run in answer.runs], answer.next_page_token))


def change_speed(run_id: str, speed: float) -> Call[float]:
    """Let a run go on at another speed, 0 for as fast as possible; returns since which simulated time, s."""
    return Call(sim.ChangeSpeedRequest(run_id=run_id, speed=speed), simulated_s_of)


def watch(run_id: str, interval_s: float) -> Call[answers.Run]:
    """A run as it goes: a stream."""
    request = sim.WatchRequest(run_id=run_id, interval_s=interval_s)
    return Call(request, _run_of)


def pause(run_id: str) -> Call[float]:
    """Hold a run; returns the simulated time, s."""
    return Call(sim.PauseRequest(run_id=run_id), simulated_s_of)


def resume(run_id: str) -> Call[float]:
    """Let a run go on; returns the simulated time, s."""
    return Call(sim.ResumeRequest(run_id=run_id), simulated_s_of)


def cancel(run_id: str) -> Call[answers.Run]:
    """End a run without results; it may take until the end of its window."""
    return Call(sim.CancelRequest(run_id=run_id), _run_of)


def continue_(run_id: str) -> Call[answers.Run]:
    """Go on with a run that has failed, from its last checkpoint; one that waits or goes on stays as it is."""
    return Call(sim.ContinueRequest(run_id=run_id), _run_of)


def delete(run_id: str) -> Call[None]:
    """Forget a run that has ended, and its results."""
    return Call(sim.DeleteRequest(run_id=run_id), lambda _: None)


def results(run_id: str, names: Sequence[str]) -> Call[sim.GetResultsResponse]:
    """What it left: a stream."""
    return Call(sim.GetResultsRequest(run_id=run_id, names=names), lambda answer: answer)


def _run_of(answer: Any) -> answers.Run:  # noqa: ANN401 any message with that field
    return answers.run(answer.run)


def simulated_s_of(answer: Any) -> float:  # noqa: ANN401 any message with that field
    """The simulated time of an answer, s."""
    return float(answer.simulated_s)
