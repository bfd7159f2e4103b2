"""Who makes the faults of a seed: which kinds, how many and when is drawn beforehand, by events and not by time."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable

from tests.simulated.loop import Process
from tests.simulated.world import World

_MOST_FAULTS = 8
USER = "user"  # the process of whoever calls the server, which has no faults


def kind_of(process: Process) -> str:
    """What a process is: coordinator, shard, devices, server or worker."""
    return process.name.partition("-")[0]


class Nemesis:
    """Faults of a seed.

    Args:
        there: where it makes them.
        rng: draws them.
        within_events: of the first events of the seed, the last at which one is made.

    Attributes:
        done: how often each kind was made.
    """

    def __init__(self, there: World, rng: random.Random, within_events: int) -> None:
        self._there = there
        self._rng = rng
        self.done: Counter[str] = Counter()
        kinds: dict[str, Callable[[], str | None]] = {
            "kill": self._kill,
            "terminate": self._terminate,
            "stop": self._stop,
            "break": self._break,
            "partition": self._partition,
            "full disk": self._fill,
            "bad disk": self._fail,
            "wall clock": self._step,
            "power": self._lose_power,
        }
        self._kinds = {name: kinds[name] for name in kinds if rng.random() < 0.6}  # of this seed
        count = rng.randint(0, _MOST_FAULTS) if self._kinds else 0
        self._when = sorted(rng.randint(1, within_events) for _ in range(count))
        there.loop.on_event = self._event

    def _event(self, number: int) -> None:
        while self._when and number >= self._when[0]:
            self._when.pop(0)
            name = self._rng.choice(sorted(self._kinds))
            self._there.loop.at(self._there.loop.now_s, lambda name=name: self._make(name))
            self._there.loop.interrupted = True

    def _make(self, name: str) -> None:
        if what := self._kinds[name]():
            self.done[what] += 1

    def rest(self) -> None:
        """No more faults; what is stopped goes on, and what is cut off comes back."""
        self._when.clear()
        self._there.network.heal()
        self._there.disk.full, self._there.disk.failing = False, 0
        for process in self._there.alive():
            self._there.go_on(process)

    def _one(self) -> Process | None:
        """A process of the program: of each kind as often, however many there are."""
        kinds: dict[str, list[Process]] = {}
        for process in self._there.alive():
            if process.name != USER:
                kinds.setdefault(kind_of(process), []).append(process)
        return self._rng.choice(kinds[self._rng.choice(sorted(kinds))]) if kinds else None

    def _kill(self) -> str | None:
        process = self._one()
        if process is None:
            return None
        self._there.kill(process)
        return f"kill {kind_of(process)}"

    def _terminate(self) -> str | None:
        process = self._one()
        if process is None or not process.signals:
            return None
        self._there.signal(process.pid, signal.SIGTERM)
        return "terminate"

    def _stop(self) -> str | None:
        process = self._one()
        if process is None or process.stopped:
            return None
        self._there.stop(process)
        self._there.loop.after(self._rng.expovariate(1 / 20.0), lambda: self._there.go_on(process))
        return "stop"

    def _break(self) -> str | None:
        links = self._there.network.links()
        if not links:
            return None
        self._rng.choice(links).shut("connection reset by peer")
        return "break"

    def _partition(self) -> str | None:
        alive = [process for process in self._there.alive() if process.name != USER]
        if len(alive) < 2:
            return None
        one, other = self._rng.sample(alive, 2)
        self._there.network.cut(one.name, other.name)
        self._there.loop.after(self._rng.expovariate(1 / 15.0), self._there.network.heal)
        return "partition"

    def _fill(self) -> str:
        disk = self._there.disk
        disk.fill()
        self._there.loop.note("full disk")
        self._there.loop.after(self._rng.expovariate(1 / 5.0), lambda: setattr(disk, "full", False))
        return "full disk"

    def _fail(self) -> str:
        self._there.disk.failing = self._rng.choice([1, 1, 1, 2, 5])
        self._there.loop.note("bad disk", self._there.disk.failing)
        return "bad disk"

    def _step(self) -> str:
        step_s = self._rng.choice([-1, 1]) * 10 ** self._rng.uniform(0, 6)
        self._there.loop.wall_step_s += step_s
        self._there.loop.note("wall clock", f"{step_s:.3f}")
        return "wall clock"

    def _lose_power(self) -> str:
        """All is dead at once, and what was not synced may be lost."""
        self._there.loop.note("power")
        for process in self._there.alive():
            if process.name != USER:
                self._there.kill(process)
        self._there.disk.lose_power()
        return "power"
