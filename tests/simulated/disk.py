"""The disk of a seed: a folder of the real one, whose files end with the process that has them open, fill up, and fail.

What a program has not handed to the system is lost when it is killed: its buffers are ours here, so they are just
dropped, and descriptors of a dead process point to nowhere, which also gives back its locks. A write that fails leaves
a part of what was to be written.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.simulated.active import simulated, world
from tests.simulated.loop import Process

_NAMES = (
    *("open", "close", "fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir", "truncate", "statvfs"),
    *("urandom", "getpid", "kill", "_exit"),
)
_REAL = {name: getattr(os, name) for name in _NAMES}
_PLENTY_BYTES = 10**9
_REAL_OPEN, _REAL_MKDTEMP = io.open, tempfile.mkdtemp


class Disk:
    """Descriptors of the processes, and what goes wrong.

    Args:
        root: the folder.

    Attributes:
        full: nothing more can be written, but for what is freed by what is removed.
        failing: how many of the next calls fail with EIO.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.full = False
        self.failing = 0
        self._freed_bytes = 0
        self._unsynced: dict[int, int] = {}  # files by inode, and how much of them is on the disk
        self._open: dict[int, tuple[Process, str]] = {}  # whose it is, and the name of the file

    def has(self, path: Any) -> bool:
        """Whether a file, or what a descriptor stands for, is on it."""
        if isinstance(path, int):
            return path in self._open
        return os.fspath(path).startswith(self.root) if isinstance(path, (str, os.PathLike)) else False

    def opened(self, handle: int, file: Any) -> None:
        """A process has a file open."""
        process = world().loop.check().process
        if not any(owner is process for owner, _ in self._open.values()):
            process.at_end.append(lambda: self._end(process))
        self._open[handle] = process, self.name(file)

    def name(self, file: Any) -> str:
        """Of a file, or of that which a descriptor stands for."""
        return self._open[file][1] if isinstance(file, int) else os.path.basename(str(file))

    def closed(self, handle: int) -> None:
        """It has closed it."""
        self._open.pop(handle, None)

    def _end(self, process: Process) -> None:
        """A process is dead: its files are closed, with what they were given so far."""
        nowhere = _REAL["open"](os.devnull, os.O_RDWR)
        for handle in [handle for handle, (owner, _) in self._open.items() if owner is process]:
            os.dup2(nowhere, handle)
            del self._open[handle]
        _REAL["close"](nowhere)

    def use(self, what: str, path: Any, *, writes: bool) -> None:
        """A call to the system: time passes, and it may fail."""
        loop = world().loop
        loop.check()
        loop.note(what, self.name(path))
        loop.give_way(0.2)
        if writes and self.failing:
            self.failing -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), None if isinstance(path, int) else str(path))

    def write(self, handle: int, data: bytes) -> None:
        """Hand data to the system."""
        self.use("write", handle, writes=False)
        size = self.room(len(data))
        if self.failing:
            self.failing -= 1
            size = world().loop.rng.randint(0, len(data))
            _write_all(handle, data[:size])
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        torn = world().loop.rng.randint(0, size)
        self._unsynced.setdefault(*self._file(handle))
        _write_all(handle, data[:torn])
        world().loop.give_way(0.1)  # a place to be killed at
        _write_all(handle, data[torn:size])
        if size < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _file(self, handle: int) -> tuple[int, int]:
        """Which file it is, and its size."""
        status = os.fstat(handle)
        return status.st_ino, status.st_size

    def synced(self, handle: int) -> None:
        """All that a file holds is on the disk."""
        self._unsynced.pop(self._file(handle)[0], None)

    def lose_power(self) -> None:
        """Of what was written and not synced, some is lost."""
        rng = world().loop.rng
        for folder, _, names in os.walk(self.root):
            for name in sorted(names):
                path = os.path.join(folder, name)
                status = os.stat(path)
                kept = self._unsynced.get(status.st_ino, status.st_size)
                if kept < status.st_size:
                    _REAL["truncate"](path, rng.randint(kept, status.st_size))
        self._unsynced.clear()

    def fill(self) -> None:
        """Nothing is free."""
        self.full, self._freed_bytes = True, 0

    def free_bytes(self) -> int:
        """That can be written."""
        return self._freed_bytes if self.full else _PLENTY_BYTES

    def room(self, size: int) -> int:
        """Of so many bytes, those that there is room for, which they take."""
        size = min(size, self.free_bytes())
        if self.full:
            self._freed_bytes -= size
        return size

    def removed(self, path: Any) -> None:
        """A file is about to be removed, or replaced."""
        if self.full and os.path.isfile(path):
            self._freed_bytes += os.path.getsize(path)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


