"""A run that a server launches, a user who pauses and changes it, and both of them through everything."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import yaml

from pimserve.cluster.base.rpc.results_stream import receiving
from pimserve.cluster.run.command_log import COMMANDS_FILE, read_commands
from pimserve.cluster.run.reproduce import read_recorded_run
from pimserve.cluster.run.run import run
from pimserve.cluster.service.launch_options import AllowedPlaces
from pimserve.cluster.service.run_queue import Limits
from pimserve.cluster.service.server import ServerOptions, serve
from pimserve.errors import PimserveError
from pimserve.v1 import scheduler_pb2 as sched
from pimserve.v1 import simulation_pb2 as sim
from pimserve.v1.scheduler_pb2_grpc import SchedulerServiceStub
from pimserve.v1.simulation_pb2_grpc import SimulationServiceStub
from tests.simulated.loop import Process
from tests.simulated.nemesis import USER
from tests.simulated.network import make_channel
from tests.simulated.scenarios import Case, differences
from tests.simulated.world import World

_ADDRESS = "127.0.0.1:50051"
_UP_AGAIN_S = 1.0  # until a server that ended is started again
_AGAIN_S = 1.0
_CALL_S = 30.0
_MOST_TRIES = 200
_TRY_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
}
_ENDED = {sim.RUN_STATE_FINISHED, sim.RUN_STATE_FAILED, sim.RUN_STATE_CANCELLED}
_FS_PER_S = 10**15
_KEPT = {"registry.sqlite3", "registry.sqlite3-journal", "reserve", "server.lock", "runs"}  # in the server's folder


class Served:
    """Server, workers and user.

    Attributes:
        what: is run, in words.
        runs: workers that were started.
        errors: in which the run ended, and from which it was continued.
    """

    within_events = 1500

    def __init__(self, there: World, case: Case, rng: random.Random) -> None:
        self._there = there
        self._case = case
        self._rng = rng
        self._on = rng.choice(["local", "processes"])
        self._options = sim.LaunchOptions(speed=rng.choice([0, 0.3, 2]), paused=rng.random() < 0.3)
        if self._on == "processes":
            self._options.on = self._on
            self._options.shards = rng.choice([1, 2])
        self.what = f"{case.name}: served, {self._on}, speed {self._options.speed:g}, paused {self._options.paused}"
        self._acked: list[tuple[str, int]] = []  # commands, and when they took effect, fs
        self._asked = 0
        self._over = False
        self._got = there.root.parent / "got"  # on the user's disk, which has no faults
        self.errors: list[str] = []

    @property
    def runs(self) -> int:
        return sum(process.name == "worker" for process in self._there.processes.values())

    def play(self, rest: Callable[[], None]) -> None:
        """The user does what it wants; `rest` then ends the faults."""
        loop = self._there.loop
        self._start_server()
        user = self._there.launch(USER, self._user)
        loop.run(lambda: user.dead)
        rest()
        self._over = True
        server = [process for process in self._there.processes.values() if process.name == "server"][-1]
        while server.code != 0:  # what one leaves that is killed at the last moment is for the next
            if server.dead:
                server = self._there.launch("server", self._server)
            self._stop(server)
            loop.run(lambda server=server: server.dead)  # type: ignore[misc]

    def _stop(self, server: Process) -> None:
        """SIGTERM, once it minds it."""
        if not server.dead and 15 not in server.signals:
            self._there.loop.after(0.1, lambda: self._stop(server))
        elif not server.dead:
            self._there.signal(server.pid, 15)

    def _start_server(self) -> None:
        if self._over:
            return
        server = self._there.launch("server", self._server)
        loop = self._there.loop
        server.at_end.append(lambda: loop.after(_UP_AGAIN_S, self._start_server))

    def _server(self) -> int:
        options = ServerOptions(
            listen=_ADDRESS,
            data=self._there.root / "data",
            limits=Limits(running=2, queued=10, disk_bytes=None),
            places=AllowedPlaces(("local", "processes"), 64),
        )
        try:
            serve(options, lambda _: None)
        except (PimserveError, OSError):
            return 2
        return 0

    def _user(self) -> int:
        with make_channel(_ADDRESS) as channel:
            self._simulations, self._scheduler = SimulationServiceStub(channel), SchedulerServiceStub(channel)
            self._launch("the-key")
            held = self._options.paused
            for _ in range(self._rng.randint(0, 4)):
                self._there.loop.park(self._rng.expovariate(1.0))
                held = self._do_something(held=held)
            if held:
                self._until(lambda: self._simulations.Resume(sim.ResumeRequest(run_id=self._id), timeout=_CALL_S))
            self._wait_for_the_end()
            self._fetch()
            self._sure(self._simulations.Delete, sim.DeleteRequest(run_id=self._id), gone=True)
        return 0

    def _do_something(self, *, held: bool) -> bool:
        """Change the run, or try to; returns whether it is held then, as far as is known."""
        of_run = {"run_id": self._id}
        closed = self._case.prepared.scenario.workload.mode == "closed"  # has no rate, nor room for more requests
        kind = self._rng.choice(["hold", "change"] if closed else ["hold", "inject", "inject", "scale", "change"])
        if kind == "hold":
            request = sim.ResumeRequest(**of_run) if held else sim.PauseRequest(**of_run)
            method = self._simulations.Resume if held else self._simulations.Pause
            self._once(method, request)
            return not held
        self._asked += 1
        if kind == "inject":
            lengths = [self._rng.randint(5, 50) for _ in range(self._rng.randint(1, 2))]
            answer = self._once(
                self._scheduler.InjectRequests,
                sched.InjectRequestsRequest(input_tokens=lengths, output_tokens=[3] * len(lengths), **of_run),
            )
        elif kind == "scale":
            answer = self._once(self._scheduler.ScaleRate, sched.ScaleRateRequest(factor=1.5, **of_run))
        else:
            changed = sched.ChangeSchedulerRequest(max_num_seqs=self._rng.randint(1, 8), **of_run)
            answer = self._once(self._scheduler.ChangeScheduler, changed)
        if answer is not None:
            name = {"inject": "inject", "scale": "scale_rate", "change": "change_scheduler"}[kind]
            self._acked.append((name, round(answer.simulated_s * _FS_PER_S)))
        return held

    def _once(self, method: Any, request: Any) -> Any:
        """The answer of a call; None: it failed, and may have been carried out."""
        try:
            return method(request, timeout=_CALL_S)
        except grpc.RpcError as error:
            self._look_at(error)
            return None

    def _sure(self, method: Any, request: Any, *, gone: bool = False) -> Any:
        """The answer of a call that is made until it has one."""
        return self._until(lambda: method(request, timeout=_CALL_S), gone=gone)

    def _until(self, call: Callable[[], Any], *, gone: bool = False) -> Any:
        for _ in range(_MOST_TRIES):
            try:
                return call()
            except grpc.RpcError as error:
                if gone and error.code() is grpc.StatusCode.NOT_FOUND:
                    return None
                self._look_at(error)
                if "is finished" in error.details() or "is failed" in error.details():
                    return None
            self._there.loop.park(_AGAIN_S)
        self._there.loop.finding(f"a call got no answer in {_MOST_TRIES} tries")
        return self._there.exit(self._there.loop.check().process, 1)

    def _look_at(self, error: Any) -> None:
        if error.code() not in {*_TRY_AGAIN, grpc.StatusCode.FAILED_PRECONDITION}:
            self._there.loop.finding(f"a call ended with {error.code()}: {error.details()}")
            self._there.exit(self._there.loop.check().process, 1)

    def _wait_for_the_end(self) -> None:
        while True:
            latest = self._sure(self._simulations.Get, sim.GetRequest(run_id=self._id)).run
            if latest.state == sim.RUN_STATE_PAUSED:  # the order to hold it came after its answer was lost
                self._once(self._simulations.Resume, sim.ResumeRequest(run_id=self._id))
            if latest.state == sim.RUN_STATE_FAILED:
                self.errors.append(latest.error)
                self._continue()
            elif latest.state in _ENDED:
                if latest.state != sim.RUN_STATE_FINISHED:
                    self._there.loop.finding(f"the run ended {sim.RunState.Name(latest.state)}: {latest.error}")
                return
            self._there.loop.park(_AGAIN_S)

    def _continue(self) -> None:
        """A run has failed: it goes on, or is launched again, as the server says."""
        try:
            self._simulations.Continue(sim.ContinueRequest(run_id=self._id), timeout=_CALL_S)
        except grpc.RpcError as error:
            self._look_at(error)
            if "launch it again" in error.details():
                if self._acked:
                    self._there.loop.finding(f"commands were acknowledged, and the run cannot go on: {error.details()}")
                self._sure(self._simulations.Delete, sim.DeleteRequest(run_id=self._id), gone=True)
                self._launch(f"again-{len(self.errors)}")

    def _launch(self, key: str) -> None:
        document = sim.ScenarioDocument(yaml=yaml.safe_dump(self._case.document))
        request = sim.LaunchRequest(scenario=document, options=self._options, idempotency_key=key)
        self._id = self._sure(self._simulations.Launch, request).run.id

    def _fetch(self) -> None:
        """The results, as the user gets them, and the same run once more, offline."""

        def take() -> None:
            with receiving(self._got) as receiver:
                for part in self._simulations.GetResults(sim.GetResultsRequest(run_id=self._id), timeout=_CALL_S):
                    receiver.take(part)

        self._until(take)

    def check(self) -> None:
        """What must hold in the end."""
        there, loop = self._there, self._there.loop
        auditor = there.launch("auditor", self._audit)
        loop.run(lambda: auditor.dead)
        left = {path.name for path in (there.root / "data").iterdir()} - _KEPT
        left |= {path.name for path in (there.root / "data" / "runs").iterdir()}
        left |= {path.name for path in there.root.iterdir()} - {"data"}
        if left:
            loop.finding(f"left behind: {sorted(left)}")

    def _audit(self) -> int:
        loop, got = self._there.loop, self._got
        commands = [(command["command"], at_fs) for at_fs, command in read_commands(got / COMMANDS_FILE)]
        if len(commands) > self._asked:
            loop.finding(f"{len(commands)} commands took effect, {self._asked} were given: {commands}")
        loop.findings += _lost(self._acked, commands)
        if not commands:
            loop.findings += differences(self._case, got)
            return 0
        recorded = read_recorded_run(got)
        recorded.compare(run(recorded.prepared, got.with_name("again"), commands=recorded.commands))
        return 0


def _lost(acked: Sequence[tuple[str, int]], commands: Sequence[tuple[str, int]]) -> list[str]:
    """Commands that were acknowledged and had no effect at that time."""
    rest = list(commands)
    lost = []
    for name, at_fs in acked:
        near = [one for one in rest if one[0] == name and abs(one[1] - at_fs) <= abs(at_fs) * 1e-12]
        if near:
            rest.remove(near[0])
        else:
            lost.append(f"acknowledged, and lost: {name} at {at_fs} fs (there are {list(commands)})")
    return lost
