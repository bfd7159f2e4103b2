"""SchedulerService as the server answers it: from what the run's worker has told last, else by asking the worker.

Of a run that has finished, from what it has left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import grpc
from google.protobuf.message import Message

from pimserve.cluster.service.ended_runs import ANSWERS, answer
from pimserve.cluster.service.run_queue import RunQueue
from pimserve.cluster.service.simulations import remaining_s
from pimserve.v1 import scheduler_pb2, scheduler_pb2_grpc, worker_pb2

# The part of a worker's news that answers a query. Asked while the run goes at full speed, a worker takes its time.
_PARTS: Mapping[str, Literal["replicas", "latencies", "ledgers", "placement"]] = {
    "GetReplicas": "replicas",
    "GetLatencies": "latencies",
    "GetLedgers": "ledgers",
    "GetPlacement": "placement",
}
_CHANGES = frozenset({"ChangeScheduler", "ScaleRate", "InjectRequests"})


class SchedulerForwarder(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Every method of the service, for the run that the request names."""

    def __init__(self, queue: RunQueue) -> None:
        for method in scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].methods:
            setattr(self, method.name, _forward(queue, method.name))


def _forward(queue: RunQueue, method: str) -> Callable[[Any, grpc.ServicerContext], Any]:
    def forward(request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401 any request of the service
        if method in ANSWERS and queue.record(request.run_id).state == "finished":
            return answer(queue.folder(request.run_id), method, request)
        link = queue.link(request.run_id)
        known = _from_news(link.latest(), method, request)
        if known is not None:
            return known
        try:
            return getattr(link.scheduler, method)(request, timeout=remaining_s(context), metadata=link.metadata)
        finally:
            if method in _CHANGES:
                link.changed()

    return forward


def _from_news(latest: worker_pb2.FollowResponse | None, method: str, request: Any) -> Message | None:  # noqa: ANN401
    part = _PARTS.get(method)
    if latest is None or part is None or not latest.HasField(part) or getattr(request, "percentiles", None):
        return None
    answer: Message = getattr(latest, part)
    return answer
