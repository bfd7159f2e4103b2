"""Scenarios of requests are checked in processes of their own, within limits of time and memory."""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from pimserve.cluster.base.processes import readable
from pimserve.cluster.base.rpc.security import TOKEN_ENV
from pimserve.cluster.base.rpc.statuses import RefusedError, RequestError
from pimserve.cluster.service.launch_options import AllowedPlaces
from pimserve.cluster.service.limits import CheckLimits
from pimserve.cluster.service.scenario_checker import READY, read_message, write_message
from pimserve.cluster.service.worker_supervisor import cause_of
from pimserve.errors import PimserveError
from pimserve.v1 import simulation_pb2 as pb

LOG = logging.getLogger(__name__)
CHECKER = (sys.executable, "-m", "pimserve.cluster.service.scenario_checker")
_LOOK_S = 0.05  # between two looks at whether the caller still waits
_START_S = 60.0
_REMEDY = "a smaller model, fewer devices or another mapping needs less"


class CheckerPool:
    """Usable from any thread. The first process is started at once, so that it is there when it is needed.

    Args:
        traces: folder below which the traces of scenarios may lie; None: nowhere.
        places: where runs may compute.
        limits: of a check.
        command: that starts a process.
    """

    def __init__(
        self, traces: Path | None, places: AllowedPlaces, limits: CheckLimits, command: Sequence[str] = CHECKER
    ) -> None:
        self._limits = limits
        settings = {
            "traces": None if traces is None else str(traces.resolve()),
            "places": {"on": list(places.on), "most_hosts": places.most_hosts},
            "memory_bytes": limits.memory_bytes,
            "time_s": limits.time_s,
        }
        self._command = [*command, json.dumps(settings)]
        self._free: queue.LifoQueue[_Checker] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._calls = threading.BoundedSemaphore(limits.calls)
        self._all: set[_Checker] = set()
        self._starting = 0
        self._closed = False
        self._start()

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._closed = True
            for checker in self._all:
                checker.kill()  # those who wait for one let go of it
        with suppress(queue.Empty):
            while True:
                self._forget(self._free.get_nowait())

    def check(
        self, scenario: pb.ScenarioDocument, options: pb.LaunchOptions | None, context: grpc.ServicerContext
    ) -> Mapping[str, Any]:
        """What `scenario_checker` says of a scenario; when the call of that context ends, so does the work.

        Args:
            scenario: of the request.
            options: how it is to be launched; None: it is not.
            context: of the call.

        Raises:
            PimserveError: the scenario is not acceptable.
            RefusedError: it takes more time or memory than it may, or other scenarios take all the processes.
        """
        request = {
            "yaml": scenario.yaml,
            "overrides": list(scenario.overrides),
            "trace": scenario.trace,
            "options": None if options is None else options.SerializeToString().hex(),
        }
        if not self._calls.acquire(blocking=False):
            raise _busy()
        try:
            with self._borrowed(context) as checker:
                answer = checker.ask(request, self._limits.time_s, context)
        finally:
            self._calls.release()
        return _good(answer, self._limits)

    def _start(self) -> None:
        """Have one more process soon, unless one is coming, or there are as many as there may be."""
        with self._lock:
            if self._closed or self._starting or len(self._all) >= self._limits.processes:
                return
            checker = _Checker(self._command)
            self._all.add(checker)
            self._starting += 1
        threading.Thread(target=self._await, args=(checker,), name="scenario checker", daemon=True).start()

    def _await(self, checker: _Checker) -> None:
        ready = checker.ready()
        with self._lock:
            self._starting -= 1
        if ready and not self._closed:
            self._free.put(checker)
        else:
            self._forget(checker)

    def _forget(self, checker: _Checker) -> None:
        checker.end()
        with self._lock:
            self._all.discard(checker)

    @contextmanager
    def _borrowed(self, context: grpc.ServicerContext) -> Iterator[_Checker]:
        """A process that is free; it is free again after the block, or in its place there is another."""
        checker = self._take(context)
        try:
            yield checker
        finally:
            if checker.alive():
                self._free.put(checker)
            else:
                self._forget(checker)
                self._start()

    def _take(self, context: grpc.ServicerContext) -> _Checker:
        until = time.monotonic() + self._limits.time_s + _START_S
        while context.is_active() and time.monotonic() < until and not self._closed:
            if self._free.empty():
                self._start()
            with suppress(queue.Empty):
                checker = self._free.get(timeout=_LOOK_S)
                if checker.alive():
                    return checker
                self._forget(checker)
        if self._closed:
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        raise _busy()


def _busy() -> RefusedError:
    return RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "other scenarios are being checked; try again later")


class _Checker:
    """One process, which checks one scenario at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        environment = {key: value for key, value in os.environ.items() if key != TOKEN_ENV}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment, "OPENBLAS_NUM_THREADS": "1"},  # threads take memory, of which it has little
            start_new_session=True,  # Ctrl-C is for the server, which ends this process
        )

    def ready(self) -> bool:
        """Wait until it can check; whether it can."""
        return self._answer(_START_S, None) == READY

    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Have it end at once."""
        self._process.kill()

    def end(self) -> None:
        """Kill it, and be done with it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not sent is for nobody
                    pipe.close()

    def ask(self, request: Mapping[str, Any], time_s: float, context: grpc.ServicerContext) -> Mapping[str, Any]:
        """Its answer, or why there is none. It is killed when the time is over, and when the call ends before."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone, as its answer will say
            write_message(self._process.stdin, request)
        answer = self._answer(time_s, context)
        if answer.get("last"):
            self.end()
        return answer

    def _answer(self, time_s: float, context: grpc.ServicerContext | None) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + time_s
        while time.monotonic() < until and (context is None or context.is_active()):
            if readable(self._process.stdout, _LOOK_S):
                answer = read_message(self._process.stdout)
                return {"died": cause_of(self._process.wait()), "last": True} if answer is None else answer
        return {"exceeded": "time", "last": True}


def _good(answer: Mapping[str, Any], limits: CheckLimits) -> Mapping[str, Any]:
    """What was asked for, if the answer is no error.

    Raises:
        PimserveError: that it is of.
    """
    if "exceeded" in answer or "died" in answer:
        most = {
            "memory": f"needs more than {limits.memory_bytes / 1e6:,.0f} MB of memory",
            "time": f"takes longer than {limits.time_s:g} s",
        }
        why = most.get(answer.get("exceeded", ""), f"ended the process that did it ({answer.get('died')})")
        raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"checking this scenario {why}; {_REMEDY}")
    if "internal" in answer:
        LOG.error("%s", answer["internal"])
        raise RuntimeError("a scenario could not be checked")
    if "fields" in answer:
        raise RequestError([(field, message) for field, message in answer["fields"]])
    if "code" in answer:
        raise RefusedError(grpc.StatusCode[answer["code"]], answer["message"])
    if "message" in answer:
        raise PimserveError(answer["message"])
    checked: dict[str, Any] = answer["checked"]
    return checked
