"""Who makes the faults of a seed: which kinds, how many and when is drawn beforehand, by events and not by time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from tests.simulated.loop import Process
from tests.simulated.world import World

_WITHIN_EVENTS = 500
_MOST_FAULTS = 8


class Nemesis:
    """Faults of a seed.

    Args:
        there: where it makes them.
        rng: draws them.

    Attributes:
        done: how often each kind was made.
    """

    def __init__(self, there: World, rng: random.Random) -> None:
        self._there = there
        self._rng = rng
        self.done: Counter[str] = Counter()
        kinds: dict[str, Callable[[], bool]] = {
            "kill host": self._kill_host,
            "kill coordinator": self._kill_coordinator,
            "stop": self._stop,
            "break": self._break,
            "partition": self._partition,
            "full disk": self._fill,
            "bad disk": self._fail,
        }
        self._kinds = {name: kinds[name] for name in kinds if rng.random() < 0.6}  # of this seed
        count = rng.randint(0, _MOST_FAULTS) if self._kinds else 0
        self._when = sorted(rng.randint(1, _WITHIN_EVENTS) for _ in range(count))
        there.loop.on_event = self._event

    def _event(self, number: int) -> None:
        while self._when and number >= self._when[0]:
            self._when.pop(0)
            name = self._rng.choice(sorted(self._kinds))
            self._there.loop.at(self._there.loop.now_s, lambda name=name: self._make(name))
            self._there.loop.interrupted = True

    def _make(self, name: str) -> None:
        if self._kinds[name]():
            self.done[name] += 1

    def rest(self) -> None:
        """No more faults; what is stopped goes on, and what is cut off comes back."""
        self._when.clear()
        self._there.network.heal()
        self._there.disk.full, self._there.disk.failing = False, 0
        for process in self._there.alive():
            self._there.go_on(process)

    def _one(self, *, host: bool) -> Process | None:
        alive = [process for process in self._there.alive() if (process.parent is not None) == host]
        return self._rng.choice(alive) if alive else None

    def _kill_host(self) -> bool:
        return self._kill(self._one(host=True))

    def _kill_coordinator(self) -> bool:
        return self._kill(self._one(host=False))

    def _kill(self, process: Process | None) -> bool:
        if process is not None:
            self._there.kill(process)
        return process is not None

    def _stop(self) -> bool:
        process = self._one(host=self._rng.random() < 0.9)
        if process is None or process.stopped:
            return False
        self._there.stop(process)
        self._there.loop.after(self._rng.expovariate(1 / 20.0), lambda: self._there.go_on(process))
        return True

    def _break(self) -> bool:
        links = self._there.network.links()
        if links:
            self._rng.choice(links).shut("connection reset by peer")
        return bool(links)

    def _partition(self) -> bool:
        alive = self._there.alive()
        if len(alive) < 2:
            return False
        one, other = self._rng.sample(alive, 2)
        self._there.network.cut(one.name, other.name)
        self._there.loop.after(self._rng.expovariate(1 / 15.0), self._there.network.heal)
        return True

    def _fill(self) -> bool:
        disk = self._there.disk
        disk.full = True
        self._there.loop.note("full disk")
        self._there.loop.after(self._rng.expovariate(1 / 5.0), lambda: setattr(disk, "full", False))
        return True

    def _fail(self) -> bool:
        self._there.disk.failing = self._rng.choice([1, 1, 1, 2, 5])
        self._there.loop.note("bad disk", self._there.disk.failing)
        return True
