"""Processes, told apart by more than a number that the system gives out again."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

# Exit codes of a worker.
TO_BE_CONTINUED = 75  # stopped, to go on later
LOCKED = 73  # another worker has the run
NO_SPACE = 76  # the disk is full; what is there can be continued when it is not


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its number, and when it started, in the system's own words ("" where the system does not tell)."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process that has that number now."""
        return cls(pid, _started(pid) or "")

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """The process that `document` says."""
        return cls(int(document["pid"]), str(document["started"]))

    def document(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"pid": self.pid, "started": self.started}

    def alive(self) -> bool:
        """Whether it still runs."""
        if self.started:
            return _started(self.pid) == self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


class StopWatch:
    """How long a process has been stopped (SIGSTOP), as far as the system tells (Linux)."""

    def __init__(self) -> None:
        self._since_s: dict[int, float] = {}

    def stopped_s(self, pid: int) -> float:
        """For how long, since it was first seen so by this; 0 for one that goes on."""
        fields = _fields(pid)
        if fields is None or fields[0] != "T":
            self._since_s.pop(pid, None)
            return 0.0
        now_s = time.monotonic()
        return now_s - self._since_s.setdefault(pid, now_s)


def readable(pipe: IO[Any], timeout_s: float) -> bool:
    """Whether there is something to read by then, if only its end; with any number of files open.

    Raises:
        ValueError: it is closed.
    """
    look = select.poll()
    look.register(pipe, select.POLLIN)
    return bool(look.poll(1000 * timeout_s))


def of_session(session: int) -> list[int]:
    """Numbers of the processes of a session, which has that of its first, as far as the system tells (Linux)."""
    return [
        pid
        for pid in (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
        if (fields := _fields(pid)) and fields[3] == str(session) and fields[0] not in {"Z", "X"}
    ]


def _fields(pid: int) -> list[str] | None:
    """State of a process, and what else the system tells after its name; None if it tells nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """Boot and clock tick in which a process started; None if it does not run, or the system does not tell."""
    fields = _fields(pid)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return None if not fields or fields[0] in {"Z", "X"} else f"{boot}/{fields[19]}"
