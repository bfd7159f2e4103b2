"""The least of some values, and of equal ones the next in turn."""

from __future__ import annotations

from collections.abc import Sequence


class LeastInTurn:
    """Remembers whose turn it was."""

    def __init__(self) -> None:
        self._turn = 0

    def state(self) -> int:
        """Whose turn it was."""
        return self._turn

    def restore(self, state: int) -> None:
        """Go on after that one."""
        self._turn = state

    def least(self, values: Sequence[float]) -> int:
        """Where the least of them is, the first one from the next in turn on."""
        self._turn = (self._turn + 1) % len(values)
        least = min(values)
        if least in values[self._turn :]:
            return values.index(least, self._turn)
        return values.index(least)
