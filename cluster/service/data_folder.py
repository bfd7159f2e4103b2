"""Where the service keeps things: one folder for the server, in it one for each run.

DATA/registry.sqlite3      all runs (run_registry.py)
DATA/server.lock           held by the server, so that there is one
DATA/server.json           which process the server is
DATA/reserve               room for that where the disk is full
DATA/runs/ID/              of one run:
    scenario.yaml          as resolved when it was launched
    options.json           how to run it
    worker.lock            held by the worker, so that there is one
    worker.json            which process the worker is, where it listens, and the token that it asks for
    worker.log             what it printed
    checkpoints/           where it can go on from
    results/               what it leaves
    metrics                what its metrics were then
    ended                  what queries are answered from once it has finished (ended_runs.py)
    outcome.json           how it ended
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pimserve.cluster.base.files import PRIVATE, disk_is_full, remove_drafts, sync_folder, write_bytes, write_json
from pimserve.cluster.run.checkpoint import has_checkpoint
from pimserve.errors import InputError

SERVER_FILE = "server.json"
_RESERVE_BYTES = 2**16


class RunFolder:
    """Files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scenario = path / "scenario.yaml"
        self.options = path / "options.json"
        self.lock = path / "worker.lock"
        self.worker = path / "worker.json"
        self.log = path / "worker.log"
        self.checkpoints = path / "checkpoints"
        self.results = path / "results"
        self.metrics = path / "metrics"
        self.ended = path / "ended"
        self.outcome = path / "outcome.json"

    @property
    def id(self) -> str:
        """Of the run."""
        return self.path.name

    @property
    def finished(self) -> bool:
        """Whether results lie there; they come whole."""
        return (self.results / "summary.json").is_file()

    @property
    def untouched(self) -> bool:
        """Whether there is nothing but what `DataFolder.create` made: no worker was here."""
        return self.path.is_dir() and set(self.path.iterdir()) == {self.scenario, self.options}

    @property
    def resumable(self) -> bool:
        """Whether a run that failed can go on: from its checkpoint, or because all was done but for saying so."""
        return has_checkpoint(self.checkpoints) or self.finished

    def size(self) -> int:
        """Bytes of all its files."""
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:  # the worker has just replaced it
                    continue
        return total


class DataFolder:
    """The server's folder; made if need be, for its user only.

    Raises:
        InputError: it cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.registry = self.path / "registry.sqlite3"
        self.lock = self.path / "server.lock"
        self.server = self.path / SERVER_FILE
        self.reserve = self.path / "reserve"
        self.runs = self.path / "runs"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.runs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise InputError(str(path), f"cannot be used as a data folder: {error.strerror}") from None

    def remove_leftovers(self, is_known: Callable[[str], bool]) -> None:
        """Remove what a killed server was making or removing. Only for the one that holds the lock.

        Args:
            is_known: whether the registry has a run of that id; one that it has not, and never began, was not launched.
        """
        remove_drafts(self.path)
        for folder in self.runs.iterdir():
            if folder.name.startswith(".") or (RunFolder(folder).untouched and not is_known(folder.name)):
                shutil.rmtree(folder, ignore_errors=True)

    def write_server(self, document: dict[str, Any]) -> None:
        """Say which process the server is, also on a full disk."""
        try:
            write_json(self.server, document, PRIVATE)
        except OSError as error:
            if not disk_is_full(error) or not self.reserve.exists():
                raise
            self.reserve.unlink()
            write_json(self.server, document, PRIVATE)
        if not self.reserve.exists():
            with suppress(OSError):
                write_bytes(self.reserve, os.urandom(_RESERVE_BYTES), mode=PRIVATE)

    def run(self, run_id: str) -> RunFolder:
        """The folder of that run."""
        return RunFolder(self.runs / run_id)

    def create(self, run_id: str, scenario: str, options: dict[str, Any]) -> RunFolder:
        """Make the folder of a new run, whole or not at all."""
        draft = RunFolder(Path(tempfile.mkdtemp(prefix=".new-", dir=self.runs)))
        try:
            write_bytes(draft.scenario, scenario.encode())
            write_json(draft.options, options, PRIVATE)
            draft.path.rename(self.runs / run_id)
            sync_folder(self.runs)
        except BaseException:
            shutil.rmtree(draft.path, ignore_errors=True)
            raise
        return self.run(run_id)

    def remove(self, run_id: str) -> None:
        """Remove the folder of a run, for which it is gone at once."""
        doomed = self.runs / f".old-{run_id}"
        try:
            (self.runs / run_id).rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)
