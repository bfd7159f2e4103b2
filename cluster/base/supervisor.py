"""Processes and actors that are kept going: launched, watched, replaced when they die, within limits, and stopped."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

SILENCE_S = 10.0
_POLL_S = 0.02


class Child(Protocol):
    """A process or an actor, from its launch on."""

    def poll(self) -> int | None:
        """Its exit code if it has ended; takes milliseconds."""

    def stop(self, grace_s: float) -> None:
        """Tell it to end, calls under way within that time; does not wait for it."""

    def kill(self) -> None:
        """End it at once; it may have ended before."""


ChildType = TypeVar("ChildType", bound=Child)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, and how often to try again; wall times.

    Attributes:
        start_s: in which one must have started; of the first start of all, `each_s` more for each.
        stop_s: that calls under way have at the end.
        silence_s: after which one that answers nothing, busy as it may be, counts as dead.
        deaths: of one within `span_s` that are made good; one more is too many.
    """

    start_s: float = 60.0
    each_s: float = 2.0
    stop_s: float = 5.0
    silence_s: float = SILENCE_S
    deaths: int = 5
    span_s: float = 60.0


class Deaths:
    """Of one child, as far as they count.

    Args:
        patience: says for how long they do.
    """

    def __init__(self, patience: Patience) -> None:
        self._span_s = patience.span_s
        self._at_s: list[float] = []

    def add(self) -> int:
        """Note one; returns how many there were lately."""
        now_s = time.monotonic()
        self._at_s = [*(time_s for time_s in self._at_s if time_s >= now_s - self._span_s), now_s]
        return len(self._at_s)


class Supervisor(ABC, Generic[ChildType]):
    """Children by name. What a kind of child needs at its launch is known to the kind of supervisor.

    Attributes:
        children: those that were launched; some may have ended.
    """

    def __init__(self, patience: Patience) -> None:
        self.children: dict[str, ChildType] = {}
        self._patience = patience
        self._launched: Counter[str] = Counter()
        self._deaths: defaultdict[str, Deaths] = defaultdict(lambda: Deaths(patience))

    def start(self, name: str) -> None:
        """Launch it, for the first time or again.

        Raises:
            OSError: it cannot be launched.
        """
        self.children[name] = self._launch(name, self._launched[name])
        self._launched[name] += 1

    def ended(self) -> dict[str, int]:
        """Exit codes of the children that have ended."""
        polled = ((name, child.poll()) for name, child in list(self.children.items()))
        return {name: code for name, code in polled if code is not None}

    def died(self, name: str) -> int:
        """Note a death; returns how many of it there were lately. More than patience has are not made good."""
        return self._deaths[name].add()

    def stop(self, grace_s: float, margin_s: float = 0.0) -> None:
        """Tell all to end, calls under way within `grace_s`, and wait so long and `margin_s` more."""
        for child in self.children.values():
            child.stop(grace_s)
        deadline = time.monotonic() + grace_s + margin_s
        while len(self.ended()) < len(self.children) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    @abstractmethod
    def _launch(self, name: str, generation: int) -> ChildType:
        """Begin to start one; `generation` were launched by that name before it."""
