"""The results folder: written whole or not at all, and read back.

scenario.yaml   the scenario as resolved, with all defaults and catalogue entries; running it gives the same bits
summary.json    the run's figures
requests.npy    a row per request (numpy structured array; times in ps, -1 for never)
steps.npy       a row per span of equal steps, `steps` of them, by replica and then by time, however the run was cut;
                `pimserve export --steps` writes them one by one
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import ValidationError

from pimserve.arrays import IntArray
from pimserve.cluster.base.files import naming, unwritable
from pimserve.cluster.base.locks import Lock, lock_folder
from pimserve.cluster.run.summary_schema import Summary, UnwrittenSummary
from pimserve.errors import InputError, shortened, validation_error
from pimserve.scheduler.steplog import SpanColumns

SCHEMA_VERSION = 2
_PARTS = {"requests", "window", "throughput", "latency_s", "slo", "energy", "batch", "kv", "simulator"}
SPAN = np.dtype([("replica", np.int32), *((name, np.int64) for name in SpanColumns._fields)])
_ROWS_AT_ONCE = 2**16  # 9 MB


class UnwrittenError(OSError):
    """A run is over, and its results could not be written; `summary` has its figures all the same."""

    def __init__(self, target: Path, error: OSError, summary: UnwrittenSummary) -> None:
        super().__init__(error.errno or errno.EIO, error.strerror or f"cannot be written whole: {error}", str(target))
        self.summary = summary


class SpanFile:
    """A .npy file of spans that grows while the run goes on.

    Args:
        path: the file.
        rows: how many rows of an earlier process's file to keep; 0 begins a new file.
    """

    def __init__(self, path: Path, rows: int = 0) -> None:
        try:
            self._file = path.open("r+b" if rows else "wb")
        except FileNotFoundError:
            raise InputError(str(path), "is missing, which belongs to a checkpoint") from None
        self.rows = rows
        self._path = path
        self._replica = -1  # of the last rows
        self._failed: OSError | None = None  # the run goes on without its steps, for the sake of its other figures
        self._in_order = not rows  # of an earlier process's rows it is not known
        size = path.stat().st_size
        self._header = self._write_header()
        if rows and size < self._header + rows * SPAN.itemsize:
            self._file.close()
            raise InputError(str(path), f"is cut short: its checkpoint has {rows} rows")
        self._file.truncate(self._header + rows * SPAN.itemsize)
        self._file.seek(0, os.SEEK_END)

    def _write_header(self) -> int:
        header = {"descr": npy.dtype_to_descr(SPAN), "fortran_order": False, "shape": (self.rows,)}
        self._file.seek(0)
        npy.write_array_header_1_0(self._file, header)  # pads, so that the count can grow
        return self._file.tell()

    def write(self, replica: int, rows: IntArray) -> None:
        """Append spans (n, fields of SpanColumns) of a replica; none once the disk was full, which `finish` tells."""
        if self._failed is not None:
            return
        self._in_order &= replica >= self._replica
        self._replica = replica
        block = np.zeros(len(rows), SPAN)
        block["replica"] = replica
        for index, name in enumerate(SpanColumns._fields):
            block[name] = rows[:, index]
        try:
            self._file.write(block.tobytes())
        except OSError as error:
            self._failed = error
        self.rows += len(block)

    def sync(self) -> None:
        """Have all rows so far on disk."""
        if self._failed is not None:
            raise self._failed
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Finish the file."""
        if self._failed is not None:
            with suppress(OSError):  # what is still buffered does not fit either
                self._file.close()
        elif not self._file.closed:
            if self._write_header() != self._header:
                raise AssertionError("the header of steps.npy outgrew its place")
            self._file.close()

    def finish(self, target: Path) -> None:
        """Close the file and have all its rows at `target`, by replica, each replica's as they came: by time."""
        self.close()
        if self._failed is not None:
            raise self._failed
        if not self._in_order:
            beside = target.with_name(f".{target.name}")
            with self._path.open("rb") as file, beside.open("wb") as ordered:
                _order(file, ordered, self._header)
            beside.replace(target)
        elif target != self._path:
            shutil.copyfile(self._path, target)


def _order(file: IO[bytes], ordered: IO[bytes], header: int) -> None:
    """Copy a file of spans with its rows sorted by replica, in two passes of little memory each."""

    def blocks() -> Iterator[NDArray[Any]]:
        file.seek(header)
        while len(block := np.fromfile(file, SPAN, _ROWS_AT_ONCE)):
            yield block

    ordered.write(file.read(header))
    counts = np.zeros(0, np.int64)
    for block in blocks():
        further = np.bincount(block["replica"], minlength=len(counts))
        further[: len(counts)] += counts
        counts = further
    places = np.cumsum(counts) - counts  # of each replica's next row
    for block in blocks():
        block = block[np.argsort(block["replica"], kind="stable")]  # noqa: PLW2901
        for part in np.split(block, np.flatnonzero(np.diff(block["replica"])) + 1):
            replica = part["replica"][0]
            ordered.seek(header + int(places[replica]) * SPAN.itemsize)
            ordered.write(part.tobytes())
            places[replica] += len(part)


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
    new_parents = [folder for folder in wanted.parents if not folder.exists()]  # nearest first
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
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
            folder.rename(target)
    except BaseException:
        for left in (folder, held):
            shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):  # another run may have written there meanwhile
            for parent in new_parents:
                parent.rmdir()
        raise
    finally:
        shutil.rmtree(held, ignore_errors=True)  # a moment's window: who takes the name now finds the target there
        lock.close()


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
        if not again:
            why = "exists already" if target.exists() else "is being written by another run"
            raise InputError(str(base), f"{why}; give another folder with --out")
    raise AssertionError("numbers do not end")


def load_summary(path: Path) -> dict[str, Any]:
    """The summary of a results folder, or of a summary.json.

    Raises:
        InputError: there is none, or it is not one of ours.
    """
    file = path / "summary.json" if path.is_dir() else path
    if file.exists() and not file.is_file():
        raise InputError(str(file), "is no file: a folder with summary.json is needed")
    try:
        summary = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise InputError(str(path), "no results here: a folder with summary.json is needed") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(file), f"cannot be read as a summary: {error}") from None
    if not isinstance(summary, dict) or "schema_version" not in summary:
        raise InputError(str(file), "is not a summary that pimserve wrote (no schema_version)")
    if summary["schema_version"] != SCHEMA_VERSION:
        version = shortened(repr(summary["schema_version"]))
        raise InputError(str(file), f"has schema_version {version}; this pimserve reads {SCHEMA_VERSION}")
    missing = sorted(_PARTS - {key for key, value in summary.items() if isinstance(value, dict)})
    if missing:
        raise InputError(str(file), f"is cut short or was changed: {', '.join(missing)} missing, or no mapping")
    return summary


def read_summary(place: Path) -> Summary:
    """The summary of a results folder, or of a summary.json, if it is whole.

    Raises:
        InputError: there is none, or it is not as a run writes it.
    """
    try:
        return Summary.model_validate(load_summary(place))
    except ValidationError as error:
        raise validation_error(str(place), error, Summary) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def load_table(run: Path, name: str) -> NDArray[Any]:
    """A table of a results folder: "requests" or "steps"."""
    file = run / f"{name}.npy"
    try:
        table: NDArray[Any] = np.load(file, mmap_mode="r")
    except FileNotFoundError:
        raise InputError(str(run), f"has no {name}.npy") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(str(file), f"cannot be read: {error or 'it is empty'}") from None
    return table
