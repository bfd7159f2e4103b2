"""Folders of Rays of our own, each with a lock beside it that is free when nobody needs the folder any more."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pimserve.cluster.base.locks import Lock, take_lock
from pimserve.cluster.base.processes import of_session

_POLL_S = 0.02
_PREFIX, _LOCK = "pimserve-ray-", ".lock"
_LONGEST_FOLDER = 30  # characters: Ray makes Unix sockets deep below it, whose paths may have 107


def new_folder() -> tuple[Path, Lock]:
    """A folder for Ray and its lock."""
    while True:
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_LOCK, dir=_short_folder())
        os.close(handle)
        lock = take_lock(Path(name))
        if lock is not None:
            folder = Path(name.removesuffix(_LOCK))
            folder.mkdir(mode=0o700)
            return folder, lock


def sweep() -> None:
    """Remove folders of ours whose processes were killed, all of them."""
    for file in Path(_short_folder()).glob(f"{_PREFIX}*{_LOCK}"):
        with suppress(OSError):
            if file.lstat().st_uid == os.getuid() and (lock := take_lock(file)) is not None:
                _remove(file.with_suffix(""))
                lock.close()


def clear_away(session: int, folder: Path) -> None:
    """End what is left of a Ray whose processes are those of a session, stopped ones too, and remove its folder."""
    while pids := of_session(session):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    _remove(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(folder.name + _LOCK).unlink(missing_ok=True)


def _short_folder() -> str:
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _LONGEST_FOLDER else "/tmp"
