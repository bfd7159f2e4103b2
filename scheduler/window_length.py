"""How much simulated time windows take, so that each lasts on the wall clock about as long as is wanted."""

from __future__ import annotations

_MOST_GROWTH, _LEAST_GROWTH = 2.0, 0.25
_FEW_STEPS = 4
_WORTH = 3  # times what a window costs in any case, it lasts at least
_NEWS = 0.5  # weight of the last window in that


class WindowLength:
    """The length of the next window.

    A window costs something whatever its length: each shard is told of it and answers. Where that alone takes longer
    than is wanted, shorter windows would only be more of them, without end. What it takes is seen in windows with
    hardly a step in them, and windows are made to last longer than that.

    Args:
        wanted_s: that a window should last, wall time.
        first_fs: length of the first one.
        least_fs: shortest length.
        most_fs: longest length.

    Attributes:
        length_fs: of the next window, simulated time.
    """

    def __init__(self, wanted_s: float, first_fs: int, least_fs: int, most_fs: int) -> None:
        self.length_fs = first_fs
        self._wanted_s = wanted_s
        self._range_fs = least_fs, most_fs
        self._cost_s: float | None = None  # of a window with hardly a step

    def lasted(self, wall_s: float, steps: int) -> None:
        """A window has ended, took this long, and had so many steps."""
        wall_s = max(wall_s, 1e-6)
        if steps < _FEW_STEPS:
            self._cost_s = wall_s if self._cost_s is None else self._cost_s + _NEWS * (wall_s - self._cost_s)
        wanted_s = max(self._wanted_s, _WORTH * (self._cost_s or 0.0))
        growth = min(_MOST_GROWTH, max(_LEAST_GROWTH, wanted_s / wall_s))
        least_fs, most_fs = self._range_fs
        self.length_fs = min(most_fs, max(least_fs, int(self.length_fs * growth)))
