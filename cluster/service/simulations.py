"""SimulationService as the server answers it: from its registry, and from workers."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from pimserve.cluster.base.rpc.results_stream import send_files
from pimserve.cluster.base.rpc.rules import broken
from pimserve.cluster.base.rpc.statuses import RefusedError, RequestError, Violations
from pimserve.cluster.service.checker_pool import CheckerPool
from pimserve.cluster.service.data_folder import RunFolder
from pimserve.cluster.service.ended_runs import finished, summary_of
from pimserve.cluster.service.launch_options import options_of
from pimserve.cluster.service.run_queue import RunQueue
from pimserve.cluster.service.run_registry import ACTIVE, ENDED, STATES, Record, RunFilter, RunRequest, State
from pimserve.cluster.service.worker_link import WorkerLink
from pimserve.errors import PimserveError
from pimserve.v1 import simulation_pb2 as pb
from pimserve.v1 import simulation_pb2_grpc

_PAGE = 50
_INTERVAL_S = 0.5
_PATIENCE_S = 1.0  # between two looks at whether a watcher is still there
_LONGEST_CALL_S = 60.0
_STATES: dict[State, pb.RunState.ValueType] = {
    state: pb.RunState.Value(f"RUN_STATE_{state.upper()}") for state in STATES
}


class Simulations(simulation_pb2_grpc.SimulationServiceServicer):
    """The service.

    Args:
        queue: of runs, which it keeps going.
        checkers: of scenarios.
        most_streams: that may be open at once; each takes a thread.
    """

    def __init__(self, queue: RunQueue, checkers: CheckerPool, most_streams: int) -> None:
        self._queue = queue
        self._checkers = checkers
        self._streams = threading.BoundedSemaphore(most_streams)

    def Validate(self, request: pb.ValidateRequest, context: grpc.ServicerContext) -> pb.ValidateResponse:  # noqa: N802
        """Check a scenario."""
        return pb.ValidateResponse(**self._checkers.check(request.scenario, None, context))

    def Launch(self, request: pb.LaunchRequest, context: grpc.ServicerContext) -> pb.LaunchResponse:  # noqa: N802
        """Put a run in the queue."""
        checked = self._checkers.check(request.scenario, request.options, context)
        without_key = pb.LaunchRequest(scenario=request.scenario, options=request.options, labels=request.labels)
        asked = RunRequest(
            name=checked["name"],
            speed=request.options.speed,
            start_paused=request.options.paused,
            idempotency_key=request.idempotency_key,
            request_digest=hashlib.sha256(without_key.SerializeToString(deterministic=True)).hexdigest(),
            place=json.dumps(checked["place"]),
            labels=json.dumps(dict(request.labels), sort_keys=True),
        )
        record, created = self._queue.launch(checked["scenario"], asked)
        return pb.LaunchResponse(run=self._run(record), created=created)

    def further_violations(self, request: Any, context: grpc.ServicerContext) -> Violations:  # noqa: ANN401 any request
        """What is wrong with the scenario of a request that is not acceptable anyway, as far as that is found out."""
        if not isinstance(request, pb.ValidateRequest | pb.LaunchRequest) or any(broken(request.scenario)):
            return ()
        options = (
            request.options if isinstance(request, pb.LaunchRequest) and not any(broken(request.options)) else None
        )
        try:
            self._checkers.check(request.scenario, options, context)
        except RequestError as error:
            return error.fields
        except PimserveError:  # too much to check, say
            return ()
        return ()

    def Get(self, request: pb.GetRequest, context: grpc.ServicerContext) -> pb.GetResponse:  # noqa: N802
        """One run."""
        record = self._queue.record(request.run_id)
        try:
            scenario = self._queue.folder(record.id).scenario.read_text(encoding="utf-8")
        except FileNotFoundError:
            scenario = ""
        return pb.GetResponse(run=self._run(record), scenario_yaml=scenario)

    def List(self, request: pb.ListRequest, context: grpc.ServicerContext) -> pb.ListResponse:  # noqa: N802
        """A page of runs."""
        size = request.page_size or _PAGE
        before = int(request.page_token) if request.page_token else None
        records = self._queue.registry.page(size + 1, before, _filter_of(request))
        page = records[:size]
        return pb.ListResponse(
            runs=[self._run(record) for record in page],
            next_page_token=str(page[-1].number) if len(records) > size else "",
        )

    def Watch(self, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchResponse]:  # noqa: N802
        """A run as it goes."""
        interval_s = request.interval_s or _INTERVAL_S
        with self._stream():
            context.add_callback(self._queue.notify)  # a watcher that leaves frees its thread at once
            version, sent = -1, None
            while context.is_active():
                record = self._queue.record(request.run_id)
                run = self._run(record)
                if run != sent:
                    yield pb.WatchResponse(run=run)
                    sent, earliest = run, time.monotonic() + interval_s
                if record.state in ENDED:
                    return
                if self._queue.stopping:
                    raise RefusedError(
                        grpc.StatusCode.UNAVAILABLE, "the server is stopping; the run goes on with the next"
                    )
                version = self._queue.wait(version, _PATIENCE_S)
                while (rest := earliest - time.monotonic()) > 0 and context.is_active():
                    time.sleep(min(rest, _PATIENCE_S))

    def Pause(self, request: pb.PauseRequest, context: grpc.ServicerContext) -> pb.PauseResponse:  # noqa: N802
        """Hold a run."""
        response: pb.PauseResponse = self._hold("Pause", request, context)
        return response

    def Resume(self, request: pb.ResumeRequest, context: grpc.ServicerContext) -> pb.ResumeResponse:  # noqa: N802
        """Let a run go on."""
        response: pb.ResumeResponse = self._hold("Resume", request, context)
        return response

    def ChangeSpeed(self, request: pb.ChangeSpeedRequest, context: grpc.ServicerContext) -> pb.ChangeSpeedResponse:  # noqa: N802
        """Another pace."""
        run_id, speed, since_s = request.run_id, request.speed, 0.0
        if not self._queue.pace(run_id, speed, ("queued",)):
            _, answer = self._tell("ChangeSpeed", request, context, lambda: self._queue.pace(run_id, speed, ACTIVE))
            since_s = answer.simulated_s
        return pb.ChangeSpeedResponse(run=self._run(self._queue.record(run_id)), simulated_s=since_s)

    def Cancel(self, request: pb.CancelRequest, context: grpc.ServicerContext) -> pb.CancelResponse:  # noqa: N802
        """End a run."""
        return pb.CancelResponse(run=self._run(self._queue.cancel(request.run_id)))

    def Continue(self, request: pb.ContinueRequest, context: grpc.ServicerContext) -> pb.ContinueResponse:  # noqa: N802
        """Go on with a run that has failed."""
        return pb.ContinueResponse(run=self._run(self._queue.go_on(request.run_id)))

    def Delete(self, request: pb.DeleteRequest, context: grpc.ServicerContext) -> pb.DeleteResponse:  # noqa: N802
        """Forget a run."""
        self._queue.delete(request.run_id)
        return pb.DeleteResponse()

    def GetSummary(self, request: pb.GetSummaryRequest, context: grpc.ServicerContext) -> pb.GetSummaryResponse:  # noqa: N802
        """The figures of a run."""
        return pb.GetSummaryResponse(summary=summary_of(self._finished(request.run_id)))

    def GetResults(  # noqa: N802
        self, request: pb.GetResultsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GetResultsResponse]:
        """What a run left."""
        results = self._finished(request.run_id).results
        with self._stream():
            yield from send_files(results, request.names)

    def _hold(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401 either message
        held = method == "Pause"
        link, answer = self._tell(method, request, context, lambda: self._queue.hold(request.run_id, held=held))
        link.changed()
        link.wait_for_news()  # so that who asks next is not told of a time before
        return answer

    def _tell(
        self,
        method: str,
        request: Any,  # noqa: ANN401 any of them
        context: grpc.ServicerContext,
        note: Callable[[], object],
    ) -> tuple[WorkerLink, Any]:
        """Have a run's worker do something, and note it for those that come after it; returns it and its answer.

        Another one may have begun before that was noted: it is told too.
        """
        while True:
            link = self._queue.link(request.run_id)
            answer = getattr(link.simulation, method)(request, timeout=remaining_s(context), metadata=link.metadata)
            note()
            if not self._queue.replaced(request.run_id, link):
                return link, answer

    def _finished(self, run_id: str) -> RunFolder:
        return finished(self._queue.record(run_id), self._queue.folder(run_id))

    def _run(self, record: Record) -> pb.Run:
        run = pb.Run(
            id=record.id,
            name=record.name,
            state=_STATES[record.state],
            options=options_of(record),
            created_at=_timestamp(record.created_s),
            started_at=_timestamp(record.started_s),
            ended_at=_timestamp(record.ended_s),
            progress=self._queue.progress(record),
            error=self._queue.trouble(record),
            restarts=record.restarts,
            labels=json.loads(record.labels),
        )
        if record.state == "queued":
            run.queue_position = self._queue.queue_position(record)
        return run

    @contextmanager
    def _stream(self) -> Iterator[None]:
        if not self._streams.acquire(blocking=False):
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams are open; try again later")
        try:
            yield
        finally:
            self._streams.release()


def remaining_s(context: grpc.ServicerContext) -> float:
    """Seconds that a call made for this one may take: less than there are, so that its failure can still be told."""
    remaining = context.time_remaining()
    return _LONGEST_CALL_S if remaining is None else min(0.9 * remaining, _LONGEST_CALL_S)


def _filter_of(request: pb.ListRequest) -> RunFilter:
    return RunFilter(
        states=[state for state in STATES if _STATES[state] in request.states],
        name=request.name,
        labels=request.labels,
        since_s=_seconds(request.created_from) if request.HasField("created_from") else None,
        until_s=_seconds(request.created_until) if request.HasField("created_until") else None,
    )


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9


def _timestamp(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e6) * 1000)
    return stamp
