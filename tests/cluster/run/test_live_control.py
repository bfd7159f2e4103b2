"""The control of a live run, driven by a loop that stands in for the clock of a run."""

import threading
import time

import numpy as np
import pytest

from pimserve.cluster.run.live_control import LiveControl, RunEndedError, StoppedError
from pimserve.cluster.run.running_latencies import RunningLatencies
from pimserve.errors import InputError
from pimserve.loadgen.objectives import Objectives
from pimserve.loadgen.slo import SloSpec
from pimserve.scheduler.control import ReplicaState, RunCancelledError, RunView, ScaleRate
from pimserve.scheduler.requests import FINISHED, REJECTED, RequestTable
from pimserve.scheduler.window import MeasuredWindow

S = 10**15  # fs
PATIENCE_S = 5.0


class Loop(threading.Thread):
    """Windows, one after the other; in each a request finishes, and every fifth is rejected."""

    def __init__(self, control, windows=10**6, wall_s=0.0, done_before=0):
        super().__init__(daemon=True)
        self.control = control
        self.windows = windows
        self.wall_s = wall_s
        self.table = RequestTable(np.zeros(1000, np.int64), np.full(1000, 10), np.full(1000, 5), 100)
        self.applied = []
        self.ends = []
        self.error = None
        self.leave(range(done_before))
        self.done = done_before

    def leave(self, requests):
        for request in requests:
            self.table["status"][request] = REJECTED if request % 5 == 4 else FINISHED
            for name in ("first_scheduled_ps", "first_token_ps", "finish_ps"):
                self.table[name][request] = 1

    def run(self):
        now = 0
        try:
            for window in range(1, self.windows + 1):
                now = max(self.control.next_barrier_fs(now), now + 1)
                time.sleep(self.wall_s)
                left = np.arange(self.done, min(self.done + 1, len(self.table)))
                self.leave(left)
                self.done += len(left)
                self.ends.append(now)
                self.control.barrier(self.view(now, window, left))
        except BaseException as error:  # noqa: BLE001
            self.error = error
        self.control.end()

    def view(self, now, window, left):
        state = ReplicaState(0, "", True, now, 100 * window, 1, 2, 1, 10, 1, 10, self.done, 3, 9, 20, 0.1)
        told = (now, window, self.done, self.table, left, [state], self.apply)
        return RunView(*told, lambda: [], MeasuredWindow())

    def apply(self, command):
        if command == ScaleRate(13):
            raise InputError("factor", "is unlucky")
        self.applied.append(command)


def live(**options):
    return LiveControl(RunningLatencies(Objectives(SloSpec())), **options)


@pytest.fixture
def start():
    loops = []

    def run(control, **options):
        loop = Loop(control, **options)
        loops.append(loop)
        loop.start()
        return loop

    yield run
    for loop in loops:
        loop.control.cancel()
        loop.join(PATIENCE_S)
        assert not loop.is_alive()


def test_windows_come_to_last_about_fifty_milliseconds():
    control = live()
    loop = Loop(control)
    now, window, lengths = 0, 0, []
    for _ in range(30):  # a run that simulates 2 s in a second
        end = control.next_barrier_fs(now)
        lengths.append((end - now) / S)
        time.sleep(min(1.0, lengths[-1] / 2))
        now, window = end, window + 1
        control.barrier(loop.view(now, window, np.zeros(0, np.int64)))
    assert lengths[-1] == pytest.approx(0.1, rel=0.3)


def test_windows_that_end_for_a_question_do_not_stretch_the_others():
    control = live()
    loop = Loop(control)
    control.barrier(loop.view(0, 1, np.zeros(0, np.int64)))
    control.ask(lambda _: None)
    assert control.next_barrier_fs(0) == 1
    control.barrier(loop.view(1, 2, np.zeros(0, np.int64)))
    assert control.next_barrier_fs(1) - 1 == S // 10  # as at first, not twice as long


def test_a_run_that_is_always_asked_goes_on():
    """Windows that take longer than it is until the next question, as with devices on a slow network."""
    control = live(speed=10**6)
    loop = Loop(control)
    now = 0
    for window in range(1, 11):
        control.ask(lambda view: view.now_fs)
        now = control.next_barrier_fs(now)
        control.barrier(loop.view(now, window, np.zeros(0, np.int64)))
    assert now >= 5 * 10**5 * S * 0.1


