"""Locks that processes hold: gone with the process that has one."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Lock:
    """A lock that is held; a context manager that gives it back."""

    handle: int  # of the open file or folder; processes that inherit it hold the lock too

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give it back."""
        os.close(self.handle)


def take_lock(file: Path) -> Lock | None:
    """The lock of a file, which is made if need be; None if another process has it."""
    return _lock(os.open(file, os.O_WRONLY | os.O_CREAT, 0o666))


def lock_folder(folder: Path) -> Lock | None:
    """The lock of a folder; None if another process has it."""
    return _lock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))


def _lock(handle: int) -> Lock | None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return Lock(handle)
