"""SchedulerService as the server answers it: from what the run's worker has told last, else by asking the worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import grpc
from google.protobuf.message import Message

from pimserve.cluster.service.simulations import remaining_s
from pimserve.cluster.service.supervisor import Supervisor
from pimserve.v1 import scheduler_pb2, scheduler_pb2_grpc, worker_pb2

# The part of a worker's news that answers a query. Asked while the run goes at full speed, a worker takes its time.
_TOLD: Mapping[str, Literal["replicas", "latencies", "ledgers", "placement"]] = {
    "GetReplicas": "replicas",
    "GetLatencies": "latencies",
    "GetLedgers": "ledgers",
    "GetPlacement": "placement",
}
_CHANGES = frozenset({"ChangeScheduler", "ScaleRate", "InjectRequests"})


class SchedulerForwarder(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Every method of the service, for the run that the request names."""

    def __init__(self, supervisor: Supervisor) -> None:
        for method in scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].methods:
            setattr(self, method.name, _forward(supervisor, method.name))


def _forward(supervisor: Supervisor, method: str) -> Callable[[Any, grpc.ServicerContext], Any]:
    def forward(request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401 any request of the service
        link = supervisor.link(request.run_id)
        told = _told(link.latest(), method, request)
        if told is not None:
            return told
        try:
            return getattr(link.scheduler, method)(request, timeout=remaining_s(context), metadata=link.metadata)
        finally:
            if method in _CHANGES:
                link.changed()

    return forward


def _told(latest: worker_pb2.FollowResponse | None, method: str, request: Any) -> Message | None:  # noqa: ANN401
    part = _TOLD.get(method)
    if latest is None or part is None or not latest.HasField(part) or getattr(request, "percentiles", None):
        return None
    found: Message = getattr(latest, part)
    return found
