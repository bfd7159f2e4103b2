"""Hosts of a run in simulated processes, with the supervisor of real ones."""

from __future__ import annotations

from pimserve.cluster.distributed.hosts.host_supervisor import HostDiedError
from pimserve.cluster.distributed.hosts.hosting import Host, HostSpec, Started, start_host
from pimserve.cluster.distributed.hosts.process_supervisor import ProcessSupervisor
from tests.simulated.active import world
from tests.simulated.waiting import Bell

_IP = "127.0.0.1"
_START_S = 0.5  # on average


class SimHost:
    """A host from its launch on."""

    def __init__(self, spec: HostSpec) -> None:
        self._spec = spec
        self._host: Host | None = None
        self._started: Started | None = None
        self._grace_s: float | None = None
        self._bell = Bell()
        loop = world().loop
        self.process = world().launch(spec.name, self._main, parent=loop.check().process)
        self.pid = self.process.pid

    def poll(self) -> int | None:
        world().loop.give_way()
        return self.process.code

    def started(self, timeout_s: float) -> Started | None:
        self._bell.wait(lambda: self._started or self.process.dead, timeout_s)
        if self._started is None and self.process.dead:
            raise HostDiedError(f"exit code {self.process.code}")
        return self._started

    def stop(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._bell.ring()

    def kill(self) -> None:
        world().kill(self.process)

    def _main(self) -> int:
        loop = world().loop
        self.process.at_end.append(self._bell.ring)
        loop.park(loop.rng.expovariate(1 / _START_S))
        host, started = start_host(self._spec.to_json(), _IP)
        self._started = Started(started.address, self.process.pid, started.error)
        self._bell.ring()
        self._bell.wait(lambda: self._grace_s is not None)
        if host is not None:
            host.stop(self._grace_s or 0.0)
        return 0


class SimSupervisor(ProcessSupervisor):
    """A `ProcessSupervisor` whose processes are simulated."""

    def _launch(self, name: str, generation: int) -> SimHost:  # type: ignore[override]
        return SimHost(self._specs[name])
