"""A run that is watched, held, changed and ended from other threads while it goes."""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.cluster.run.awaited_gaps import AwaitedGaps
from pimserve.cluster.run.pace import Pacer
from pimserve.cluster.run.running_latencies import RunningLatencies
from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.errors import PimserveError
from pimserve.scheduler.control import Ledger, ReplicaState, RunCancelledError, RunView
from pimserve.scheduler.outcomes import cut_off
from pimserve.scheduler.request_numbers import RequestNumbers
from pimserve.scheduler.requests import FINISHED, WAITING
from pimserve.scheduler.window import MeasuredWindow
from pimserve.scheduler.window_length import WindowLength

Answer = TypeVar("Answer")

_WINDOW_WALL_S = 0.05  # that a window of an unpaced run should last
_FIRST_WINDOW_FS, _LONGEST_WINDOW_FS = FS_PER_S // 10, 1000 * FS_PER_S
_COLLECT_EVERY_S = 10.0
_LEDGERS_S = 1.0  # between two looks at the ledgers, which cost the run some milliseconds


class RunObserver(Protocol):
    """Takes in a run, window by window."""

    def take(self, view: RunView, ledgers: Sequence[Ledger] = ()) -> None:
        """Take in the window that has ended; the ledgers once in a while."""

    def end(self, view: RunView) -> None:
        """Take in what the end of the run leaves."""


class RunEndedError(PimserveError):
    """The run ended before it could answer."""

    def __init__(self) -> None:
        super().__init__("the run has ended")


class StoppedError(BaseException):
    """The run ends for now, to go on later from its checkpoint. Not an Exception: it is nobody's fault."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at the end of a window; does not change.

    `columns` are those of the request table, in which the run goes on writing: of what they hold, that counts which
    happened by `now_fs`. `decisions` are the router's so far, by replica and reason.
    """

    now_fs: int
    window: int
    requests: int
    arrived: int
    finished: int
    rejected: int
    replicas: tuple[ReplicaState, ...]
    columns: Mapping[str, NDArray[Any]]
    measured: MeasuredWindow
    numbers: RequestNumbers
    decisions: Mapping[tuple[int, str], int]


