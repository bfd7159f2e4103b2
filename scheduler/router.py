"""Which replica a request goes to.

A router sees what a real one would: which replicas there are and how many requests each has outstanding. Packages add
routers through the entry point group `pimserve.routers`; each names a function without arguments that returns one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Protocol

from pimserve.errors import InputError


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


ROUND_ROBIN = "round_robin"  # needs no state of the replicas, so they run on their own
_ROUTERS: dict[str, Callable[[], Router]] = {"least_outstanding": LeastOutstanding}


def make_router(name: str) -> Router | None:
    """The router of that name; None for round robin.

    Raises:
        InputError: there is no such router.
    """
    if name == ROUND_ROBIN:
        return None
    if name in _ROUTERS:
        return _ROUTERS[name]()
    registered = entry_points(group="pimserve.routers")
    if name in registered.names:
        router: Router = registered[name].load()()
        return router
    known = ", ".join([ROUND_ROBIN, *_ROUTERS, *sorted(registered.names)])
    raise InputError("scheduler.router", f"unknown router {name!r} (known: {known})")


def router_state(router: Router | None) -> object:
    """What a router remembers, as JSON can hold it."""
    return router.state() if router is not None and hasattr(router, "state") else None


def restore_router(router: Router | None, state: object) -> None:
    """Let a router go on from what it remembered."""
    if state is not None and router is not None and hasattr(router, "restore"):
        router.restore(state)
