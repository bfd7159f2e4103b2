"""The services as a worker answers them: from the run in its own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import grpc
import numpy as np

from pimserve.cluster.placement import Replica
from pimserve.cluster.service.control import LiveControl, RunEndedError, Snapshot, total_steps
from pimserve.cluster.service.faults import RefusedError
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.errors import InputError
from pimserve.loadgen.spec import PS_PER_S
from pimserve.scheduler.control import ChangeScheduler, Command, Inject, RunView, ScaleRate
from pimserve.scheduler.requests import FINISHED, REJECTED
from pimserve.v1 import scheduler_pb2, scheduler_pb2_grpc, simulation_pb2, simulation_pb2_grpc

_PERCENTILES = (50.0, 90.0, 99.0)
_LONGEST_CALL_S = 300.0
_DEFAULT_INTERVAL_S = 0.5
_BYTES_PER_GB = 10**9
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Site:
    """What a run is about, and where it is.

    Args:
        run_id: of the run.
        model: served.
        device: that serves.
        devices: of one replica.
        replicas: how many.
        replica: any of them.
    """

    run_id: str
    model: str
    device: str
    devices: int
    replicas: int
    replica: Replica


class LiveSimulation(simulation_pb2_grpc.SimulationServiceServicer):
    """Watch, Pause, Resume and Cancel; the rest is the server's."""

    def __init__(self, site: Site, control: LiveControl) -> None:
        self._site = site
        self._control = control

    def Watch(  # noqa: N802 gRPC's name
        self, request: simulation_pb2.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[simulation_pb2.WatchResponse]:
        """The run's progress, until it ends."""
        _of_this_run(request.run_id, self._site.run_id)
        interval_s = request.interval_s or _DEFAULT_INTERVAL_S
        seen: Snapshot | None = None
        said: simulation_pb2.Run | None = None
        while context.is_active() and not self._control.ended:
            seen = self._control.wait(seen, timeout_s=interval_s)
            run = self._run(seen)
            if run != said:
                yield simulation_pb2.WatchResponse(run=run)
                said = run
            time.sleep(interval_s)

    def Pause(  # noqa: N802
        self, request: simulation_pb2.PauseRequest, context: grpc.ServicerContext
    ) -> simulation_pb2.PauseResponse:
        """Hold the run."""
        _of_this_run(request.run_id, self._site.run_id)
        return simulation_pb2.PauseResponse(simulated_s=_result(self._control.hold, context) / FS_PER_S)

    def Resume(  # noqa: N802
        self, request: simulation_pb2.ResumeRequest, context: grpc.ServicerContext
    ) -> simulation_pb2.ResumeResponse:
        """Let it go on."""
        _of_this_run(request.run_id, self._site.run_id)
        return simulation_pb2.ResumeResponse(simulated_s=_result(self._control.go_on, context) / FS_PER_S)

    def Cancel(  # noqa: N802
        self, request: simulation_pb2.CancelRequest, context: grpc.ServicerContext
    ) -> simulation_pb2.CancelResponse:
        """End it; answers before it has."""
        _of_this_run(request.run_id, self._site.run_id)
        self._control.cancel()
        return simulation_pb2.CancelResponse(run=self._run(self._control.snapshot))

    def _run(self, snapshot: Snapshot | None) -> simulation_pb2.Run:
        run = simulation_pb2.Run(
            id=self._site.run_id,
            state=simulation_pb2.RUN_STATE_PAUSED if self._control.held else simulation_pb2.RUN_STATE_RUNNING,
        )
        if snapshot is not None:
            run.progress.CopyFrom(progress_of(snapshot))
        return run


class LiveScheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """All of it."""

    def __init__(self, site: Site, control: LiveControl) -> None:
        self._site = site
        self._control = control

    def GetReplicas(  # noqa: N802
        self, request: scheduler_pb2.GetReplicasRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.GetReplicasResponse:
        """Queue and batch of every replica."""
        snapshot = self._snapshot(request.run_id)
        return scheduler_pb2.GetReplicasResponse(
            simulated_s=snapshot.now_fs / FS_PER_S,
            replicas=[
                scheduler_pb2.Replica(
                    replica=state.replica,
                    pool=state.pool,
                    up=state.up,
                    clock_s=state.clock_fs / FS_PER_S,
                    steps=state.steps,
                    running=state.running,
                    waiting=state.waiting,
                    decoding=state.decoding,
                    context_tokens=state.context_tokens,
                    kv_blocks_used=state.kv_blocks_used,
                    kv_blocks=state.kv_blocks,
                    left=state.left,
                )
                for state in snapshot.replicas
            ],
        )

    def DescribeRequest(  # noqa: N802
        self, request: scheduler_pb2.DescribeRequestRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.DescribeRequestResponse:
        """One request's life."""
        snapshot = self._snapshot(request.run_id)
        if request.request >= snapshot.requests:
            raise InputError("request", f"the run has {snapshot.requests:,} requests, from 0 (got {request.request})")
        return life(snapshot, request.request)

    def GetLatencies(  # noqa: N802
        self, request: scheduler_pb2.GetLatenciesRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.GetLatenciesResponse:
        """Percentiles so far, and SLO attainment."""
        snapshot = self._snapshot(request.run_id)
        found = self._control.latencies.document(tuple(request.percentiles) or _PERCENTILES)
        left, good, limits = found["left"], found["good"], found["limits"]
        return scheduler_pb2.GetLatenciesResponse(
            simulated_s=snapshot.now_fs / FS_PER_S,
            latencies=[
                scheduler_pb2.Latency(
                    name=name,
                    count=latency["count"],
                    mean_s=latency["mean_s"],
                    percentiles=[
                        scheduler_pb2.Percentile(percent=percent, value_s=value)
                        for percent, value in latency["percentiles"].items()
                        if value is not None
                    ],
                )
                for name, latency in found["latencies"].items()
            ],
            slo=scheduler_pb2.SloAttainment(
                left=left, good=good, attainment=good / left if limits and left else None, limits_s=limits
            ),
        )

    def GetLedgers(  # noqa: N802
        self, request: scheduler_pb2.GetLedgersRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.GetLedgersResponse:
        """What devices have done."""
        self._snapshot(request.run_id)
        now_fs, ledgers = _result(lambda: self._control.ask(lambda view: (view.now_fs, view.ledgers())), context)
        return scheduler_pb2.GetLedgersResponse(
            simulated_s=now_fs / FS_PER_S, ledgers=[scheduler_pb2.Ledger(**ledger) for ledger in ledgers]
        )

    def GetPlacement(  # noqa: N802
        self, request: scheduler_pb2.GetPlacementRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.GetPlacementResponse:
        """Which devices each replica has."""
        snapshot = self._snapshot(request.run_id)
        site = self._site
        return scheduler_pb2.GetPlacementResponse(
            model=site.model,
            device=site.device,
            replicas=[
                scheduler_pb2.ReplicaPlacement(
                    replica=state.replica,
                    pool=state.pool,
                    first_device=state.replica * site.devices,
                    devices=site.devices,
                    parallelism={key: str(value) for key, value in site.replica.parallelism.items()},
                    kv_capacity_tokens=site.replica.kv_capacity_tokens,
                    weights_gb_per_device=site.replica.weight_bytes_per_device / _BYTES_PER_GB,
                )
                for state in snapshot.replicas
            ],
        )

    def ChangeScheduler(  # noqa: N802
        self, request: scheduler_pb2.ChangeSchedulerRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.ChangeSchedulerResponse:
        """Settings for the rest of the run."""
        changes = {
            name: getattr(request, name)
            for name in ("router", "max_num_seqs", "max_num_batched_tokens")
            if request.HasField(name)
        }
        if not changes:
            raise InputError("", "nothing to change: give router, max_num_seqs or max_num_batched_tokens")
        now_fs = self._apply(ChangeScheduler(**changes), request.run_id, context)
        return scheduler_pb2.ChangeSchedulerResponse(simulated_s=now_fs / FS_PER_S)

    def ScaleRate(  # noqa: N802
        self, request: scheduler_pb2.ScaleRateRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.ScaleRateResponse:
        """Requests come faster or slower."""
        now_fs = self._apply(ScaleRate(request.factor), request.run_id, context)
        return scheduler_pb2.ScaleRateResponse(simulated_s=now_fs / FS_PER_S)

    def InjectRequests(  # noqa: N802
        self, request: scheduler_pb2.InjectRequestsRequest, context: grpc.ServicerContext
    ) -> scheduler_pb2.InjectRequestsResponse:
        """More requests."""
        inputs, outputs = tuple(request.input_tokens), tuple(request.output_tokens)
        if len(inputs) != len(outputs):
            raise InputError("output_tokens", f"has {len(outputs)} entries, input_tokens {len(inputs)}")
        self._snapshot(request.run_id)
        command = Inject(inputs, outputs, request.delay_s)

        def inject(view: RunView) -> tuple[int, int]:
            view.apply(command)
            arrival_ps = view.now_fs // FS_PER_PS + round(command.delay_s * PS_PER_S)
            end = int(np.searchsorted(view.table["arrival_ps"], arrival_ps, side="right"))
            return view.now_fs, end - len(inputs)

        now_fs, first = _result(lambda: self._control.ask(inject), context)
        return scheduler_pb2.InjectRequestsResponse(simulated_s=now_fs / FS_PER_S, first_request=first)

    def _apply(self, command: Command, run_id: str, context: grpc.ServicerContext) -> int:
        self._snapshot(run_id)

        def apply(view: RunView) -> int:
            view.apply(command)
            return view.now_fs

        return _result(lambda: self._control.ask(apply), context)

    def _snapshot(self, run_id: str) -> Snapshot:
        _of_this_run(run_id, self._site.run_id)
        snapshot = self._control.snapshot
        if snapshot is None:
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the run is starting; try again")
        return snapshot


def progress_of(snapshot: Snapshot) -> simulation_pb2.Progress:
    """How far a run is."""
    return simulation_pb2.Progress(
        simulated_s=snapshot.now_fs / FS_PER_S,
        requests=snapshot.requests,
        arrived=snapshot.arrived,
        finished=snapshot.finished,
        rejected=snapshot.rejected,
        running=sum(state.running for state in snapshot.replicas),
        waiting=sum(state.waiting for state in snapshot.replicas),
        steps=total_steps(snapshot.replicas),
        windows=snapshot.window,
    )


def life(snapshot: Snapshot, request: int) -> scheduler_pb2.DescribeRequestResponse:
    """What has happened to a request by the time of the snapshot.

    The run may have written what happens later meanwhile; that does not count.
    """
    now_ps = snapshot.now_fs // FS_PER_PS
    row = {name: int(column[request]) for name, column in snapshot.columns.items()}
    arrived = 0 <= row["arrival_ps"] <= now_ps

    def happened(name: str) -> float | None:
        time_ps = row[f"{name}_ps"]
        return time_ps / PS_PER_S if arrived and 0 <= time_ps <= now_ps else None

    scheduled, first_token = happened("first_scheduled"), happened("first_token")
    finish = happened("finish") if row["status"] == FINISHED else None
    state = scheduler_pb2.REQUEST_STATE_EXPECTED
    if row["status"] == REJECTED and arrived:
        state = scheduler_pb2.REQUEST_STATE_REJECTED
    elif finish is not None:
        state = scheduler_pb2.REQUEST_STATE_FINISHED
    elif first_token is not None:
        state = scheduler_pb2.REQUEST_STATE_DECODE
    elif scheduled is not None:
        state = scheduler_pb2.REQUEST_STATE_PREFILL
    elif arrived:
        state = scheduler_pb2.REQUEST_STATE_WAITING
    return scheduler_pb2.DescribeRequestResponse(
        simulated_s=snapshot.now_fs / FS_PER_S,
        request=request,
        state=state,
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        replica=row["replica"] if arrived and state != scheduler_pb2.REQUEST_STATE_REJECTED else None,
        arrival_s=row["arrival_ps"] / PS_PER_S if row["arrival_ps"] >= 0 else None,
        first_scheduled_s=scheduled,
        first_token_s=first_token,
        finish_s=finish,
        preemptions=row["preemptions"] if finish is not None else None,
    )


def _of_this_run(wanted: str, here: str) -> None:
    if wanted != here:
        raise RefusedError(grpc.StatusCode.NOT_FOUND, f"this is the process of run {here!r}")


def _result(ask: Callable[[], Future[Answer]], context: grpc.ServicerContext) -> Answer:
    """Wait for an answer until the caller's deadline; what has not begun by then does not happen."""
    remaining = context.time_remaining()
    try:
        future = ask()
        return future.result(_LONGEST_CALL_S if remaining is None else min(_LONGEST_CALL_S, remaining))
    except RunEndedError:
        raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, "the run has ended") from None
    except TimeoutError:
        if future.cancel():
            message = "the run has not come to the end of its window in time; nothing was done"
        else:
            message = "the answer was not ready in time"
        raise RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None
