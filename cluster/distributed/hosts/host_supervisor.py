"""Hosts of one run, kept alive: started together, found by name, replaced when they die, stopped in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

from pimserve.cluster.base.supervisor import Child, Patience, Supervisor
from pimserve.cluster.distributed.hosts.hosting import STOP_MARGIN_S, Endpoint, HostSpec, Started
from pimserve.errors import PimserveError


class HostLostError(PimserveError):
    """A host cannot be kept alive: it dies again and again, or cannot be started or placed."""


class HostDiedError(Exception):
    """A host ended while it was started; says how."""


class HostChild(Child, Protocol):
    """A host from its launch on."""

    def started(self, timeout_s: float) -> Started | None:
        """How its start ended; None if it has not within that time. Raises HostDiedError."""


HostType = TypeVar("HostType", bound=HostChild)


class HostSupervisor(Supervisor[HostType]):
    """Starts the hosts of a run and keeps the registry name -> `Endpoint`. Used as a context manager.

    Whoever gets UNAVAILABLE from a host calls `replace` with the generation that it talked to, and goes on with the
    endpoint that it gets. Address and process are new, and what the old host knew is
    gone; when the new one has been told all of it, `caught_up` is called. All methods but entry and exit may be called
    from several threads.

    Attributes:
        recoveries: (name, seconds from the call of `replace` to that of `caught_up`, or so far to the new endpoint) of
            every replacement.
    """

    def __init__(self, specs: Sequence[HostSpec], patience: Patience | None = None) -> None:
        super().__init__(patience or Patience())
        self.recoveries: list[tuple[str, float]] = []
        self._specs: Mapping[str, HostSpec] = {spec.name: spec for spec in specs}
        assert len(self._specs) == len(specs), "names of hosts are unique"
        self._endpoints: dict[str, Endpoint] = {}
        self._locks = {name: threading.Lock() for name in self._specs}
        self._asked: dict[str, float] = {}  # when each was missed last
        self._ending = False

    def __enter__(self) -> Self:
        try:
            self._prepare()
            for name in self._specs:
                self.start(name)
            deadline = time.monotonic() + self._patience.start_s + self._patience.each_s * len(self._specs)
            for name in self._specs:
                self._bring_up(name, deadline)
        except BaseException:
            self._end(0.0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        for lock in self._locks.values():
            with lock:  # a replacement under way ends first
                pass
        self._end(self._patience.stop_s if kind is None else 0.0)

    def endpoint(self, name: str) -> Endpoint:
        """Where the host is now."""
        return self._endpoints[name]

    def endpoints(self) -> dict[str, Endpoint]:
        """Where all hosts are now."""
        return dict(self._endpoints)

    def replace(self, name: str, generation: int) -> Endpoint:
        """End the host and start another in its place, unless that has been done since `generation`.

        Raises:
            HostLostError: it dies again and again, or cannot be started.
            PimserveError: what ran it has ended.
        """
        asked = time.monotonic()
        with self._locks[name]:
            if self._endpoints[name].generation == generation:
                self._another(name, "it stopped answering")
                self._bring_up(name, asked + self._patience.start_s)
                self._asked[name] = asked
                self.recoveries.append((name, time.monotonic() - asked))
            return self._endpoints[name]

    def caught_up(self, name: str) -> None:
        """The host that was put in the place of another is where that one was."""
        with self._locks[name]:
            mine = [index for index, (other, _) in enumerate(self.recoveries) if other == name]
            self.recoveries[mine[-1]] = (name, time.monotonic() - self._asked[name])

    def _bring_up(self, name: str, deadline: float) -> None:
        """Wait until the launched host has started, launch another if it dies at that, and enter it in the registry."""
        while True:
            try:
                started = self.children[name].started(1.0)
                if started is None:
                    self._check_going_on(name)
            except HostDiedError as error:
                self._another(name, str(error))
                continue
            if started is not None:
                break
            self._check()
            if time.monotonic() > deadline:
                raise HostLostError(f"{name} did not start in time: {self._why_late}")
        if started.error:
            raise PimserveError(started.error)
        self._endpoints[name] = Endpoint(started.address, started.pid, self._launched[name] - 1)

    def _another(self, name: str, why: str) -> None:
        """End the host and launch its next generation, if it has not died too often."""
        if (deaths := self.died(name)) > self._patience.deaths:
            times = f"{deaths} times within {self._patience.span_s:g} s"
            raise HostLostError(f"{name} died {times}; the last time: {why}")
        self._check()
        self.children[name].kill()
        self.start(name)

    def _check_going_on(self, name: str) -> None:
        """Raise HostDiedError if a host that is being started has been stopped for as long as patience has."""

    @property
    def _why_late(self) -> str:
        """Why a host may have taken too long to start."""
        return "its process is still at it"

    def _check(self) -> None:
        """Raise PimserveError if there is no sense in waiting any longer; called every second while we wait."""
        if self._ending:
            raise PimserveError("the run has ended")

    def _prepare(self) -> None:
        """What comes before the first host."""

    def _end(self, grace_s: float) -> None:
        """Stop all hosts, calls under way within that time, and whatever was made for them."""
        self.stop(grace_s, STOP_MARGIN_S)
        for child in self.children.values():
            child.kill()