def test_a_run_that_is_held_stands_still_and_goes_on(start):
    control = live()
    loop = start(control, wall_s=0.001)
    at = control.hold().result(PATIENCE_S)
    assert at == loop.ends[-1] == control.snapshot.now_fs
    assert control.held
    windows = len(loop.ends)
    time.sleep(0.05)
    assert len(loop.ends) == windows
    assert control.hold().result(PATIENCE_S) == at  # again changes nothing
    assert control.go_on().result(PATIENCE_S) == at
    while len(loop.ends) == windows:
        time.sleep(0.001)
    assert not control.held


def test_it_can_be_held_before_its_first_step(start):
    control = live(held=True)
    loop = start(control)
    assert control.ask(lambda view: view.now_fs).result(PATIENCE_S) == 1
    assert loop.ends == [1]


def test_commands_take_effect_at_the_end_of_a_window_also_while_it_is_held(start):
    control = live(held=True)
    loop = start(control)
    command = ScaleRate(2)

    def apply(view):
        view.apply(command)
        return view.now_fs

    assert control.ask(apply).result(PATIENCE_S) == 1
    control.go_on().result(PATIENCE_S)
    assert control.ask(apply).result(PATIENCE_S) in loop.ends
    assert loop.applied == [command, command]


def test_a_command_that_is_refused_does_not_disturb_the_run(start):
    control = live()
    loop = start(control, wall_s=0.001)
    with pytest.raises(InputError, match="factor: is unlucky"):
        control.ask(lambda view: view.apply(ScaleRate(13))).result(PATIENCE_S)
    assert control.ask(lambda view: view.window).result(PATIENCE_S) > 0
    assert loop.error is None


def test_a_question_that_nobody_waits_for_any_more_is_not_asked(start):
    control = live()
    asked = []
    abandoned = control.ask(asked.append)
    assert abandoned.cancel()
    start(control)
    control.ask(lambda view: view.now_fs).result(PATIENCE_S)
    assert asked == []


@pytest.mark.parametrize(("end", "error"), [("cancel", RunCancelledError), ("stop", StoppedError)])
@pytest.mark.parametrize("held", [False, True])
def test_it_can_be_ended_from_outside(start, end, error, held):
    control = live(held=held)
    loop = start(control)
    getattr(control, end)()
    loop.join(PATIENCE_S)
    assert isinstance(loop.error, error)


def test_who_asks_too_late_is_told(start):
    control = live()
    waiting = control.ask(lambda view: view.window)
    assert not control.over
    control.end()
    with pytest.raises(RunEndedError, match="the run has ended"):
        waiting.result(PATIENCE_S)
    with pytest.raises(RunEndedError, match="the run has ended"):
        control.hold()
    assert control.over


def test_a_paced_run_waits_and_can_be_held_meanwhile(start):
    control = live(speed=2)
    loop = start(control)
    began = time.monotonic()
    while len(loop.ends) < 5:
        time.sleep(0.005)
    assert 0.25 < time.monotonic() - began < 2
    assert loop.ends[:3] == [S // 5, 2 * S // 5, 3 * S // 5]
    before = time.monotonic()
    control.hold().result(PATIENCE_S)
    assert time.monotonic() - before < 0.09  # not only when the wait is over


def test_a_run_that_is_paced_no_more_begins_with_short_windows():
    control = live(speed=50)
    loop, now = Loop(control), 0
    for window in range(1, 7):
        now = control.next_barrier_fs(now)
        unpaced = control.change_speed(0) if window == 6 else None
        control.barrier(loop.view(now, window, np.zeros(0, np.int64)))
    assert unpaced.result(PATIENCE_S) == now
    assert control.next_barrier_fs(now) - now == S // 10


def test_snapshots_count_what_left_also_before_the_run_was_continued(start):
    control = live(held=True)
    start(control, done_before=10)
    snapshot = control.ask(lambda _: control.snapshot).result(PATIENCE_S)
    assert (snapshot.finished, snapshot.rejected) == (9, 2)  # ten, and the one of this window
    assert snapshot.requests == 1000
    assert control.latencies.so_far((50,)).left == 11


def test_waiting_for_news(start):
    control = live()
    assert control.wait(None, timeout_s=0.01) is None
    start(control, wall_s=0.001)
    first = control.wait(None, timeout_s=PATIENCE_S)
    second = control.wait(first, timeout_s=PATIENCE_S)
    assert second.window > first.window
