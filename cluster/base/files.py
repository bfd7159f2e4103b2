"""Files, written whole or not at all: beside their place first, on the disk, and then under their name in one go."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pimserve.errors import InputError

LOG = logging.getLogger(__name__)
PRIVATE = 0o600  # no other user reads it
FULL = {errno.ENOSPC, errno.EDQUOT}
_PUBLIC = 0o666  # but for what the umask takes away
_RESULTS = {
    "summary.json",
    "scenario.yaml",
    "requests.npy",
    "request_numbers.npy",
    "request_sessions.npy",
    "request_longest_gaps.npy",
    "steps.npy",
    "devices.npy",
    "commands.jsonl",
    "SHA256SUMS",
}
_DISK = {*FULL, errno.EFBIG, errno.EIO, None}  # numpy gives none for what it cannot write


def disk_is_full(error: BaseException) -> bool:
    """Whether that is a disk without space, or came of one; numpy tells of a short write without a number."""
    led: BaseException | None = error
    while led is not None:
        if isinstance(led, OSError) and (led.errno in FULL or (type(led) is OSError and led.errno is None)):
            return True
        led = led.__cause__ or led.__context__
    return False


@contextmanager
def atomic_file(
    path: Path, mode: int = _PUBLIC, *, encoding: str | None = None, replace: bool = True
) -> Iterator[IO[Any]]:
    """Open a file that takes its name once the block has ended and all is on disk, and is gone when the block fails.

    Args:
        path: the file.
        mode: its permissions.
        encoding: of text; None for bytes. Lone surrogates, as in names that are no UTF-8, become question marks.
        replace: whether one that is there is replaced.

    Raises:
        FileExistsError: there is one that is not to be replaced.
        OSError: it cannot be written; the error names it.
    """
    draft = path.with_name(f".{path.name[:50]}.{os.urandom(4).hex()}.new")
    with naming(path, draft):
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            how, errors = ("wb", None) if encoding is None else ("w", "replace")
            with os.fdopen(handle, how, encoding=encoding, errors=errors) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if replace:
                draft.replace(path)
            else:
                _take_name(draft, path)
        finally:
            with suppress(OSError):
                draft.unlink()
    sync_folder(path.parent)


def _take_name(draft: Path, path: Path) -> None:
    """Give a draft its name, unless there is a file of that name."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links, as on many a memory stick: take the name first
        path.open("xb").close()
        draft.replace(path)


def is_draft(name: str) -> bool:
    """Whether a file is one that was being written, by its name."""
    return name.startswith(".") and name.endswith(".new")


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes were writing into a folder; only for the one who has it for itself."""
    for file in folder.glob(".*.new"):
        file.unlink(missing_ok=True)


def warn_unless_private(path: Path) -> None:
    """Warn of a file with secrets that other users may read or write."""
    status = path.stat()
    if stat.S_ISREG(status.st_mode) and (mode := stat.S_IMODE(status.st_mode)) & 0o077:
        LOG.warning("%s is open to other users (mode %04o): chmod 600 makes it private", path, mode)


def sync_folder(folder: Path) -> None:
    """Have the names of its files on the disk, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, *content: bytes | memoryview, mode: int = _PUBLIC) -> None:
    """Write a file, as `atomic_file` does."""
    with atomic_file(path, mode) as file:
        file.writelines(content)


def write_json(path: Path, document: dict[str, Any], mode: int = _PUBLIC) -> None:
    """Write a document as strict JSON, as `atomic_file` does."""
    write_bytes(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode(), mode=mode)


def read_json(path: Path) -> dict[str, Any] | None:
    """The document of a file, or None if there is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return document


@contextmanager
def output_file(out: Path, exists: str | None = None, *, encoding: str | None = "utf-8") -> Iterator[IO[Any]]:
    """Open a file that a user names, as `atomic_file` does.

    Args:
        out: the file; what a link points to is written, not the link.
        exists: what to say if there is one; None: it is replaced, unless it belongs to a run's results.
        encoding: of text; None for bytes.

    Raises:
        InputError: it cannot be written, or is none that may be replaced.
    """
    if exists is not None and os.path.lexists(out):
        raise InputError(str(out), exists)
    try:
        target = Path(os.path.realpath(out))
        if target.is_dir():
            raise InputError(str(out), "is a folder; a file is needed")
        if target.exists() and not target.is_file():
            raise InputError(str(out), "is no file that could be replaced")
        refuse_results(target, out)
        with atomic_file(target, encoding=encoding, replace=exists is None) as file:
            yield file
    except OSError as error:
        if exists is not None and isinstance(error, FileExistsError):
            raise InputError(str(out), exists) from None
        raise unwritable(out, error) from None


@contextmanager
def naming(path: Path, draft: Path | None = None) -> Iterator[None]:
    """Have errors of the disk name this file: those that name none, as most do that is full, or its draft."""
    try:
        yield
    except OSError as error:
        nameless = error.filename is None and error.errno in _DISK
        if nameless or (draft is not None and error.filename == str(draft)):
            why = error.strerror or f"cannot be written whole: {error}"
            raise OSError(error.errno or errno.EIO, why, str(path)) from None
        raise


def unwritable(path: Path, error: OSError) -> InputError:
    """What to say of a file or folder that could not be made."""
    if isinstance(error, FileExistsError):  # in the place of a folder
        return InputError(str(path), f"cannot be written: {error.filename} is not a directory")
    return InputError(str(path), f"cannot be written: {error.strerror or error}")


def refuse_results(target: Path, out: Path) -> None:
    """Refuse a file that a run wrote.

    Args:
        target: the file, links followed.
        out: what the user calls it.

    Raises:
        InputError: it is one.
    """
    if target.name in _RESULTS and (target.parent / "summary.json").exists():
        raise InputError(str(out), "belongs to the results of a run; give another file")
