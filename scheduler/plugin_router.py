"""Routers of other packages: whatever one does wrong is told with its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from operator import index

from pimserve.errors import InputError, shortened
from pimserve.plugin_calls import named
from pimserve.scheduler.prefix_index import KV_EVENTS, SENT
from pimserve.scheduler.router_protocol import (
    OTHER,
    CountRouter,
    ReplicaView,
    RequestView,
    ViewRouter,
    restore_router,
    router_state,
)

_WHERE = "scheduler.router"
_LONGEST_REASON = 40  # characters


def plugin_router(name: str, entry: EntryPoint) -> CountRouter | ViewRouter:
    """The router that an entry point names: one by counts, or with a method `route` by views.

    Raises:
        InputError: it cannot be loaded, or is no router.
    """
    full_name = f"router {name!r} of {entry.value}"
    with named(_WHERE, full_name, "does not load"):
        router = entry.load()()
    if callable(getattr(router, "route", None)):
        return PluginViewRouter(full_name, router)
    if callable(getattr(router, "pick", None)):
        return PluginCountRouter(full_name, router)
    raise InputError(_WHERE, f"{full_name} has neither a method `route(request, replicas)` nor `pick(outstanding)`")


class _Plugin:
    """What both kinds have in common."""

    def __init__(self, name: str, router: CountRouter | ViewRouter) -> None:
        self._name = name
        self._remembers = router
        self.reason = OTHER

    def state(self) -> object:
        """What it remembers."""
        with named(_WHERE, self._name, "failed to tell its state, which must be plain data as JSON can hold it"):
            return json.loads(json.dumps(router_state(self._remembers)))

    def restore(self, state: object) -> None:
        """Go on from that."""
        with named(_WHERE, self._name, "failed to go on from its state"):
            restore_router(self._remembers, state)

    def _checked(self, picked: object, replicas: int) -> int:
        """What it picked, if that is a replica; why it did, if it says so, is its `reason`."""
        reason = getattr(self._remembers, "reason", OTHER)
        self.reason = reason if isinstance(reason, str) and 0 < len(reason) <= _LONGEST_REASON else OTHER
        try:
            chosen = -1 if isinstance(picked, bool) else index(picked)  # type: ignore[arg-type]
        except TypeError:
            chosen = -1
        if not 0 <= chosen < replicas:
            allowed = f"a whole number from 0 to {replicas - 1}, one of the replicas it was shown, is needed"
            raise InputError(_WHERE, f"{self._name} picked {shortened(repr(picked))}; {allowed}")
        return chosen


class PluginCountRouter(_Plugin):
    """One by counts. It sees a copy of the numbers, so that it cannot change them."""

    def __init__(self, name: str, router: CountRouter) -> None:
        super().__init__(name, router)
        self._router = router

    def pick(self, outstanding: Sequence[int]) -> int:
        """What it picks, if that is a replica."""
        with named(_WHERE, self._name, "failed to pick a replica"):
            picked = self._router.pick(tuple(outstanding))
        return self._checked(picked, len(outstanding))


class PluginViewRouter(_Plugin):
    """One by views."""

    def __init__(self, name: str, router: ViewRouter) -> None:
        super().__init__(name, router)
        self._router = router
        self.prefixes = getattr(router, "prefixes", "")
        if self.prefixes not in ("", SENT, KV_EVENTS):
            allowed = f"{SENT!r}, {KV_EVENTS!r}, or nothing, are allowed"
            raise InputError(_WHERE, f"{name} has prefixes {shortened(repr(self.prefixes))}; {allowed}")
        self.record_blocks = getattr(router, "record_blocks", None)
        blocks = self.record_blocks
        if blocks is not None and (isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1):
            allowed = "a whole number above 0, or None, is allowed"
            raise InputError(_WHERE, f"{name} has record_blocks {shortened(repr(blocks))}; {allowed}")
        self.counts_blocks = bool(getattr(router, "counts_blocks", False))

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        """What it picks, if that is a replica."""
        with named(_WHERE, self._name, "failed to pick a replica"):
            picked = self._router.route(request, tuple(replicas))
        return self._checked(picked, len(replicas))
