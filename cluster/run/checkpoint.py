"""Checkpoints of a run on disk, so that it goes on where it was after whatever ended it.

checkpoint      the last state (`checkpoint_files.py`)
commands.jsonl  commands that took effect, each with its simulated time; those after the checkpoint are given again
steps.npy       executed steps; what is beyond the checkpoint is cut off when the run goes on
lock            held by the process that runs
unfinished      the results folder, until it is whole
target.json     where it will be then, the scenario's digest, and a checksum of both

A checkpoint is written beside the last one and takes its place in one go, so that there is always a whole one. It has
checksums of all that the run goes on with, and nothing of that is used before they were compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from pimserve.cluster.base.files import is_draft, remove_drafts, unwritable, write_bytes
from pimserve.cluster.base.locks import take_lock
from pimserve.cluster.run.checkpoint_files import (
    LOCK_FILE,
    OURS,
    SPANS_FILE,
    STATE_FILE,
    TARGET_FILE,
    check_commands,
    read_state,
    target_of,
    write_state,
    write_target,
)
from pimserve.cluster.run.command_log import COMMANDS_FILE, CommandLog, Entry, encoded, recover_commands
from pimserve.cluster.run.results import SpanFile
from pimserve.errors import InputError, shortened

_INTERVAL_S = 2.0
_MOST_SHARE = 0.05  # of the wall time may go into checkpoints


def has_checkpoint(folder: Path) -> bool:
    """Whether a run can go on from what was kept there: a state, or commands that it was told before the first."""
    return any((folder / name).is_file() for name in (STATE_FILE, COMMANDS_FILE))


class CheckpointFolder:
    """The checkpoints of one run; a context manager that holds the folder's lock.

    Args:
        folder: made when it is not there.
        scenario: digest of the scenario, so that no run goes on with the state of another.
        commands: that a replayed run is given.
        interval_s: wall time between two checkpoints, at least.

    Raises:
        InputError: the folder is in use, cannot be written, is damaged, or holds that of another run or version.
    """

    def __init__(
        self, folder: Path, scenario: str, commands: Sequence[Entry] = (), interval_s: float = _INTERVAL_S
    ) -> None:
        self.folder = folder
        self.continued = False
        self.span_file: SpanFile | None = None
        self._scenario = scenario
        self._interval_s = interval_s
        self._next_s = time.monotonic() + interval_s
        self._spans = 0, ""
        names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        if others := sorted(name for name in names - OURS if not is_draft(name)):
            raise InputError(str(folder), f"is no folder of checkpoints, for it holds {shortened(', '.join(others))}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = take_lock(folder / LOCK_FILE)
        except OSError as error:
            raise unwritable(folder, error) from None
        if lock is None:
            raise InputError(str(folder), "is in use by another run")
        self._lock = lock
        try:
            remove_drafts(folder)
            self._target = target_of(folder, scenario)
            self.log = CommandLog(self._load_commands(commands), folder / COMMANDS_FILE)
            self._saved = self._load()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        if self.span_file is not None:
            self.span_file.close()
        self.log.close()
        if kind is None:  # the run is done
            for name in (STATE_FILE, COMMANDS_FILE, SPANS_FILE, TARGET_FILE):  # until the last, a rerun knows of it
                (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            if [path.name for path in self.folder.iterdir()] == [LOCK_FILE]:  # nothing to go on from
                (self.folder / LOCK_FILE).unlink()
                self.folder.rmdir()
        self._lock.close()

    def target(self) -> Path | None:
        """The results folder that this scenario had before it was interrupted; None for a fresh run."""
        return self._target

    def aim(self, results: Path) -> None:
        """Note where the results will be."""
        write_target(self.folder, self._scenario, results)

    def load(self) -> tuple[dict[str, Any], NDArray[Any]] | None:
        """The last state and its request table; None for a fresh run."""
        return self._saved

    def _load_commands(self, given: Sequence[Entry]) -> list[Entry]:
        """Commands of the run that was interrupted, which begin with those that it was given; of a fresh one, these."""
        file = self.folder / COMMANDS_FILE
        before = recover_commands(file)
        self.continued = bool(before)  # commands may have been taken, also where it did not come to a checkpoint
        if self._target is None and not before and given and not (self.folder / STATE_FILE).exists():
            write_bytes(file, encoded(given))
            return list(given)
        if before[: len(given)] != list(given):
            raise InputError(str(self.folder), "holds a checkpoint of a run with other commands; give another folder")
        return before

    def _load(self) -> tuple[dict[str, Any], NDArray[Any]] | None:
        try:
            header, state, rows = read_state(self.folder)
        except FileNotFoundError:  # it did not come so far
            return None
        if header["scenario"] != self._scenario:
            raise InputError(str(self.folder), "holds a checkpoint of another scenario; give another folder")
        check_commands(self.folder / COMMANDS_FILE, self.log.entries, header)
        self.continued = True
        self._spans = header["span_rows"], header["span_sha256"]
        return state, rows

    def open_spans(self) -> SpanFile:
        """The file of executed steps, cut back to the checkpoint."""
        self.span_file = SpanFile(self.folder / SPANS_FILE, *self._spans)
        return self.span_file

    def due(self) -> bool:
        """Whether it is time for another checkpoint."""
        return time.monotonic() >= self._next_s

    def save(self, state: dict[str, Any], rows: NDArray[Any]) -> None:
        """Write a checkpoint."""
        began = time.monotonic()
        spans = 0, ""
        if self.span_file is not None:
            self.span_file.sync()
            spans = self.span_file.rows, self.span_file.sha256
        write_state(self.folder, state, rows, scenario=self._scenario, spans=spans, commands=self.log.entries)
        now = time.monotonic()
        self._next_s = now + max(self._interval_s, (now - began) / _MOST_SHARE)