class LiveControl:
    """Control of a run, for other threads to use.

    Args:
        latencies: takes in the requests that leave.
        speed: simulated seconds per second; 0: as fast as possible.
        held: whether it is held before its first step.
        observer: takes in the run for Prometheus, if it is to.
        at_end: takes the run as it was in the end, and the ledgers, before the results are in place.
    """

    def __init__(
        self,
        latencies: RunningLatencies,
        *,
        speed: float = 0.0,
        held: bool = False,
        observer: RunObserver | None = None,
        at_end: Callable[[Snapshot, Sequence[Ledger]], None] | None = None,
    ) -> None:
        self.latencies = latencies
        self.observer = observer
        self._at_end = at_end
        self.snapshot: Snapshot | None = None
        self._pacer = Pacer(speed) if speed else None
        self._changed = threading.Condition()
        self._held = held
        self._cancelled = self._stopped = self._ended = False
        self._asked: deque[tuple[Future[Any], Callable[[RunView], Any]]] = deque()
        self._cut = False  # the window ends at once, because something waits for its end
        self._length = WindowLength(_WINDOW_WALL_S, _FIRST_WINDOW_FS, 1, _LONGEST_WINDOW_FS)
        self._resumed_s: float | None = None  # wall clock
        self._collected_s = time.monotonic()
        self._finished = self._rejected = 0
        self._looked_s = -_LEDGERS_S
        self._gaps_fs = -1  # of when the gaps between tokens are
        self._awaited = AwaitedGaps(wanted=latencies.objectives.of_longest_gaps)

    @property
    def held(self) -> bool:
        """Whether it is to be held."""
        return self._held

    @property
    def over(self) -> bool:
        """Whether nothing is answered any more."""
        return self._ended

    def next_barrier_fs(self, now_fs: int) -> int:
        """At once where something waits for it; else so that windows last 50 ms, or are of the pace.

        Of two windows in a row one is of full length: a run that is asked again and again goes on all the same.
        """
        self._cut = self._held or (bool(self._asked) and not self._cut)
        if not self._cut and self._pacer is None:
            return now_fs + self._length.length_fs
        self._resumed_s = None  # how long such a window lasts says nothing of the others
        return now_fs + (1 if self._cut or self._pacer is None else self._pacer.window_fs)

    def barrier(self, view: RunView) -> None:
        """Show the run, do what was asked for, and wait while it is held or ahead of its pace."""
        self._adapt(view)
        self._take_in(view)
        with self._changed:
            self._publish(view)
            while True:
                self._answer(view)
                if self._cancelled:
                    raise RunCancelledError("cancelled")
                if self._stopped:
                    raise StoppedError
                if self._held:
                    if self._gaps_fs != view.now_fs:  # nobody will look at them again while it is held
                        self._judge(view, view.left[:0], ledgers := view.ledgers())
                        self._set_gaps(view, ledgers)
                    if self._pacer is not None:
                        self._pacer.restart()
                    self._changed.wait()
                elif self._pacer is not None and (delay := self._pacer.delay_s(view.now_fs)) > 0:
                    self._changed.wait(delay)
                else:
                    break
        self._collect_garbage()
        self._resumed_s = time.perf_counter()

    def ended(self, view: RunView) -> None:
        """Show the run as it was in the end."""
        ledgers = self._take_in(view, last=True)
        with self._changed:
            self._publish(view)
            assert self.snapshot is not None
        if self._at_end is not None:
            self._at_end(self.snapshot, ledgers)

    def ask(self, question: Callable[[RunView], Answer]) -> Future[Answer]:
        """Have something done at the end of the window, or at once while the run is held."""
        future: Future[Answer] = Future()
        with self._changed:
            if self._ended:
                raise RunEndedError
            self._asked.append((future, question))
            self._changed.notify_all()
        return future

    def hold(self) -> Future[int]:
        """Hold the run; says the simulated time, fs, at which it is held."""
        return self.ask(lambda view: self._set_held(view, held=True))

    def go_on(self) -> Future[int]:
        """Let the run go on; says the simulated time, fs."""
        return self.ask(lambda view: self._set_held(view, held=False))

    def change_speed(self, speed: float) -> Future[int]:
        """Let the run go on at another speed; 0: as fast as possible. Says since which simulated time, fs."""
        return self.ask(lambda view: self._set_speed(view, speed))

    def cancel(self) -> None:
        """End the run at the end of this window."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End it for now."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def end(self) -> None:
        """The run has ended: nothing is answered any more."""
        with self._changed:
            self._ended = True
            asked, self._asked = self._asked, deque()
            self._changed.notify_all()
        for future, _ in asked:
            if future.set_running_or_notify_cancel():
                future.set_exception(RunEndedError())

    def wait(self, seen: Snapshot | None, timeout_s: float) -> Snapshot | None:
        """The latest snapshot, once it is another than `seen` or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.snapshot is not seen or self._ended, timeout_s)
            return self.snapshot

    def _set_held(self, view: RunView, *, held: bool) -> int:
        self._held = held
        self._publish(view)
        return view.now_fs

    def _set_speed(self, view: RunView, speed: float) -> int:
        self._pacer = Pacer(speed) if speed else None
        return view.now_fs

    def _answer(self, view: RunView) -> None:
        while self._asked:
            future, question = self._asked.popleft()
            if not future.set_running_or_notify_cancel():
                continue  # whoever asked has left
            try:
                answer = question(view)
            except PimserveError as error:
                future.set_exception(error)
            else:
                self._publish(view)  # it may have changed the run
                future.set_result(answer)

    def _take_in(self, view: RunView, *, last: bool = False) -> Sequence[Ledger]:
        """Take in the window that has ended; returns the ledgers, if it was time to look at them."""
        ledgers: list[Ledger] = []
        if last or time.monotonic() >= self._looked_s + _LEDGERS_S:
            ledgers, self._looked_s = view.ledgers(), time.monotonic()
            self._set_gaps(view, ledgers)
        if self.observer is not None:
            self.observer.take(view, ledgers)
            if last:
                self.observer.end(view)
        left = view.left
        if self.snapshot is None:  # fresh, or continued: then others have left before
            left = np.flatnonzero(view.table["status"] != WAITING)
        if len(left):
            finished = int((view.table["status"][left] == FINISHED).sum())
            self._finished += finished
            self._rejected += len(left) - finished
        self._add(view, left, ledgers)
        if last:
            self._add(view, cut_off(view.table.columns), ledgers, view.now_fs // FS_PER_PS)
        return ledgers

    def _add(self, view: RunView, requests: IntArray, ledgers: Sequence[Ledger], end_ps: int = 0) -> None:
        measured = requests[view.measured.holds(view.table.columns, requests)]
        self.latencies.add(view.table.columns, measured, end_ps)
        self._judge(view, measured, ledgers, end_ps)

    def _judge(self, view: RunView, requests: IntArray, ledgers: Sequence[Ledger], end_ps: int = 0) -> None:
        known = self._awaited.known(requests, ledgers, len(view.table))
        self.latencies.judge(view.table.columns, *known, end_ps)

    def _set_gaps(self, view: RunView, ledgers: Sequence[Ledger]) -> None:
        self.latencies.set_gaps((ledger.itl for ledger in ledgers), view.now_fs)
        self._gaps_fs = view.now_fs

    def _publish(self, view: RunView) -> None:
        self.snapshot = Snapshot(
            now_fs=view.now_fs,
            window=view.window,
            requests=len(view.table),
            arrived=view.arrived,
            finished=self._finished,
            rejected=self._rejected,
            replicas=tuple(view.replicas),
            columns=dict(view.table.columns),
            measured=view.measured,
            numbers=view.table.numbers,
            decisions=dict(view.decisions),
        )
        self._changed.notify_all()

    def _adapt(self, view: RunView) -> None:
        if self._resumed_s is not None and self.snapshot is not None:
            steps = total_steps(view.replicas) - total_steps(self.snapshot.replicas)
            self._length.lasted(time.perf_counter() - self._resumed_s, steps)

    def _collect_garbage(self) -> None:
        """A run switches the collector off, which the threads that answer calls need in the long run."""
        if time.monotonic() - self._collected_s > _COLLECT_EVERY_S:
            gc.collect()
            self._collected_s = time.monotonic()


def total_steps(replicas: Sequence[ReplicaState]) -> int:
    """Steps of all replicas together."""
    return sum(state.steps for state in replicas)
