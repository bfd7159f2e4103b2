"""Folders of results, written whole or not at all: beside their place first, then under their name in one go."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from pimserve.cluster.base.files import naming, sync_folder, unwritable
from pimserve.cluster.base.locks import Lock, lock_folder
from pimserve.errors import InputError


@contextmanager
def made_folder(folder: Path, wanted: Path) -> Iterator[None]:
    """Make a folder, and those above it, for the block; those that it made are gone when the block fails.

    Args:
        folder: to make if need be.
        wanted: what is written into it, which errors name.

    Raises:
        InputError: it cannot be made.
    """
    made = [above for above in (folder, *folder.parents) if not above.exists()]  # nearest first
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(wanted, error) from None
        yield
    except BaseException:
        with suppress(OSError):  # somebody else may have written there meanwhile
            for above in made:
                above.rmdir()
        raise


@contextmanager
def results_folder(out: Path | None, name: str, partial: Path | None = None) -> Iterator[tuple[Path, Path]]:
    """Yield (folder to write into, folder that it becomes); nothing is left behind when the block fails.

    Args:
        out: the folder, which must not exist; None for the first of results/NAME, results/NAME-2, ... that does not.
        name: of the run.
        partial: where to write until all is there, on the same file system; None for a hidden folder beside the target.
    """
    wanted = out if out is not None else Path("results") / name
    if not wanted.name or wanted.name == "..":
        raise InputError(str(wanted), "exists already; give another folder with --out")
    with made_folder(wanted.parent, wanted):
        try:
            target, held, lock = _hold(wanted, again=out is None)
            folder = partial or held
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
        except OSError as error:
            raise unwritable(wanted, error) from None
        try:
            _check_same_disk(folder, target)
            with naming(target):
                yield folder, target
                _sync(folder)  # else a loss of power may leave the name, and nothing or a part of what it stands for
                folder.rename(target)
                sync_folder(target.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(held, ignore_errors=True)  # a moment's window: who takes the name now finds the target there
            lock.close()


def _sync(folder: Path) -> None:
    """Have all files below a folder on the disk, and their names."""
    for above, _, names in os.walk(folder):
        for name in names:
            handle = os.open(os.path.join(above, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(above))


def remove_remains(target: Path) -> None:
    """Remove what is beside a results folder of the run that wrote it, and was killed just before it would have."""
    held = _hidden(target)
    with suppress(OSError):
        lock = lock_folder(held)
        if lock is not None:
            with lock:
                shutil.rmtree(held, ignore_errors=True)


def _check_same_disk(folder: Path, target: Path) -> None:
    if folder.stat().st_dev != target.parent.stat().st_dev:
        raise InputError(str(folder.parent), f"must be on the file system of the results folder, {target}")


def free_folder(name: str) -> Path:
    """Where a fresh run of that name has its results: the first free one of results/NAME, results/NAME-2, ..."""
    for target in _numbered(Path("results") / name):
        if target.exists():
            continue
        held = _hidden(target)
        if not held.is_dir():
            return target
        lock = lock_folder(held)
        if lock is not None:
            lock.close()
            return target
    raise AssertionError("numbers do not end")


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    for number in count(2):
        yield base.with_name(f"{base.name}-{number}")


def _hidden(target: Path) -> Path:
    """The folder beside a results folder in which it is written, and which keeps other runs from taking its name."""
    digest = hashlib.sha256(target.name.encode()).hexdigest()[:8]
    return target.with_name(f".{target.name[:100]}.{digest}.partial")


def _hold(base: Path, *, again: bool) -> tuple[Path, Path, Lock]:
    """A free name, its hidden folder, and that one's lock; what a killed run left there is removed.

    With `again`, NAME-2 and so on are tried.
    """
    for target in _numbered(base):
        held = _hidden(target)
        while not target.exists():
            held.mkdir(exist_ok=True)
            lock = lock_folder(held)
            if lock is None:
                break
            if held.is_dir() and os.fstat(lock.handle).st_ino == held.stat().st_ino and not target.exists():
                for left in held.iterdir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                return target, held, lock
            lock.close()  # another run was done between two lines of this one
        if target.exists():
            remove_remains(target)
        if not again:
            why = "exists already" if target.exists() else "is being written by another run"
            raise InputError(str(base), f"{why}; give another folder with --out")
    raise AssertionError("numbers do not end")
