"""Checkpoints of a run on disk, so that it goes on where it was after whatever ended it.

checkpoint      the last state: a line of JSON (version, scenario, sizes, sha256), the state as JSON, the request table
commands.jsonl  commands that took effect, each with its simulated time; those after the checkpoint are given again
steps.npy       executed steps; what is beyond the checkpoint is cut off when the run goes on
lock            held by the process that runs
unfinished      the results folder, until it is whole
target.json     where it will be then, and the scenario's digest

A checkpoint is written beside the last one and takes its place in one go, so that there is always a whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from pimserve.cluster.base.files import is_draft, naming, remove_drafts, unwritable, write_bytes, write_json
from pimserve.cluster.base.locks import take_lock
from pimserve.cluster.run.results import SpanFile
from pimserve.errors import InputError, shortened
from pimserve.scheduler.requests import DTYPE

VERSION = 8
COMMANDS_FILE = "commands.jsonl"
RESULTS = "unfinished"
_STATE_FILE = "checkpoint"
_TARGET_FILE = "target.json"
_OURS = {_STATE_FILE, COMMANDS_FILE, "steps.npy", "lock", RESULTS, _TARGET_FILE}
_INTERVAL_S = 2.0
_MOST_SHARE = 0.05  # of the wall time may go into checkpoints


def has_checkpoint(folder: Path) -> bool:
    """Whether a run can go on from a state that was kept there."""
    return (folder / _STATE_FILE).is_file()


class CheckpointFolder:
    """The checkpoints of one run; a context manager that holds the folder's lock.

    Args:
        folder: made when it is not there.
        scenario: digest of the scenario, so that no run goes on with the state of another.
        interval_s: wall time between two checkpoints, at least.

    Raises:
        InputError: the folder is in use, cannot be written, or holds a checkpoint of another scenario or version.
    """

    def __init__(self, folder: Path, scenario: str, interval_s: float = _INTERVAL_S) -> None:
        self.folder = folder
        self.continued = False
        self.span_file: SpanFile | None = None
        self._scenario = scenario
        self._interval_s = interval_s
        self._next_s = time.monotonic() + interval_s
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._span_rows = 0
        self._commands: IO[bytes] | None = None
        names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        if others := sorted(name for name in names - _OURS if not is_draft(name)):
            raise InputError(str(folder), f"is no folder of checkpoints, for it holds {shortened(', '.join(others))}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = take_lock(folder / "lock")
        except OSError as error:
            raise unwritable(folder, error) from None
        if lock is None:
            raise InputError(str(folder), "is in use by another run")
        self._lock = lock
        try:
            remove_drafts(folder)
            self._saved = self._load()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        if self.span_file is not None:
            self.span_file.close()
        if self._commands is not None:
            self._commands.close()
        if kind is None:  # the run is done
            for name in (_STATE_FILE, COMMANDS_FILE, "steps.npy", _TARGET_FILE, "lock"):
                (self.folder / name).unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
        self._lock.close()

    def target(self) -> Path | None:
        """The results folder that this scenario had before it was interrupted; None for a fresh run."""
        return target_of(self.folder, self._scenario)

    def aim(self, results: Path) -> None:
        """Note where the results will be."""
        document = {"scenario": self._scenario, "results": str(results.absolute())}
        write_json(self.folder / _TARGET_FILE, document)

    def load(self) -> tuple[dict[str, Any], NDArray[Any]] | None:
        """The last state and its request table; None for a fresh run."""
        return self._saved

    def _load(self) -> tuple[dict[str, Any], NDArray[Any]] | None:
        file = self.folder / _STATE_FILE
        self._pending = self._read_commands()
        if not file.exists():  # it did not come so far; but commands may have been taken
            self.continued = bool(self._pending)
            return None
        header, state, rows = _read(file)
        if header["scenario"] != self._scenario:
            raise InputError(str(self.folder), "holds a checkpoint of another scenario; give another folder")
        self.continued = True
        self._span_rows = header["span_rows"]
        return state, rows

    def open_spans(self) -> SpanFile:
        """The file of executed steps, cut back to the checkpoint."""
        self.span_file = SpanFile(self.folder / "steps.npy", self._span_rows)
        return self.span_file

    def due(self) -> bool:
        """Whether it is time for another checkpoint."""
        return time.monotonic() >= self._next_s

    def save(self, state: dict[str, Any], rows: NDArray[Any]) -> None:
        """Write a checkpoint."""
        began = time.monotonic()
        if self.span_file is not None:
            self.span_file.sync()
        document = json.dumps(state).encode()
        table = np.ascontiguousarray(rows).view(np.uint8).data  # no copy: others wait for this thread meanwhile
        header = {
            "format": "pimserve checkpoint",
            "version": VERSION,
            "scenario": self._scenario,
            "span_rows": self.span_file.rows if self.span_file is not None else 0,
            "state_bytes": len(document),
            "table_rows": len(rows),
        }
        line = json.dumps({**header, "sha256": _sha256(header, document, table)}).encode()
        write_bytes(self.folder / _STATE_FILE, line, b"\n", document, table)
        now = time.monotonic()
        self._next_s = now + max(self._interval_s, (now - began) / _MOST_SHARE)

    def taken(self, now_fs: int, command: dict[str, Any]) -> None:
        """Write down a command that took effect."""
        if self._commands is None:
            self._commands = (self.folder / COMMANDS_FILE).open("ab")
        with naming(self.folder / COMMANDS_FILE):
            self._commands.write(json.dumps({"at_fs": now_fs, **command}).encode() + b"\n")
            self._commands.flush()
            os.fsync(self._commands.fileno())

    def pending(self, now_fs: int) -> tuple[int, list[dict[str, Any]]] | None:
        """Time and commands of the first entry at or after `now_fs` from before the interruption."""
        at = min((at for at, _ in self._pending if at >= now_fs), default=None)
        return None if at is None else (at, [command for when, command in self._pending if when == at])

    def commands(self) -> bytes:
        """All commands so far, as JSON lines."""
        file = self.folder / COMMANDS_FILE
        return file.read_bytes() if file.exists() else b""

    def _read_commands(self) -> list[tuple[int, dict[str, Any]]]:
        commands = []
        whole = 0  # bytes
        for line in (content := self.commands()).splitlines(keepends=True):
            if not line.endswith(b"\n"):  # the end of the process cut it short, before anyone was told of it
                break
            try:
                command = json.loads(line)
                commands.append((int(command.pop("at_fs")), command))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(str(self.folder / COMMANDS_FILE), f"line {len(commands) + 1} is damaged") from None
            whole += len(line)
        if whole < len(content):
            os.truncate(self.folder / COMMANDS_FILE, whole)
        return commands


def target_of(folder: Path, scenario: str) -> Path | None:
    """The results folder that a scenario, known by its digest, had when it was interrupted; None for a fresh run."""
    try:
        document = json.loads((folder / _TARGET_FILE).read_bytes())
        return Path(document["results"]) if document["scenario"] == scenario else None
    except (OSError, ValueError, KeyError, TypeError):  # it did not come so far
        return None


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any], NDArray[Any]]:
    content = file.read_bytes()
    line, _, payload = content.partition(b"\n")
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != "pimserve checkpoint":
        raise InputError(str(file), "is no checkpoint of pimserve")
    if header.get("version") != VERSION:
        raise InputError(str(file), f"has version {header.get('version')!r}; this pimserve reads {VERSION}")
    checksum = header.pop("sha256", None)
    if _sha256(header, payload) != checksum:
        raise InputError(str(file), "is damaged: its checksum differs; remove it to run from the start")
    split = header["state_bytes"]
    return header, json.loads(payload[:split]), np.frombuffer(payload[split:], DTYPE, header["table_rows"]).copy()


def _sha256(header: dict[str, Any], *content: bytes | memoryview) -> str:
    """Checksum of a checkpoint: of its header, without the checksum itself, and of all that follows."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for part in content:
        digest.update(part)
    return digest.hexdigest()
