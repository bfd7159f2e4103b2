"""A router of a package that goes by what replicas have of a prompt."""

from collections.abc import Sequence
from unittest.mock import patch

import pytest

from pimserve.errors import InputError
from pimserve.scheduler import router as router_module
from pimserve.scheduler.plugin_router import PluginViewRouter
from pimserve.scheduler.router_protocol import (
    ReplicaView,
    RequestView,
)

from .prefix_routing import by_reason, served


class Mine:
    """A router of a package that goes by what it sent where."""

    prefixes = "sent"
    record_blocks: int | None = None
    reason = ""

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> int:
        cached = [view.cached_tokens for view in replicas]
        self.reason = "known" if any(cached) else ""
        return cached.index(max(cached))


def test_a_router_of_a_package_sees_what_those_here_do() -> None:
    with patch.dict(router_module._ROUTERS, {"mine": lambda _: PluginViewRouter("router 'mine'", Mine())}):
        found = served([(100 * number, number % 4, 2) for number in range(20)], "mine")
    assert by_reason(found) == {"other": 4, "known": 16}
    assert found.prefixes is not None
    assert found.prefixes.hit_tokens == 16 * 40
    other = Mine()
    other.prefixes = "guesses"
    with pytest.raises(InputError, match="router 'mine' has prefixes 'guesses'; 'sent', 'kv_events', or nothing"):
        PluginViewRouter("router 'mine'", other)


def test_a_router_of_a_package_says_how_much_its_record_keeps() -> None:
    few = Mine()
    few.record_blocks = 1
    with patch.dict(router_module._ROUTERS, {"mine": lambda _: PluginViewRouter("router 'mine'", few)}):
        found = served([(100 * number, number % 4, 2) for number in range(20)], "mine")
    assert by_reason(found) == {"other": 20}  # of four groups, the one sent before alone is remembered
    for wrong in (0, -1, True, 1.5, "many"):
        few.record_blocks = wrong  # type: ignore[assignment]
        with pytest.raises(InputError, match=f"router 'mine' has record_blocks {wrong!r}; a whole number above 0, or"):
            PluginViewRouter("router 'mine'", few)


def test_a_router_of_a_package_that_goes_by_prefixes_needs_a_prefix_cache() -> None:
    rows = [(100 * number, number % 4, 2) for number in range(4)]
    with patch.dict(router_module._ROUTERS, {"mine": lambda _: PluginViewRouter("router 'mine'", Mine())}):
        message = "scheduler.router: router mine goes by what replicas keep of prompts: set enable_prefix_caching"
        with pytest.raises(InputError, match=message):
            served(rows, "mine", enable_prefix_caching=False)
