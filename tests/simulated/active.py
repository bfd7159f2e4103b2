"""The seed that is being tried: whoever stands in for a clock, a thread, a channel or a file asks here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulated.world import World

_worlds: list[World] = []


def world() -> World:
    """What there is in this seed."""
    return _worlds[-1]


def enter(world: World) -> None:
    """A seed begins."""
    _worlds[:] = [world]


def leave() -> None:
    """It is over."""
    _worlds.clear()


def simulated() -> bool:
    """Whether a task of a seed asks."""
    return bool(_worlds) and _worlds[-1].loop.current is not None
