"""Draws that follow from a seed and from how many there were before."""

from __future__ import annotations

from collections.abc import Sequence

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15


def mixed64(x: int) -> int:
    """A hash of a whole number, from 0 to 2^64 - 1: the finaliser of splitmix64 (Steele et al., OOPSLA 2014)."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


class SeededDraws:
    """Whole numbers as splitmix64 draws them; all that must be kept to go on is how many were drawn.

    Args:
        seed: of all draws.
    """

    def __init__(self, seed: int) -> None:
        self._begin = mixed64(seed * _GAMMA + 1)
        self.drawn = 0

    def below(self, end: int) -> int:
        """A number from 0 to `end` - 1, all equally likely but for `end` / 2^64."""
        self.drawn += 1
        return mixed64(self._begin + self.drawn * _GAMMA) * end >> 64

    def one_of(self, equals: Sequence[int]) -> int:
        """One of these, all equally likely; of a single one nothing is drawn."""
        return equals[self.below(len(equals))] if len(equals) > 1 else equals[0]


class Drawing:
    """Who draws, and remembers no more than how many were drawn.

    Args:
        seed: of the draws.
    """

    def __init__(self, seed: int) -> None:
        self._draws = SeededDraws(seed)

    def state(self) -> int:
        """How many were drawn."""
        return self._draws.drawn

    def restore(self, state: int) -> None:
        """Go on after so many."""
        self._draws.drawn = state