class File(io.BufferedIOBase):
    """A file that is open for writing, with a buffer that dies with its process."""

    def __init__(self, raw: io.FileIO, *, reads: bool) -> None:
        self._raw = raw
        self._reads = reads
        self._buffer = bytearray()
        self.name = raw.name

    def fileno(self) -> int:
        return self._raw.fileno()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return self._reads

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        world().loop.check()
        size = memoryview(data).nbytes
        self._buffer += data
        if len(self._buffer) >= io.DEFAULT_BUFFER_SIZE:
            self.flush()
        return size

    def flush(self) -> None:
        if self._raw.closed:
            return
        if self._buffer:
            data, self._buffer = bytes(self._buffer), bytearray()
            world().disk.write(self.fileno(), data)

    def read(self, size: int | None = -1) -> bytes:
        self.flush()
        return self._raw.read(-1 if size is None else size) or b""

    def seek(self, offset: int, whence: int = 0) -> int:
        self.flush()
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell() + len(self._buffer)

    def truncate(self, size: int | None = None) -> int:
        self.flush()
        return self._raw.truncate(size)

    def close(self) -> None:
        if self._raw.closed or not simulated():
            return
        try:
            self.flush()
        finally:
            world().disk.closed(self.fileno())
            self._raw.close()

    @property
    def closed(self) -> bool:
        return self._raw.closed

    def __del__(self) -> None:
        """Not a word, as of a dead process."""


def _open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """As `open`."""
    if not simulated() or not world().disk.has(file):
        return _REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
    disk = world().disk
    writes = bool(set(mode) & set("wax+"))
    disk.use("open", file, writes=writes)
    if not writes:
        return _REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
    raw = io.FileIO(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    disk.opened(raw.fileno(), file)
    plain = File(raw, reads="+" in mode)
    if "b" in mode:
        return plain
    return io.TextIOWrapper(plain, encoding or "utf-8", errors, newline)


def _os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    if not simulated() or not world().disk.has(path if dir_fd is None else dir_fd):
        return int(_REAL["open"](path, flags, mode, dir_fd=dir_fd))
    world().disk.use("open", path, writes=bool(flags & os.O_CREAT))
    handle = int(_REAL["open"](path, flags, mode, dir_fd=dir_fd))
    world().disk.opened(handle, path)
    return handle


def _os_close(handle: int) -> None:
    if simulated():
        world().loop.check()
        world().disk.closed(handle)
    _REAL["close"](handle)


def _call(name: str) -> Callable[..., Any]:
    real = _REAL[name]

    def call(path: Any, *more: Any, **how: Any) -> Any:
        if simulated() and world().disk.has(how["dir_fd"] if how.get("dir_fd") is not None else path):
            world().disk.use(name, path, writes=name not in {"unlink", "rmdir", "truncate"})
            if name == "fsync":
                world().disk.synced(path)
            if name in {"unlink", "replace", "rename"} and "dir_fd" not in how:
                world().disk.removed(path if name == "unlink" else more[0])
        return real(path, *more, **how)

    return call


def _statvfs(path: Any) -> Any:
    if not simulated() or not world().disk.has(path):
        return _REAL["statvfs"](path)
    free = world().disk.free_bytes()
    return SimpleNamespace(f_bavail=free, f_bfree=free, f_blocks=_PLENTY_BYTES, f_frsize=1, f_bsize=1)


def _mkdtemp(suffix: str | None = None, prefix: str | None = None, dir: Any = None) -> str:  # noqa: A002 as of tempfile
    if not simulated() or dir is None or not world().disk.has(dir):
        return _REAL_MKDTEMP(suffix, prefix, dir)
    path = os.path.join(dir, f"{prefix or 'tmp'}{_urandom(4).hex()}{suffix or ''}")
    os.mkdir(path, 0o700)
    return path


def _urandom(size: int) -> bytes:
    return world().loop.rng.randbytes(size) if simulated() else bytes(_REAL["urandom"](size))


def _getpid() -> int:
    return world().loop.check().process.pid if simulated() else int(_REAL["getpid"]())


def _kill(pid: int, number: int) -> None:
    if not simulated():
        _REAL["kill"](pid, number)
        return
    world().loop.give_way()
    world().signal(pid, number)


def _exit(code: int) -> None:
    if not simulated():
        _REAL["_exit"](code)
    world().exit(world().loop.check().process, code)


def install() -> None:
    """Have files of a seed's disk opened, written and moved here."""
    builtins.open = io.open = _open  # type: ignore[assignment]
    shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]  # copies are written like other files
    tempfile.mkdtemp = _mkdtemp  # type: ignore[assignment]
    for name in ("fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir", "truncate"):
        setattr(os, name, _call(name))
    for name, call in {
        "open": _os_open,
        "close": _os_close,
        "statvfs": _statvfs,
        "urandom": _urandom,
        "getpid": _getpid,
        "_exit": _exit,
        "kill": _kill,
    }.items():
        setattr(os, name, call)
