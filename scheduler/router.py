"""Which replica a request goes to.

A router sees what a real one would: which replicas there are and how many requests each has outstanding. Packages add
routers through the entry point group `pimserve.routers`; each names a class, or a function without arguments that
returns one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from operator import index
from typing import Protocol

from pimserve.errors import InputError, Terminated, shortened

_WHERE = "scheduler.router"


class Router(Protocol):
    """One method: pick a replica. One that remembers anything has `state()`, plain data, and `restore(state)` too."""

    def pick(self, outstanding: Sequence[int]) -> int:
        """Number of the replica for the next request, given the requests outstanding on each."""


class LeastOutstanding:
    """The replica with the fewest outstanding requests; among equals, the next in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def state(self) -> int:
        """Whose turn it was."""
        return self._turn

    def restore(self, state: int) -> None:
        """Go on after that one."""
        self._turn = state

    def pick(self, outstanding: Sequence[int]) -> int:
        """Fewest outstanding."""
        self._turn = (self._turn + 1) % len(outstanding)
        fewest = min(outstanding)
        if fewest in outstanding[self._turn :]:
            return outstanding.index(fewest, self._turn)
        return outstanding.index(fewest)


class PluginRouter:
    """A router of another package: whatever it does wrong is told with its name.

    It sees a copy of the numbers, so that it cannot change them.
    """

    def __init__(self, name: str, entry: EntryPoint) -> None:
        """Raises InputError if it cannot be loaded, or is no router."""
        self._name = f"router {name!r} of {entry.value}"
        with self._named("does not load"):
            self._router: Router = entry.load()()
        if not callable(getattr(self._router, "pick", None)):
            raise InputError(_WHERE, f"{self._name} has no method `pick(outstanding)`")

    def pick(self, outstanding: Sequence[int]) -> int:
        """What it picks, if that is a replica."""
        with self._named("failed to pick a replica"):
            picked = self._router.pick(tuple(outstanding))
        try:
            chosen = -1 if isinstance(picked, bool) else index(picked)
        except TypeError:
            chosen = -1
        if not 0 <= chosen < len(outstanding):
            allowed = f"a whole number from 0 to {len(outstanding) - 1}, one of the replicas it was shown, is needed"
            raise InputError(_WHERE, f"{self._name} picked {shortened(repr(picked))}; {allowed}")
        return chosen

    def state(self) -> object:
        """What it remembers."""
        with self._named("failed to tell its state, which must be plain data as JSON can hold it"):
            return json.loads(json.dumps(router_state(self._router)))

    def restore(self, state: object) -> None:
        """Go on from that."""
        with self._named("failed to go on from its state"):
            restore_router(self._router, state)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Tell who it was."""
        try:
            yield
        except Terminated:
            raise
        except (Exception, SystemExit) as error:  # a package does not end the run
            raise InputError(_WHERE, f"{self._name} {what}: {type(error).__name__}: {error}") from error


ROUND_ROBIN = "round_robin"  # needs no state of the replicas, so they run on their own
_ROUTERS: dict[str, Callable[[], Router]] = {"least_outstanding": LeastOutstanding}
BUILT_IN_ROUTERS = frozenset({ROUND_ROBIN, *_ROUTERS})


def make_router(name: str) -> Router | None:
    """The router of that name; None for round robin.

    Raises:
        InputError: there is no such router, or it does not load.
    """
    if name == ROUND_ROBIN:
        return None
    if name in _ROUTERS:
        return _ROUTERS[name]()
    registered = entry_points(group="pimserve.routers")
    if name in registered.names:
        return PluginRouter(name, registered[name])
    known = ", ".join([ROUND_ROBIN, *_ROUTERS, *sorted(registered.names)])
    raise InputError(_WHERE, f"unknown router {name!r} (known: {known})")


def router_state(router: Router | None) -> object:
    """What a router remembers, as JSON can hold it."""
    return router.state() if router is not None and hasattr(router, "state") else None


def restore_router(router: Router | None, state: object) -> None:
    """Let a router go on from what it remembered."""
    if state is not None and router is not None and hasattr(router, "restore"):
        router.restore(state)
