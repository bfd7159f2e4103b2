"""Stand-ins for `threading`, `queue` and `time`, with which a task waits in simulated time."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from tests.simulated.active import world
from tests.simulated.loop import Task


class Module:
    """A module with some of its names replaced."""

    def __init__(self, real: Any, **names: Any) -> None:
        self.__dict__.update(names)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _forget(waiting: list[Task] | deque[Task], task: Task) -> None:
    """It does not wait any more; whoever woke it may have struck it off, also just after its time was over."""
    if task in waiting:
        waiting.remove(task)


class Bell:
    """Wakes tasks of whatever process: what happens outside of them, they hear by it."""

    def __init__(self) -> None:
        self._waiting: list[Task] = []

    def ring(self) -> None:
        loop = world().loop
        for task in self._waiting:
            loop.wake(task)
        self._waiting.clear()

    def wait(self, until: Callable[[], object], timeout_s: float | None = None) -> None:
        """Wait until something is so, or for the time."""
        loop = world().loop
        loop.give_way()
        deadline_s = None if timeout_s is None else loop.now_s + timeout_s
        while not until() and (deadline_s is None or loop.now_s < deadline_s):
            task = loop.check()
            self._waiting.append(task)
            loop.park(None if deadline_s is None else deadline_s - loop.now_s)
            _forget(self._waiting, task)


class Lock:
    """Also an RLock."""

    def __init__(self, *, again: bool = False) -> None:
        self._again = again
        self._owner: Task | None = None
        self._count = 0
        self._waiting: deque[Task] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        loop = world().loop
        loop.give_way()
        task = loop.check()
        if self._again and self._owner is task:
            self._count += 1
            return True
        deadline = None if timeout < 0 else loop.now_s + timeout
        while self._owner is not None and not self._owner.process.dead:
            if not blocking or (deadline is not None and loop.now_s >= deadline):
                return False
            self._waiting.append(task)
            loop.park(None if deadline is None else deadline - loop.now_s)
            _forget(self._waiting, task)
        self._owner, self._count = task, 1
        return True

    def release(self) -> None:
        loop = world().loop
        loop.check()
        self._count -= 1
        if not self._count:
            self._free()
        loop.give_way()

    def _free(self) -> None:
        self._owner = None
        if self._waiting:
            world().loop.wake(self._waiting.popleft())

    def locked(self) -> bool:
        return self._owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def give_up(self) -> int:
        """Release it whole, for a condition."""
        count, self._count = self._count, 0
        self._free()
        return count

    def take_back(self, count: int) -> None:
        self.acquire()
        self._count = count


class Condition:
    def __init__(self, lock: Lock | None = None) -> None:
        self._lock = lock if lock is not None else Lock(again=True)
        self.acquire, self.release = self._lock.acquire, self._lock.release
        self._waiting: list[Task] = []

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        loop = world().loop
        task = loop.check()
        self._waiting.append(task)
        count = self._lock.give_up()
        woken = loop.park(timeout)
        _forget(self._waiting, task)
        self._lock.take_back(count)
        return woken

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        loop = world().loop
        deadline = None if timeout is None else loop.now_s + timeout
        result = predicate()
        while not result:
            left = None if deadline is None else deadline - loop.now_s
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        loop = world().loop
        loop.check()
        for task in self._waiting[:n]:
            loop.wake(task)
        del self._waiting[:n]

    def notify_all(self) -> None:
        self.notify(len(self._waiting))


class Event:
    def __init__(self) -> None:
        self._set = False
        self._changed = Condition()

    def is_set(self) -> bool:
        world().loop.give_way()
        return self._set

    def set(self) -> None:
        with self._changed:
            self._set = True
            self._changed.notify_all()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._set, timeout))


class Semaphore:
    def __init__(self, value: int = 1) -> None:
        self._value = value
        self._changed = Condition()

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        with self._changed:
            if not self._changed.wait_for(lambda: self._value > 0, timeout if blocking else 0):
                return False
            self._value -= 1
            return True

    def release(self, n: int = 1) -> None:
        with self._changed:
            self._value += n
            self._changed.notify(n)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Thread:
    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        self.name = name or getattr(target, "__name__", type(self).__name__)
        self.daemon = bool(daemon)
        self._call = (target, tuple(args), dict(kwargs or {}))
        self._task: Task | None = None
        self._over = False
        self._ended = Condition()

    @classmethod
    def of(cls, task: Task) -> Self:
        """The thread that a task is."""
        if task.thread is None:
            task.thread = cls(name=task.name)
            task.thread._task = task
        thread: Self = task.thread
        return thread

    @property
    def ident(self) -> int | None:
        return None if self._task is None else id(self._task)

    def run(self) -> None:
        target, args, kwargs = self._call
        if target is not None:
            target(*args, **kwargs)

    def start(self) -> None:
        loop = world().loop
        process = loop.check().process
        self._task = loop.spawn(process, self._run, self.name)
        self._task.thread = self
        loop.give_way(0.3)

    def _run(self) -> None:
        try:
            self.run()
        finally:
            with self._ended:
                self._over = True
                self._ended.notify_all()

    def is_alive(self) -> bool:
        return self._task is not None and not self._over

    def join(self, timeout: float | None = None) -> None:
        with self._ended:
            self._ended.wait_for(lambda: not self.is_alive(), timeout)


class Timer(Thread):
    def __init__(
        self,
        interval: float,
        function: Callable[..., object],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(target=function, args=args, kwargs=kwargs, name="timer")
        self._interval_s = interval
        self._off = Event()

    def cancel(self) -> None:
        self._off.set()

    def run(self) -> None:
        if not self._off.wait(self._interval_s):
            super().run()


class SimpleQueue:
    def __init__(self, maxsize: int = 0) -> None:
        self._items: deque[Any] = deque()
        self._changed = Condition()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        with self._changed:
            if not self._changed.wait_for(lambda: self._items, timeout if block else 0):
                raise queue.Empty
            return self._items.popleft()

    def get_nowait(self) -> Any:
        return self.get(block=False)

    put_nowait = put

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)


def _sleep(seconds: float) -> None:
    world().loop.park(seconds)


def _now() -> float:
    loop = world().loop
    loop.give_way()
    return loop.now_s


def _main_thread() -> Thread:
    return Thread.of(next(iter(world().loop.check().process.tasks)))


THREADING = Module(
    threading,
    Lock=Lock,
    RLock=lambda: Lock(again=True),
    Condition=Condition,
    Event=Event,
    Semaphore=Semaphore,
    BoundedSemaphore=Semaphore,
    Thread=Thread,
    Timer=Timer,
    current_thread=lambda: Thread.of(world().loop.check()),
    main_thread=_main_thread,
)
QUEUE = Module(queue, SimpleQueue=SimpleQueue, Queue=SimpleQueue)
TIME = Module(
    time,
    sleep=_sleep,
    monotonic=_now,
    perf_counter=_now,
    time=lambda: world().loop.wall_s,
    monotonic_ns=lambda: int(_now() * 1e9),
    time_ns=lambda: int(world().loop.wall_s * 1e9),
)
