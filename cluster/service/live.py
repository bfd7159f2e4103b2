"""The services as a worker answers them: from the run in its own process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

import grpc

from pimserve.cluster.base.rpc.statuses import RefusedError, RequestError, violations
from pimserve.cluster.run.live_control import LiveControl, RunEndedError, Snapshot
from pimserve.cluster.service.messages import (
    Site,
    latencies_of,
    ledgers_of,
    life_of,
    placement_of,
    progress_of,
    replicas_of,
)
from pimserve.device_models.plan import FS_PER_S
from pimserve.errors import InputError
from pimserve.scheduler.control import ChangeScheduler, Command, Inject, Ledger, RunView, ScaleRate
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import scheduler_pb2_grpc, simulation_pb2_grpc, worker_pb2_grpc
from pimserve.v1 import simulation_pb2 as sim
from pimserve.v1 import worker_pb2 as work

_LONGEST_CALL_S = 300.0
_LEDGERS_S = 1.0  # between two looks at the ledgers, which cost the run some milliseconds
_PATIENCE_S = 1.0  # between two looks at whether a follower is still there
Answer = TypeVar("Answer")
_Context = grpc.ServicerContext


class _OfRun:
    """What answers for the run of this process."""

    def __init__(self, site: Site, control: LiveControl) -> None:
        self._site = site
        self._control = control

    def _check_id(self, run_id: str) -> None:
        if run_id != self._site.run_id:
            raise RefusedError(grpc.StatusCode.NOT_FOUND, f"this is the process of run {self._site.run_id!r}")


class LiveSimulation(_OfRun, simulation_pb2_grpc.SimulationServiceServicer):
    """Pause, Resume, ChangeSpeed and Cancel; the rest is the server's."""

    def Pause(self, request: sim.PauseRequest, context: _Context) -> sim.PauseResponse:  # noqa: N802
        """Hold the run."""
        self._check_id(request.run_id)
        return sim.PauseResponse(simulated_s=_result(self._control.hold, context) / FS_PER_S)

    def Resume(self, request: sim.ResumeRequest, context: _Context) -> sim.ResumeResponse:  # noqa: N802
        """Let it go on."""
        self._check_id(request.run_id)
        return sim.ResumeResponse(simulated_s=_result(self._control.go_on, context) / FS_PER_S)

    def ChangeSpeed(self, request: sim.ChangeSpeedRequest, context: _Context) -> sim.ChangeSpeedResponse:  # noqa: N802
        """Another pace."""
        self._check_id(request.run_id)
        now_fs = _result(lambda: self._control.change_speed(request.speed), context)
        return sim.ChangeSpeedResponse(run=self._run(self._control.snapshot), simulated_s=now_fs / FS_PER_S)

    def Cancel(self, request: sim.CancelRequest, context: _Context) -> sim.CancelResponse:  # noqa: N802
        """End it; answers before it has."""
        self._check_id(request.run_id)
        self._control.cancel()
        return sim.CancelResponse(run=self._run(self._control.snapshot))

    def _run(self, snapshot: Snapshot | None) -> sim.Run:
        run = sim.Run(
            id=self._site.run_id,
            state=sim.RUN_STATE_PAUSED if self._control.held else sim.RUN_STATE_RUNNING,
        )
        if snapshot is not None:
            run.progress.CopyFrom(progress_of(snapshot))
        return run


class Follower(_OfRun, worker_pb2_grpc.WorkerServiceServicer):
    """All of it."""

    def Follow(self, request: work.FollowRequest, context: _Context) -> Iterator[work.FollowResponse]:  # noqa: N802
        """The run's progress, until it ends."""
        self._check_id(request.run_id)
        news = _News(self._site, self._control)
        seen: Snapshot | None = None
        while context.is_active():
            over = self._control.over
            latest = self._control.wait(seen, timeout_s=_PATIENCE_S)
            if latest is None and over:
                return
            if latest is None or (latest is seen and not over):
                continue
            seen = latest
            yield news.of(seen, last=over)
            if over:
                return
            time.sleep(request.interval_s)


class _News:
    """What one follower is told."""

    def __init__(self, site: Site, control: LiveControl) -> None:
        self._control = control
        self._metrics = site.metrics
        self._placement: sched.GetPlacementResponse = placement_of(site)
        self._ledgers: sched.GetLedgersResponse | None = None
        self._asked: Future[tuple[int, list[Ledger]]] | None = None
        self._asked_s = self._metered_s = -math.inf

    def of(self, seen: Snapshot, *, last: bool) -> work.FollowResponse:
        """The run as of that snapshot."""
        news = work.FollowResponse(
            taken_s=time.monotonic(),
            held=self._control.held,
            progress=progress_of(seen),
            replicas=replicas_of(seen),
            latencies=latencies_of(seen, self._control.latencies),
            placement=self._placement,
            ledgers=self._look_at_ledgers(),
        )
        if last or time.monotonic() >= self._metered_s + _LEDGERS_S:
            latest = self._metrics.latest()
            news.metrics = latest.pack()
            if self._metered_s == -math.inf:
                news.metrics_layout = latest.layout.to_json()
            self._metered_s = time.monotonic()
        return news

    def _look_at_ledgers(self) -> sched.GetLedgersResponse | None:
        """The latest that are there; asks for others in time."""
        if self._asked is not None and self._asked.done():
            if self._asked.exception() is None:
                self._ledgers = ledgers_of(*self._asked.result())
            self._asked = None
        if self._asked is None and time.monotonic() >= self._asked_s + _LEDGERS_S:
            self._asked_s = time.monotonic()
            with suppress(RunEndedError):
                self._asked = self._control.ask(_ledgers)
        return self._ledgers


