"""In which order replicas that share a tier of the prefix cache are simulated."""

from __future__ import annotations

from collections.abc import Container, Sequence
from heapq import heapify, heappop, heappush

from pimserve.scheduler.engine import Engine
from pimserve.scheduler.requests import FOREVER


class TierTurns:
    """Lets replicas look blocks up in a tier that they share in order of time, of equal times by their numbers.

    Each runs by itself up to the next step in which it may look something up. Of all that have come to one, the
    earliest goes on, as far as the next one waits: whatever others ask of the tier from then on, they ask later.

    Args:
        engines: those that share it, by number, each with its place in `quiet_fs`.
        quiet_fs: of each replica, a time before which no request leaves; kept so.
        written_back: whether requests that decode may write to the tier, by what they displace.
    """

    def __init__(self, engines: Sequence[tuple[int, Engine]], quiet_fs: list[int], *, written_back: bool) -> None:
        self._engines = dict(engines)
        self._quiet_fs = quiet_fs
        self._written_back = written_back

    def __len__(self) -> int:
        """How many share it."""
        return len(self._engines)

    def __contains__(self, index: int) -> bool:
        """Whether the engine of that place is one of them."""
        return index in self._engines

    def advance(self, until_fs: int, lazily: Container[int] = ()) -> None:
        """Run all steps of all of them that start before a time.

        Args:
            until_fs: that time.
            lazily: of these, as `Engine.advance` has it, unless others would not hear of what is written meanwhile.
        """
        lazily = () if self._written_back else lazily
        waiting = [
            (engine.clock, index)
            for index, engine in self._engines.items()
            if engine.clock < until_fs and self._paused(index, until_fs, 0, lazily=index in lazily)
        ]
        heapify(waiting)
        while waiting:
            _, index = heappop(waiting)
            before_fs = FOREVER
            if waiting:
                at_fs, other = waiting[0]
                before_fs = at_fs + (index < other)
            if self._paused(index, until_fs, before_fs, lazily=index in lazily):
                heappush(waiting, (self._engines[index].clock, index))

    def _paused(self, index: int, until_fs: int, before_fs: int, *, lazily: bool) -> bool:
        """Run an engine that may look blocks up before a time; whether it has come to a step to do so later."""
        engine = self._engines[index]
        engine.looks_before_fs = before_fs
        self._quiet_fs[index] = engine.advance(until_fs, lazily=lazily)
        return engine.paused
