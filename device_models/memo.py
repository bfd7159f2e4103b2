"""Results of a function, kept by key."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """What a function gives for keys, worked out when one is asked for first; a known one takes no call in Python.

    With `most` keys, all are forgotten before another is kept.
    """

    def __init__(self, function: Callable[[K], V], most: int = 2**62) -> None:
        super().__init__()
        self._function = function
        self._most = most

    def __missing__(self, key: K) -> V:
        value = self._function(key)
        if len(self) >= self._most:
            self.clear()
        self[key] = value
        return value
