"""SchedulerService as the server answers it: by asking the worker of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from pimserve.cluster.service.simulations import remaining_s
from pimserve.cluster.service.supervisor import Supervisor
from pimserve.v1 import scheduler_pb2, scheduler_pb2_grpc


class SchedulerForwarder(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Every method of the service, passed on to the worker of the run that the request names."""

    def __init__(self, supervisor: Supervisor) -> None:
        for method in scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].methods:
            setattr(self, method.name, _forward(supervisor, method.name))


def _forward(supervisor: Supervisor, method: str) -> Callable[[Any, grpc.ServicerContext], Any]:
    def forward(request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401 any request of the service
        link = supervisor.link(request.run_id)
        return getattr(link.scheduler, method)(request, timeout=remaining_s(context), metadata=link.metadata)

    return forward
