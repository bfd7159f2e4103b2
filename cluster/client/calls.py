"""What a client can ask for: the method, the request, how its answer is read, and whether it may be asked twice."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from pimserve.cluster.base.rpc.rules import MAX_SCENARIO_BYTES
from pimserve.cluster.base.rpc.statuses import details_of
from pimserve.cluster.client import answers
from pimserve.errors import PimserveError
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import simulation_pb2 as sim

Answer = TypeVar("Answer")

_SIMULATIONS, _SCHEDULER = "pimserve.v1.SimulationService", "pimserve.v1.SchedulerService"
_IDEMPOTENT = {
    # Launch has a key that tells a second attempt.
    _SIMULATIONS: ("Validate", "Launch", "Get", "List", "Pause", "Resume", "Cancel"),
    _SCHEDULER: ("GetReplicas", "DescribeRequest", "GetLatencies", "GetLedgers", "GetPlacement"),
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
    """One call."""

    service: str
    method: str
    request: Any
    read: Callable[[Any], Answer]

    @property
    def path(self) -> str:
        """As gRPC names it."""
        return f"/{self.service}/{self.method}"


def response_type(call: Call[Any]) -> Any:  # noqa: ANN401 a class of messages
    """The class of a call's answers."""
    return getattr(sim if call.service == _SIMULATIONS else sched, f"{call.method}Response")


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
    found = [(violation.field, violation.description) for request in requests for violation in request.field_violations]
    if found:
        details = "\n".join(f"{field}: {message}" if field else message for field, message in found)
    return ServiceError(code.name, details or f"{address}: {code.name}", found)


def _reason(details: str) -> str:
    """The last, most telling part of what gRPC says of a failed connection."""
    return details.rpartition(": ")[2].strip() or "no reason given"


def scenario(yaml: str, overrides: Sequence[str], trace: str) -> sim.ScenarioDocument:
    """A scenario on the wire.

    Raises:
        ServiceError: no server would take it.
    """
    if (size := len(yaml.encode("utf-8", "replace"))) > MAX_SCENARIO_BYTES:
        message = f"has {size:,} bytes; a server takes at most {MAX_SCENARIO_BYTES:,}"
        raise ServiceError("INVALID_ARGUMENT", f"scenario: {message}", [("scenario.yaml", message)])
    return sim.ScenarioDocument(yaml=yaml, overrides=overrides, trace=trace)


def validate(document: sim.ScenarioDocument) -> Call[answers.Validated]:
    """Is a scenario acceptable?"""
    return Call(_SIMULATIONS, "Validate", sim.ValidateRequest(scenario=document), answers.validated)


def launch(document: sim.ScenarioDocument, speed: float, key: str, *, paused: bool) -> Call[answers.Run]:
    """Put a run in the queue."""
    request = sim.LaunchRequest(
        scenario=document,
        options=sim.LaunchOptions(speed=speed, paused=paused),
        idempotency_key=key or str(uuid.uuid4()),
    )
    return Call(_SIMULATIONS, "Launch", request, lambda answer: answers.run(answer.run))


def get(run_id: str) -> Call[answers.Run]:
    """One run."""
    return Call(_SIMULATIONS, "Get", sim.GetRequest(run_id=run_id), lambda answer: answers.run(answer.run))


def scenario_of(run_id: str) -> Call[str]:
    """Its scenario."""
    return Call(_SIMULATIONS, "Get", sim.GetRequest(run_id=run_id), lambda answer: str(answer.scenario_yaml))


def page(states: Sequence[str], token: str, size: int) -> Call[tuple[list[answers.Run], str]]:
    """A page of runs, and the token of the next."""
    numbers = [sim.RunState.Value(f"RUN_STATE_{state.upper()}") for state in states]
    return Call(
        _SIMULATIONS,
        "List",
        sim.ListRequest(page_size=size, page_token=token, states=numbers),
        lambda answer: ([answers.run(each) for each in answer.runs], answer.next_page_token),
    )


