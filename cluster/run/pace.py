"""Runs at the pace of the wall clock, or a multiple of it, so that people can watch them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pimserve.scheduler.control import RunView

_FS_PER_S = 10**15
_TICK_S = 0.1  # wall clock between two looks at a paced run
_MOST_LATE_S = 1.0  # a run that falls behind by more does not catch up,
_MOST_TICKS = 64  # and takes longer windows, up to so many times as long, for they may be what it takes its time for


class Pacer:
    """Says how long to wait so that simulated time passes at `speed` times the wall clock, or slower if it cannot.

    Args:
        speed: simulated seconds per second.
        wall: the wall clock, s.

    Attributes:
        window_fs: how long the next window is to be, simulated time.
    """

    def __init__(self, speed: float, wall: Callable[[], float] = time.monotonic) -> None:
        self.window_fs = self._tick_fs = max(1, round(speed * _TICK_S * _FS_PER_S))
        self._fs_per_s = speed * _FS_PER_S
        self._wall = wall
        self._begin: tuple[int, float] | None = None  # simulated time, wall clock

    def delay_s(self, now_fs: int) -> float:
        """Seconds to wait until it is `now_fs`; 0 or less if it is already."""
        wall = self._wall()
        if self._begin is None:
            self._begin = now_fs, wall
        begin_fs, began = self._begin
        delay = began + (now_fs - begin_fs) / self._fs_per_s - wall
        if delay < -_MOST_LATE_S:
            self._begin = now_fs, wall
            self.window_fs = min(2 * self.window_fs, _MOST_TICKS * self._tick_fs)
        elif delay > 0:
            self.window_fs = self._tick_fs
        return delay

    def restart(self) -> None:
        """Count from now on: the run was held."""
        self._begin = None


class PacedControl:
    """Control of a run that only sets its pace.

    Args:
        speed: simulated seconds per second.
    """

    def __init__(self, speed: float) -> None:
        self._pacer = Pacer(speed)

    def next_barrier_fs(self, now_fs: int) -> int:
        """A tenth of a second of the wall clock on."""
        return now_fs + self._pacer.window_fs

    def barrier(self, view: RunView) -> None:
        """Wait until the wall clock is where the run is."""
        delay = self._pacer.delay_s(view.now_fs)
        if delay > 0:
            time.sleep(delay)

    def ended(self, view: RunView) -> None:
        """Nothing is left to wait for."""
