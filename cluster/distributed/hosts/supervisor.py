"""Hosts of one run, kept alive: started together, found by name, replaced when they die, stopped in order."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from pimserve.cluster.base.processes import Deaths
from pimserve.cluster.distributed.hosts.hosting import Endpoint, HostSpec, Started
from pimserve.errors import PimserveError

Handle = TypeVar("Handle")


class HostLostError(PimserveError):
    """A host cannot be kept alive: it dies again and again, or cannot be started or placed."""


class HostDiedError(Exception):
    """A host ended while it was started; says how."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, and how often to try again.

    Attributes:
        start_s: wall time in which a host must have started; of the first start of all, `each_s` more for each.
        stop_s: wall time that calls under way have at the end.
        deaths: deaths of one host within `span_s` that are made good; one more fails the run.
    """

    start_s: float = 60.0
    each_s: float = 2.0
    stop_s: float = 5.0
    deaths: int = 5
    span_s: float = 60.0


class Supervisor(ABC, Generic[Handle]):
    """Starts the hosts of a run and keeps the registry name -> `Endpoint`. Used as a context manager.

    Whoever gets UNAVAILABLE from a host, or finds its name in `dead()`, calls `replace` with the generation that it
    talked to, and goes on with the endpoint that it gets. Address and process are new, and what the old host knew is
    gone; when the new one has been told all of it, `caught_up` is called. All methods but entry and exit may be called
    from several threads.

    Attributes:
        recoveries: (name, seconds from the call of `replace` to that of `caught_up`, or so far to the new endpoint) of
            every replacement.
    """

    def __init__(self, specs: Sequence[HostSpec], patience: Patience | None = None) -> None:
        self.recoveries: list[tuple[str, float]] = []
        self._specs: Mapping[str, HostSpec] = {spec.name: spec for spec in specs}
        assert len(self._specs) == len(specs), "names of hosts are unique"
        self._patience = patience or Patience()
        self._handles: dict[str, Handle] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._locks = {name: threading.Lock() for name in self._specs}
        self._asked: dict[str, float] = {}  # when each was missed last
        self._deaths = {name: Deaths(self._patience.deaths, self._patience.span_s) for name in self._specs}
        self._ending = False

    def __enter__(self) -> Self:
        try:
            self._prepare()
            for name, spec in self._specs.items():
                self._handles[name] = self._launch(spec, 0)
            deadline = time.monotonic() + self._patience.start_s + self._patience.each_s * len(self._specs)
            for name in self._specs:
                self._bring_up(name, 0, deadline)
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
                self._another(name, generation + 1, "it stopped answering")
                self._bring_up(name, generation + 1, asked + self._patience.start_s)
                self._asked[name] = asked
                self.recoveries.append((name, time.monotonic() - asked))
            return self._endpoints[name]

    def caught_up(self, name: str) -> None:
        """The host that was put in the place of another is where that one was."""
        with self._locks[name]:
            mine = [index for index, (other, _) in enumerate(self.recoveries) if other == name]
            self.recoveries[mine[-1]] = (name, time.monotonic() - self._asked[name])

    def _bring_up(self, name: str, generation: int, deadline: float) -> None:
        """Wait until the launched host has started, launch another if it dies at that, and enter it in the registry."""
        while True:
            try:
                started = self._started(name, self._handles[name], deadline)
            except HostDiedError as error:
                generation += 1
                self._another(name, generation, str(error))
                continue
            if started.error:
                raise PimserveError(started.error)
            self._endpoints[name] = Endpoint(started.address, started.pid, generation)
            return

    def _another(self, name: str, generation: int, why: str) -> None:
        """End the host and launch its next generation, if it has not died too often."""
        deaths = self._deaths[name]
        deaths.add()
        if deaths.too_many:
            raise HostLostError(f"{name} {deaths}; the last time: {why}")
        self._check()
        self._kill(self._handles[name])
        self._handles[name] = self._launch(self._specs[name], generation)

    def _check(self) -> None:
        """Raise PimserveError if there is no sense in waiting any longer; called every second while we wait."""
        if self._ending:
            raise PimserveError("the run has ended")

    def _too_late(self, name: str, why: str) -> HostLostError:
        return HostLostError(f"{name} did not start in time: {why}")

    @abstractmethod
    def dead(self) -> list[str]:
        """Hosts whose process is known to have ended; takes milliseconds."""

    @abstractmethod
    def _prepare(self) -> None:
        """What comes before the first host."""

    @abstractmethod
    def _launch(self, spec: HostSpec, generation: int) -> Handle:
        """Begin to start a host."""

    @abstractmethod
    def _started(self, name: str, handle: Handle, deadline: float) -> Started:
        """Wait for its start. Raises HostDiedError, or HostLostError at the deadline."""

    @abstractmethod
    def _kill(self, handle: Handle) -> None:
        """End a host at once; it may have ended before."""

    @abstractmethod
    def _end(self, grace_s: float) -> None:
        """Stop all hosts, calls under way within that time, and whatever was made for them."""
