"""The results folder: written whole or not at all, and read back.

scenario.yaml   the scenario as resolved, with all defaults and catalogue entries; running it gives the same bits
summary.json    the run's figures
requests.npy    a row per request, by arrival (numpy structured array; times in ps, -1 for never)
request_numbers.npy  where requests were injected: the number of each row's request, by which people name it
                (`pimserve.scheduler.request_numbers`); else requests are named by their row
steps.npy       a row per span of equal steps, `steps` of them, by replica and then by time, however the run was cut;
                `pimserve export --steps` writes them one by one
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pimserve.arrays import IntArray
from pimserve.cluster.run.summary_schema import UnwrittenSummary
from pimserve.errors import InputError
from pimserve.scheduler.steplog import SpanColumns

SPAN = np.dtype([("replica", np.int32), *((name, np.int64) for name in SpanColumns._fields)])
NUMBERS = "request_numbers"
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


def load_numbers(run: Path, requests: int) -> NDArray[np.int64]:
    """(requests,) number of the request of each row of a results folder's requests.

    Raises:
        InputError: they are not numbers of so many requests.
    """
    if not (run / f"{NUMBERS}.npy").exists():
        return np.arange(requests)
    numbers = load_table(run, NUMBERS)
    if numbers.dtype != np.int64 or not np.array_equal(np.sort(numbers, axis=None), np.arange(requests)):
        raise InputError(str(run / f"{NUMBERS}.npy"), f"does not number the {requests:,} requests of the run")
    return numbers


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
