"""Files that commands write for the user: there whole, or as they were before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pimserve.errors import InputError

_RESULTS = {"summary.json", "scenario.yaml", "requests.npy", "steps.npy", "commands.jsonl"}


@contextmanager
def whole_file(out: Path) -> Iterator[IO[str]]:
    """Open a text file that takes its name when the block has ended, and is gone when the block fails.

    Args:
        out: the file; one that is there is replaced, unless it belongs to a run's results.

    Raises:
        InputError: it cannot be written, or is none that may be replaced.
    """
    try:
        target = Path(os.path.realpath(out))  # what a link points to is replaced, not the link
        if target.is_dir():
            raise InputError(str(out), "is a folder; a file is needed")
        if target.exists() and not target.is_file():
            raise InputError(str(out), "is no file that could be replaced")
        refuse_results(target, out)
        beside = target.with_name(f".{target.name}.new")
        try:
            with beside.open("w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.rename(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(out, error) from None


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
