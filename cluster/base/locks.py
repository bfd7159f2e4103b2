"""Locks that processes hold: gone with the process that has one."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


def take_lock(path: Path) -> IO[bytes] | None:
    """The lock, held until the file is closed or the process ends; None if another process has it."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
