"""How much a server takes on, and what one request may take of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a server takes on.

    Args:
        running: runs that go on at once, paused ones too.
        queued: runs that wait.
        disk_bytes: of all runs together; None: as much as there is.
    """

    running: int
    queued: int
    disk_bytes: int | None


@dataclass(frozen=True, slots=True)
class CheckLimits:
    """What checking one scenario may take.

    Args:
        time_s: in which it must be done.
        memory_bytes: beside what the process has anyway.
        processes: that check at once; more start as they are needed.
        calls: that are checked, or wait for it; each takes a thread of the server, and others must be left.
    """

    time_s: float = 30.0
    memory_bytes: int = 2 * 10**9
    processes: int = 2
    calls: int = 48


USUAL_CHECKS = CheckLimits()
