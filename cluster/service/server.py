"""`pimserve serve`: the server, from its options to its end."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from pimserve.cluster.base.locks import take_lock
from pimserve.cluster.base.processes import Process
from pimserve.cluster.base.rpc.channels import make_server
from pimserve.cluster.base.rpc.reflection import enable_reflection
from pimserve.cluster.base.rpc.security import NO_TLS, TlsFiles, check_listen, server_credentials
from pimserve.cluster.metrics.endpoint import EndpointOptions, exposing
from pimserve.cluster.service.checker_pool import CheckerPool
from pimserve.cluster.service.data_folder import DataFolder
from pimserve.cluster.service.forwarding import SchedulerForwarder
from pimserve.cluster.service.launch_options import USUAL_PLACES, AllowedPlaces
from pimserve.cluster.service.limits import USUAL_CHECKS, CheckLimits, Limits
from pimserve.cluster.service.run_queue import RunQueue
from pimserve.cluster.service.run_registry import Registry
from pimserve.cluster.service.simulations import Simulations
from pimserve.cluster.service.worker_link import WORKER
from pimserve.errors import InputError
from pimserve.v1 import scheduler_pb2, scheduler_pb2_grpc, simulation_pb2, simulation_pb2_grpc

LOG = logging.getLogger(__name__)
SERVICES = (
    simulation_pb2.DESCRIPTOR.services_by_name["SimulationService"].full_name,
    scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name,
)
_THREADS = 320
_MOST_STREAMS = 256  # the rest of the threads are for calls that end soon
_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a server is told at its start.

    Args:
        listen: HOST:PORT; port 0 for any that is free.
        data: its folder.
        limits: how much it takes on.
        traces: folder below which the traces of scenarios may lie; None: nowhere.
        token: that callers must have; None: none.
        tls: certificate and key, and whose clients it takes.
        insecure: listen beyond this machine without asking callers for anything.
        worker: command that runs a run's folder.
        metrics: where metrics are exposed, and to whom; None: nowhere.
        places: where runs may compute.
        check: what checking a scenario may take.
        announce_metrics: takes the address where they are.
    """

    listen: str
    data: Path
    limits: Limits
    traces: Path | None = None
    token: str | None = None
    tls: TlsFiles = NO_TLS
    insecure: bool = False
    worker: Sequence[str] = WORKER
    metrics: EndpointOptions | None = None
    places: AllowedPlaces = USUAL_PLACES
    check: CheckLimits = USUAL_CHECKS
    announce_metrics: Callable[[str], None] = lambda _: None


@contextmanager
def serving(options: ServerOptions) -> Iterator[str]:
    """Serve while the block runs; yields the address. Runs that go on are stopped at the end, to be continued.

    Raises:
        InputError: an option is not acceptable, or the address or the folder is in use.
    """
    protected = options.token is not None or options.tls.ca is not None
    options.places.check()
    check_listen(options.listen, protected=protected, insecure=options.insecure)
    credentials = server_credentials(options.tls)
    if options.traces is not None and not options.traces.is_dir():
        raise InputError("--traces", f"{options.traces} is no folder")
    with ExitStack() as stack:
        server = make_server(_THREADS, options.token)
        stack.callback(server.stop, None)
        address = _bind(server, options.listen, credentials)  # ports first: without them no folder is made
        queues: list[RunQueue] = []  # one, once there is a folder
        if options.metrics is not None:
            metrics_address = stack.enter_context(
                exposing(options.metrics, lambda: [run for queue in queues for run in queue.metrics()])
            )
        data = DataFolder(options.data)
        lock = take_lock(data.lock)
        if lock is None:
            raise InputError(str(options.data), "another server uses this folder; give another with --data")
        stack.enter_context(lock)
        registry = Registry(data.registry)
        stack.callback(registry.close)
        per_engine = options.metrics is not None and options.metrics.per_engine
        worker = (*options.worker, *(["--metrics-per-engine"] if per_engine else []))
        queue = RunQueue(data, registry, options.limits, worker)
        queues.append(queue)
        checkers = CheckerPool(options.traces, options.places, options.check)
        stack.callback(checkers.close)
        simulations = Simulations(queue, checkers, _MOST_STREAMS)
        simulation_pb2_grpc.add_SimulationServiceServicer_to_server(simulations, server)
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(SchedulerForwarder(queue), server)  # type: ignore[abstract]  # made at run time
        healthy = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        enable_reflection((*SERVICES, health.SERVICE_NAME), server)
        data.write_server(Process.of(os.getpid()).document())
        queue.start()
        server.start()
        for service in ("", *SERVICES):
            healthy.set(service, health_pb2.HealthCheckResponse.SERVING)
        try:
            if options.metrics is not None:
                options.announce_metrics(metrics_address)
            yield address
        finally:
            healthy.enter_graceful_shutdown()
            queue.stop()
            server.stop(_GRACE_S).wait()
            data.server.unlink(missing_ok=True)


def serve(options: ServerOptions, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        options: of the server.
        announce: takes the address once it can be called.
    """
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    with serving(options) as address:
        announce(address)
        over.wait()
        LOG.info("stopping")


def _bind(server: grpc.Server, listen: str, credentials: grpc.ServerCredentials | None) -> str:
    host = listen.rpartition(":")[0]
    try:
        port = server.add_insecure_port(listen) if credentials is None else server.add_secure_port(listen, credentials)
    except RuntimeError:
        port = 0
    if not port:
        raise InputError("--listen", f"{listen} cannot be used: another program listens there, or it is not ours")
    return f"{host}:{port}"
