"""The results folder: written whole or not at all, and read back.

scenario.yaml   the scenario as resolved, with all defaults and catalogue entries; running it gives the same bits
summary.json    the run's figures
requests.npy    a row per request, by arrival (numpy structured array; times in ps, -1 for never)
request_numbers.npy  where requests were injected: the number of each row's request, by which people name it
                (`pimserve.scheduler.request_numbers`); else requests are named by their row
request_longest_gaps.npy  where a limit is of it (slo.itl_max_s): the longest gap between two tokens of each row's
                request, ps, as far as the run shows; 0 without any
request_sessions.npy  with sessions: the session of each row's request, -1 of one that was injected
devices.npy     of runs with device actors: a row per simulated device, as docs/distributed.md says
steps.npy       a row per span of equal steps, `steps` of them, by replica and then by time, however the run was cut;
                `pimserve export --steps` writes them one by one
commands.jsonl  what the run was told while it went, if anything (`pimserve.cluster.run.command_log`)
SHA256SUMS      checksums of the other files
"""

from __future__ import annotations

import errno
import hashlib
import io
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
from pimserve.cluster.base.checksums import DamageError
from pimserve.cluster.run.checkpoint_files import is_checkpoint, not_ended
from pimserve.cluster.run.summary_schema import UnwrittenSummary
from pimserve.errors import InputError
from pimserve.scheduler.steplog import SpanColumns

SPAN = np.dtype([("replica", np.int32), *((name, np.int64) for name in SpanColumns._fields)])
NUMBERS = "request_numbers"
SESSIONS = "request_sessions"
LONGEST_GAPS = "request_longest_gaps"
DEVICES = "devices"
_ROWS_AT_ONCE = 2**16  # 9 MB
_BYTES_AT_ONCE = 2**20


class UnwrittenError(OSError):
    """A run is over, and its results could not be written; `summary` has its figures all the same."""

    def __init__(self, target: Path, error: OSError, summary: UnwrittenSummary) -> None:
        super().__init__(error.errno or errno.EIO, error.strerror or f"cannot be written whole: {error}", str(target))
        self.summary = summary


class SpanFile:
    """A .npy file of spans that grows while the run goes on; its header says how many there are once it is finished.

    Args:
        path: the file.
        rows: how many rows of an earlier process's file to keep; 0 begins a new file.
        sha256: of these rows.

    Raises:
        DamageError: the earlier process's file is missing, cut short or damaged.
    """

    def __init__(self, path: Path, rows: int = 0, sha256: str = "") -> None:
        self._digest = check_spans(path, rows, sha256) if rows else hashlib.sha256()
        self._file = path.open("r+b" if rows else "wb")
        self.rows = rows
        self._path = path
        self._replica = -1  # of the last rows
        self._failed: OSError | None = None  # the run goes on without its steps, for the sake of its other figures
        self._in_order = not rows  # of an earlier process's rows it is not known
        if not rows:
            self._file.write(_header(0))
        self._file.truncate(len(_header(0)) + rows * SPAN.itemsize)
        self._file.seek(0, os.SEEK_END)

    @property
    def sha256(self) -> str:
        """Checksum of all rows so far."""
        return self._digest.hexdigest()

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
        content = block.tobytes()
        try:
            self._file.write(content)
        except OSError as error:
            self._failed = error
        self._digest.update(content)
        self.rows += len(block)

    def sync(self) -> None:
        """Have all rows so far on disk."""
        if self._failed is not None:
            raise self._failed
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, as it is."""
        if self._failed is None:
            self._file.close()
        else:
            with suppress(OSError):  # what is still buffered does not fit either
                self._file.close()

    def finish(self, target: Path) -> None:
        """Close the file and have all its rows at `target`, by replica, each replica's as they came: by time."""
        self.close()
        if self._failed is not None:
            raise self._failed
        if not self._in_order:
            beside = target.with_name(f".{target.name}")
            with self._path.open("rb") as file, beside.open("wb") as ordered:
                _order(file, ordered, len(_header(0)))
            beside.replace(target)
        elif target != self._path:
            shutil.copyfile(self._path, target)
        header = _header(self.rows)
        if len(header) != len(_header(0)):
            raise AssertionError("the header of steps.npy outgrew its place")
        with target.open("r+b") as file:
            file.write(header)


def check_spans(path: Path, rows: int, sha256: str) -> hashlib._Hash:
    """See that the file of spans of a run that goes on begins with these rows; returns their digest, to go on with.

    Raises:
        DamageError: it is missing, cut short or damaged.
    """
    header, digest, left = _header(0), hashlib.sha256(), rows * SPAN.itemsize
    try:
        with path.open("rb") as file:
            if file.read(len(header)) != header:
                raise DamageError(str(path), "is damaged: its header is not that of steps of a run that goes on")
            while block := file.read(min(left, _BYTES_AT_ONCE)):
                digest.update(block)
                left -= len(block)
    except FileNotFoundError:
        raise DamageError(str(path), "is missing, which belongs to a checkpoint", "missing") from None
    if left:
        raise DamageError(str(path), f"is cut short: its checkpoint has {rows} rows")
    if digest.hexdigest() != sha256:
        raise DamageError(str(path), "is damaged: the checksum of its rows is not that of its checkpoint")
    return digest


def _header(rows: int) -> bytes:
    """What a file of so many spans begins with; numpy pads it, so that the number can grow."""
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": npy.dtype_to_descr(SPAN), "fortran_order": False, "shape": (rows,)})
    return header.getvalue()


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


def load_sessions(run: Path, requests: int) -> NDArray[np.int64] | None:
    """(requests,) session of the request of each row; None where there are no sessions.

    Raises:
        InputError: they are not of so many requests.
    """
    if not (run / f"{SESSIONS}.npy").exists():
        return None
    sessions = load_table(run, SESSIONS)
    if sessions.dtype != np.int64 or sessions.shape != (requests,):
        raise InputError(str(run / f"{SESSIONS}.npy"), f"does not have the sessions of {requests:,} requests")
    return sessions


def load_longest_gaps(run: Path, requests: int) -> NDArray[np.int64]:
    """(requests,) the longest gap between two tokens of the request of each row, ps.

    Raises:
        InputError: there are none, or not of so many requests.
    """
    gaps_ps = load_table(run, LONGEST_GAPS)
    if gaps_ps.dtype != np.int64 or gaps_ps.shape != (requests,):
        raise InputError(str(run / f"{LONGEST_GAPS}.npy"), f"does not have the longest gaps of {requests:,} requests")
    return gaps_ps


def load_table(run: Path, name: str, kind: np.dtype[Any] | None = None) -> NDArray[Any]:
    """A table of a results folder, such as "requests" or "steps".

    Raises:
        InputError: there is none, or it cannot be read, or has no rows of this kind.
    """
    file = run / f"{name}.npy"
    try:
        table: NDArray[Any] = np.load(file, mmap_mode="r")
    except FileNotFoundError:
        if is_checkpoint(run):
            raise InputError(str(run), not_ended(run)) from None
        remedy = ": run its scenario with output.steps: true" if name == "steps" else ""
        raise InputError(str(run), f"has no {name}.npy{remedy}") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(str(file), f"cannot be read: {error or 'it is empty'}") from None
    if kind is not None and not (isinstance(table, np.ndarray) and table.dtype == kind and table.ndim == 1):
        raise InputError(str(file), "is not a table of this version of pimserve")
    return table
