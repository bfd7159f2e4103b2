"""The process that a user started, where a run keeps its state: a small parent, whose child does the work.

The child is a copy of this process from before anything heavy was imported. When it is killed, another one goes on
from the last checkpoint, within limits. Signals that end or pause the parent are passed on to the child, which is in a
process group of its own, so that it gets each once. The parent ends as the child ends, and the child with the parent.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from pimserve.cluster.base.supervisor import Deaths, Patience

_PATIENCE = Patience(deaths=5, span_s=60.0)
_OPTION = "--checkpoint"
_PASSED_ON = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
_WATCHED = [*_PASSED_ON, signal.SIGTSTP]
_OVER_THE_BAR = "\r\x1b[2K\x1b[?25h"  # on a terminal: clear the line of a progress bar, and show the cursor again

restarts = 0
"""How often the run's process was killed before this one."""

_tell: int | None = None
"""Where this process tells its parent that it is done; None without one."""


def checkpoints_of(arguments: Sequence[str]) -> Path | None:
    """The folder in which this command keeps the state of a run; None for other commands."""
    if arguments[:1] != ["run"]:
        return None
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option == _OPTION:
            return Path(value)
        if option.startswith(f"{_OPTION}="):
            return Path(option.partition("=")[2])
    return None


def go_on_when_killed(checkpoints: Path) -> None:
    """Returns in a child, and again in another one when that was killed; the process that calls it ends with the last.

    Args:
        checkpoints: folder that tells whether a child came any further than the one before.
    """
    _Parent(checkpoints).work()


def done() -> None:
    """The run is over and the user has been told: if this process is killed from now on, no other takes its place."""
    if _tell is not None:
        with suppress(OSError):
            os.write(_tell, b".")


class _Parent:
    """The process that stays."""

    def __init__(self, checkpoints: Path) -> None:
        self._state = checkpoints / "checkpoint"
        self._child = 0
        self._told = False  # to end
        self._before = {number: signal.getsignal(number) for number in _WATCHED}
        self._alive = os.pipe()  # its end tells the child of ours
        self._done = os.pipe()
        os.set_blocking(self._done[0], False)

    def work(self) -> None:
        """Returns in each child."""
        global restarts  # noqa: PLW0603 of this process
        deaths = Deaths(_PATIENCE)
        stuck, state = 0, self._written()
        while True:
            signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
            self._child = os.fork()
            if not self._child:
                self._become_child()
                return
            for number, handler in self._before.items():
                if handler is not signal.SIG_IGN:
                    signal.signal(number, self._pause if number == signal.SIGTSTP else self._pass_on)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            code = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
            if code >= 0 or self._told or self._is_done():
                self._end(code)
            reached, state = state, self._written()
            stuck = stuck + 1 if state == reached else 1
            restarts += 1
            self._say_or_give_up(-code, deaths.add(), stuck)

    def _say_or_give_up(self, number: int, lately: int, stuck: int) -> None:
        """Tell of a death; ends this process when there were too many.

        Args:
            number: of the signal.
            lately: deaths within the span.
            stuck: deaths since there was a new checkpoint.
        """
        name = signal.Signals(number).name
        if lately > _PATIENCE.deaths or stuck > _PATIENCE.deaths:
            often = f"{lately} times within {_PATIENCE.span_s:g} s" if lately >= stuck else f"{stuck} times in a row"
            why = f"{name}, as by a system that is out of memory" if number == signal.SIGKILL else name
            then = "the same command goes on from the last checkpoint"
            _say(f"error: the run's process was killed {often} ({why}); {then}")
            self._end(128 + number)
        _say(f"note: the run's process was killed ({name}); another goes on from the last checkpoint")

    def _written(self) -> int | None:
        """When the last checkpoint was written."""
        try:
            return self._state.stat().st_mtime_ns
        except OSError:
            return None

    def _is_done(self) -> bool:
        try:
            return bool(os.read(self._done[0], 1))
        except BlockingIOError:
            return False

    def _become_child(self) -> None:
        """Be as a process that was started by itself, but for the end of the parent."""
        global _tell  # noqa: PLW0603 of this process
        _tell = self._done[1]
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # write to the terminal all the same
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._alive[1])
        threading.Thread(target=_end_with, args=(self._alive[0],), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)

    def _pass_on(self, number: int, _frame: object) -> None:
        self._told = True
        self._signal(number)

    def _pause(self, _number: int, _frame: object) -> None:
        self._signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._child, number)

    def _end(self, code: int) -> NoReturn:
        """End as a process ended with that exit code, or with that signal where it is negative."""
        if code < 0:
            if -code in self._before:
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        sys.exit(code)


def _end_with(alive: int) -> None:
    """End at once when the parent has, as it was killed."""
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _say(line: str) -> None:
    """Write a line to standard error, whatever has become of it."""
    with suppress(OSError):
        os.write(2, f"{_OVER_THE_BAR if os.isatty(2) else ''}{line}\n".encode())