class LiveScheduler(_OfRun, scheduler_pb2_grpc.SchedulerServiceServicer):
    """All of it."""

    def GetReplicas(self, request: sched.GetReplicasRequest, context: _Context) -> sched.GetReplicasResponse:  # noqa: N802
        """Queue and batch of every replica."""
        return replicas_of(self._snapshot(request.run_id))

    def DescribeRequest(  # noqa: N802
        self, request: sched.DescribeRequestRequest, context: _Context
    ) -> sched.DescribeRequestResponse:
        """One request's life."""
        snapshot = self._snapshot(request.run_id)
        return life_of(snapshot, request.request)

    def GetLatencies(self, request: sched.GetLatenciesRequest, context: _Context) -> sched.GetLatenciesResponse:  # noqa: N802
        """Percentiles so far, and SLO attainment."""
        snapshot = self._snapshot(request.run_id)
        return latencies_of(snapshot, self._control.latencies, request.percentiles)

    def GetLedgers(self, request: sched.GetLedgersRequest, context: _Context) -> sched.GetLedgersResponse:  # noqa: N802
        """What devices have done."""
        self._snapshot(request.run_id)
        # Of a run that has ended, what it leaves is about to answer.
        ledgers = _result(lambda: self._control.ask(_ledgers), context, ended=grpc.StatusCode.UNAVAILABLE)
        return ledgers_of(*ledgers)

    def GetDevices(self, request: sched.GetDevicesRequest, context: _Context) -> sched.GetDevicesResponse:  # noqa: N802
        """What each device has done, sent and received."""
        self._snapshot(request.run_id)
        replicas = frozenset(request.replicas)
        return _result(lambda: self._control.ask(lambda view: self._site.devices.answer(view, replicas)), context)

    def GetPlacement(self, request: sched.GetPlacementRequest, context: _Context) -> sched.GetPlacementResponse:  # noqa: N802
        """Which devices each replica has."""
        self._check_id(request.run_id)
        return placement_of(self._site)

    def ChangeScheduler(  # noqa: N802
        self, request: sched.ChangeSchedulerRequest, context: _Context
    ) -> sched.ChangeSchedulerResponse:
        """Settings for the rest of the run."""
        changes = {
            name: getattr(request, name)
            for name in ("router", "max_num_seqs", "max_num_batched_tokens")
            if request.HasField(name)
        }
        if not changes:
            nothing = "nothing to change: give router, max_num_seqs or max_num_batched_tokens"
            raise RequestError([(name, nothing) for name in ("router", "max_num_seqs", "max_num_batched_tokens")])
        now_fs = self._apply(ChangeScheduler(**changes), request.run_id, context)
        return sched.ChangeSchedulerResponse(simulated_s=now_fs / FS_PER_S)

    def ScaleRate(self, request: sched.ScaleRateRequest, context: _Context) -> sched.ScaleRateResponse:  # noqa: N802
        """Requests come faster or slower."""
        now_fs = self._apply(ScaleRate(request.factor), request.run_id, context)
        return sched.ScaleRateResponse(simulated_s=now_fs / FS_PER_S)

    def InjectRequests(self, request: sched.InjectRequestsRequest, context: _Context) -> sched.InjectRequestsResponse:  # noqa: N802
        """More requests."""
        inputs, outputs = tuple(request.input_tokens), tuple(request.output_tokens)
        if len(inputs) != len(outputs):
            raise InputError("output_tokens", f"has {len(outputs)} entries, input_tokens {len(inputs)}")
        self._snapshot(request.run_id)
        command = Inject(inputs, outputs, request.delay_s)

        def inject(view: RunView) -> tuple[int, int]:
            first = view.table.numbers.end
            _give(view, command)
            return view.now_fs, first

        now_fs, first = _result(lambda: self._control.ask(inject), context)
        return sched.InjectRequestsResponse(simulated_s=now_fs / FS_PER_S, first_request=first)

    def _apply(self, command: Command, run_id: str, context: _Context) -> int:
        self._snapshot(run_id)

        def apply(view: RunView) -> int:
            _give(view, command)
            return view.now_fs

        return _result(lambda: self._control.ask(apply), context)

    def _snapshot(self, run_id: str) -> Snapshot:
        self._check_id(run_id)
        snapshot = self._control.snapshot
        if snapshot is None:
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the run is starting; try again")
        return snapshot


def _give(view: RunView, command: Command) -> None:
    """Let a command take effect.

    Raises:
        RequestError: fields of the request are not acceptable.
        RefusedError: it makes no sense for this run.
    """
    try:
        view.apply(command)
    except InputError as error:
        if error.where == "command":
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, error.message) from None
        raise RequestError([(_field(where, wrong), wrong) for where, wrong in violations(error)]) from None


def _field(where: str, wrong: str) -> str:
    """The field of a request that is meant by a place in the scenario; what holds for two of them begins with one."""
    return where.removeprefix("scheduler.") if where != "scheduler" else wrong.partition(" ")[0]


def _ledgers(view: RunView) -> tuple[int, list[Ledger]]:
    return view.now_fs, view.ledgers()


def _result(
    ask: Callable[[], Future[Answer]],
    context: _Context,
    *,
    ended: grpc.StatusCode = grpc.StatusCode.FAILED_PRECONDITION,
) -> Answer:
    """Wait for an answer until the caller's deadline; what has not begun by then does not happen."""
    remaining = context.time_remaining()
    try:
        future = ask()
        return future.result(_LONGEST_CALL_S if remaining is None else min(_LONGEST_CALL_S, remaining))
    except RunEndedError:
        raise RefusedError(ended, "the run has ended") from None
    except TimeoutError:
        if future.cancel():
            message = "the run has not come to the end of its window in time; nothing was done"
        else:
            message = "the answer was not ready in time"
        raise RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None