def watch(run_id: str, interval_s: float) -> Call[answers.Run]:
    """A run as it goes: a stream."""
    request = sim.WatchRequest(run_id=run_id, interval_s=interval_s)
    return Call(_SIMULATIONS, "Watch", request, lambda answer: answers.run(answer.run))


def pause(run_id: str) -> Call[float]:
    """Hold a run; says at which simulated time."""
    return Call(_SIMULATIONS, "Pause", sim.PauseRequest(run_id=run_id), _simulated_s)


def resume(run_id: str) -> Call[float]:
    """Let it go on; says from which simulated time."""
    return Call(_SIMULATIONS, "Resume", sim.ResumeRequest(run_id=run_id), _simulated_s)


def cancel(run_id: str) -> Call[answers.Run]:
    """End it."""
    return Call(_SIMULATIONS, "Cancel", sim.CancelRequest(run_id=run_id), lambda answer: answers.run(answer.run))


def delete(run_id: str) -> Call[None]:
    """Forget it."""
    return Call(_SIMULATIONS, "Delete", sim.DeleteRequest(run_id=run_id), lambda _: None)


def results(run_id: str, names: Sequence[str]) -> Call[sim.GetResultsResponse]:
    """What it left: a stream."""
    return Call(_SIMULATIONS, "GetResults", sim.GetResultsRequest(run_id=run_id, names=names), lambda answer: answer)


def replicas(run_id: str) -> Call[answers.Replicas]:
    """Queue and batch of every replica."""
    return Call(_SCHEDULER, "GetReplicas", sched.GetReplicasRequest(run_id=run_id), answers.replicas)


def request(run_id: str, number: int) -> Call[answers.Request]:
    """One request's life."""
    asked = sched.DescribeRequestRequest(run_id=run_id, request=number)
    return Call(_SCHEDULER, "DescribeRequest", asked, answers.request)


def latencies(run_id: str, percentiles: Sequence[float]) -> Call[answers.Latencies]:
    """Latencies so far."""
    asked = sched.GetLatenciesRequest(run_id=run_id, percentiles=percentiles)
    return Call(_SCHEDULER, "GetLatencies", asked, answers.latencies)


def ledgers(run_id: str) -> Call[answers.Ledgers]:
    """What devices have done."""
    return Call(_SCHEDULER, "GetLedgers", sched.GetLedgersRequest(run_id=run_id), answers.ledgers)


def placement(run_id: str) -> Call[answers.Placement]:
    """Which devices replicas have."""
    return Call(_SCHEDULER, "GetPlacement", sched.GetPlacementRequest(run_id=run_id), answers.placement)


def change_scheduler(
    run_id: str, router: str | None, max_num_seqs: int | None, max_num_batched_tokens: int | None
) -> Call[float]:
    """Settings for the rest of the run; says from which simulated time on."""
    asked = sched.ChangeSchedulerRequest(
        run_id=run_id, router=router, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
    )
    return Call(_SCHEDULER, "ChangeScheduler", asked, _simulated_s)


def scale_rate(run_id: str, factor: float) -> Call[float]:
    """Another rate; says from which simulated time on."""
    return Call(_SCHEDULER, "ScaleRate", sched.ScaleRateRequest(run_id=run_id, factor=factor), _simulated_s)


def inject(
    run_id: str, input_tokens: Sequence[int], output_tokens: Sequence[int], delay_s: float
) -> Call[answers.Injected]:
    """More requests."""
    asked = sched.InjectRequestsRequest(
        run_id=run_id, input_tokens=input_tokens, output_tokens=output_tokens, delay_s=delay_s
    )
    return Call(_SCHEDULER, "InjectRequests", asked, answers.injected)


def _simulated_s(answer: Any) -> float:  # noqa: ANN401 any message with that field
    return float(answer.simulated_s)
