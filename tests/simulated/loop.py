"""Time and threads of one seed: tasks of which one runs at a time, and a clock that moves when all of them wait.

A task is what the real program has as a thread, a greenlet here, so that it can be left where it is for good: that is
how a process is killed. Whoever waits parks; which of those that could go on does so is drawn by the seed.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import greenlet

EPOCH_S = 1.7e9  # of the wall clock
_FIRST_S = 1000.0  # of the monotonic one
_MOST_EVENTS = 40_000
_MOST_S = 20_000.0
_YIELD_SHARE = 0.06  # of the calls that need not wait, after which somebody else has a turn


class Killed(BaseException):
    """The process in which this is called is dead: nothing of what it would still do happens."""


class StuckError(Exception):
    """Nothing can go on, or does not come to an end."""


@dataclass(eq=False)
class Process:
    """What the tasks of one process have in common.

    Attributes:
        held: tasks that would go on, were it not stopped (SIGSTOP).
        at_end: called when it ends, whatever ends it.
    """

    name: str
    pid: int
    parent: Process | None = None
    code: int | None = None  # exit code once it has ended
    stopped: bool = False
    tasks: dict[Task, None] = field(default_factory=dict)
    held: list[Task] = field(default_factory=list)
    at_end: list[Callable[[], None]] = field(default_factory=list)
    signals: dict[int, Callable[..., object]] = field(default_factory=dict)  # what it does when it gets one

    @property
    def dead(self) -> bool:
        return self.code is not None


@dataclass(eq=False)
class Task:
    """A thread."""

    name: str
    process: Process
    greenlet: Any = None
    thread: Any = None  # what the program has in hand for it
    ticket: int = 0  # of the wait that is going on
    parked: bool = False
    woken: bool = False
    done: bool = False


class Timer:
    """Something that is to happen."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """All that happens in one seed.

    Args:
        seed: draws all that is left open.
        slice_s: what a turn of a task takes of the clock, on average.
        trace: takes a line for each event.
    """

    def __init__(self, seed: int, slice_s: float, trace: Callable[[str], None] | None = None) -> None:
        self.rng = random.Random(seed)
        self.now_s = _FIRST_S
        self.wall_step_s = 0.0  # by which the wall clock was set
        self.events = 0
        self.digest = 0
        self.findings: list[str] = []  # what must not be
        self.on_event: Callable[[int], None] | None = None
        self.current: Task | None = None
        self.interrupted = False  # the task that runs gives way at its next chance
        self._slice_s = slice_s
        self._trace = trace
        self._hub = greenlet.getcurrent()
        self._ready: list[Task] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = 0
        self._dead: list[Task] = []

    @property
    def wall_s(self) -> float:
        """Seconds since 1970, as the machine has it."""
        return EPOCH_S + self.now_s + self.wall_step_s

    def note(self, kind: str, *what: object) -> None:
        """Something happens: for the trace, the seed's digest, and whoever makes faults."""
        self.events += 1
        line = f"{self.now_s:.6f} {kind} {' '.join(map(str, what))}"
        self.digest = zlib.crc32(line.encode(), self.digest)
        if self._trace is not None:
            self._trace(line)
        if self.on_event is not None:
            self.on_event(self.events)

    def finding(self, text: str) -> None:
        """The seed has failed."""
        self.findings.append(text)
        if self._trace is not None:
            self._trace(f"{self.now_s:.6f} FINDING {text}")

    def at(self, time_s: float, call: Callable[[], None]) -> Timer:
        """Have something done at that time, by nobody's task."""
        timer = Timer(call)
        self._numbers += 1
        heapq.heappush(self._timers, (max(time_s, self.now_s), self._numbers, timer))
        return timer

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """The same, so many seconds from now."""
        return self.at(self.now_s + delay_s, call)

    def spawn(self, process: Process, call: Callable[[], object], name: str) -> Task:
        """Begin a task."""
        task = Task(name, process)
        task.greenlet = greenlet.greenlet(lambda: self._body(task, call), parent=self._hub)
        process.tasks[task] = None
        self._ready.append(task)
        return task

    def _body(self, task: Task, call: Callable[[], object]) -> None:
        try:
            call()
        except (Killed, greenlet.GreenletExit):
            pass
        except BaseException as error:  # noqa: BLE001 the end of a thread, which the program does not see
            if not task.process.dead:
                self.finding(
                    f"a thread of {task.process.name} ({task.name}) ended with {type(error).__name__}: {error}"
                )
        finally:
            task.done = True
            task.process.tasks.pop(task, None)

    def check(self) -> Task:
        """The task that runs; raises Killed if its process has died."""
        task = self.current
        assert task is not None, "called by no task"
        if task.process.code is not None:
            raise Killed
        return task

    def park(self, timeout_s: float | None = None) -> bool:
        """Wait to be woken; whether that was before the time was over."""
        task = self.check()
        task.ticket += 1
        task.parked, task.woken = True, False
        timer = (
            None if timeout_s is None else self.after(max(timeout_s, 0.0), lambda at=task.ticket: self._late(task, at))
        )
        self._leave(task)
        if timer is not None:
            timer.cancel()
        return task.woken

    def wake(self, task: Task) -> None:
        """Let a task that is parked go on."""
        if task.parked:
            task.parked, task.woken = False, True
            self._ready.append(task)

    def _late(self, task: Task, ticket: int) -> None:
        if task.parked and task.ticket == ticket:
            task.parked = False
            self._ready.append(task)

    def give_way(self, share: float = _YIELD_SHARE) -> None:
        """A place where another task may have its turn."""
        task = self.check()
        if self.rng.random() < share or self.interrupted:
            self.interrupted = False
            self._ready.append(task)
            self._leave(task)

    def _leave(self, task: Task) -> None:
        self._hub.switch()
        if task.process.code is not None:
            raise Killed

    def vanish(self) -> None:
        """Called by a task whose process was just killed: it never comes back."""
        self._hub.switch()
        raise Killed

    def end(self, process: Process, code: int) -> None:
        """A process is dead, at once, with all of its tasks."""
        if process.dead:
            return
        process.code = code
        self.note("end", process.name, code)
        self._dead += process.tasks
        process.held.clear()
        for call in process.at_end:
            call()

    def stop(self, process: Process) -> None:
        """SIGSTOP."""
        if process.dead or process.stopped:
            return
        self.note("stop", process.name)
        process.stopped = True

    def go_on(self, process: Process) -> None:
        """SIGCONT."""
        if process.dead or not process.stopped:
            return
        self.note("continue", process.name)
        process.stopped = False
        self._ready += process.held
        process.held.clear()

    def run(self, until: Callable[[], bool]) -> None:
        """Let all go on until something is so.

        Raises:
            StuckError: it never is.
        """
        rng, ready, timers = self.rng, self._ready, self._timers
        turns = 0
        while not until():
            while timers and timers[0][0] <= self.now_s:
                self._fire()
            if not ready:
                if not timers:
                    raise StuckError("nothing can go on")
                self.now_s = max(self.now_s, timers[0][0])
                continue
            at = int(rng.random() * len(ready))
            ready[at], ready[-1] = ready[-1], ready[at]
            task = ready.pop()
            process = task.process
            if process.code is not None or task.done:
                continue
            if process.stopped:
                process.held.append(task)
                continue
            self.now_s += rng.random() * 2 * self._slice_s
            self._resume(task)
            turns += 1
            if turns > _MOST_EVENTS or self.now_s > _FIRST_S + _MOST_S:
                raise StuckError("it does not come to an end")

    def _fire(self) -> None:
        call = heapq.heappop(self._timers)[2].call
        if call is not None:
            call()

    def _resume(self, task: Task) -> None:
        before, self.current = self.current, task
        try:
            task.greenlet.switch()
        finally:
            self.current = before

    def clear(self, processes: Iterable[Process]) -> None:
        """Let go of all tasks: what they would still do does not happen."""
        for process in processes:
            self.end(process, -9)
        for task in self._dead:
            if not task.done and task.greenlet:
                self.current = task
                task.greenlet.throw(Killed)
        self.current = None
        self._dead.clear()
