"""Where the runs of a sweep are made: spawned processes of this machine, or Ray tasks."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from pimserve.cluster.base.checksums import write_checksums
from pimserve.cluster.base.files import write_json
from pimserve.cluster.base.whole_folders import results_folder
from pimserve.cluster.distributed.hosts.ray_cluster import RayCluster
from pimserve.cluster.distributed.hosts.ray_process import RayEndedError
from pimserve.cluster.run.read_summary import load_document
from pimserve.errors import PimserveError

MAKE = "pimserve.cluster.sweep.workers:make_files"
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Task:
    """A run that is to be made: (point, run of the point), its scenario (JSON), and its folder."""

    key: tuple[int, int]
    scenario: str
    folder: Path


class Workers(Protocol):
    """Where runs are made."""

    def run(self, tasks: Iterable[Task]) -> Generator[tuple[Task, str | None], None, None]:
        """Make all runs, in any order; yields each with its error, or None once its folder is there."""


class ProcessWorkers:
    """Spawned processes, each with one run at a time: one that dies takes no other run with it."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs

    def run(self, tasks: Iterable[Task]) -> Generator[tuple[Task, str | None], None, None]:
        """Make all runs; when the caller stops early, runs under way are given up and leave nothing."""
        waiting = iter(tasks)
        busy: dict[Connection, tuple[_Child, Task]] = {}
        child: _Child | None
        try:
            for _, task in zip(range(self._jobs), waiting, strict=False):
                child = _Child()
                busy[child.pipe] = (child, task)
                child.give(task)
            while busy:
                for pipe in wait(list(busy)):
                    assert isinstance(pipe, Connection)
                    child, task = busy.pop(pipe)
                    error = child.outcome()
                    following = next(waiting, None)
                    if following is None or not child.process.is_alive():
                        child.end()
                        child = None if following is None else _Child()
                    if child is not None and following is not None:
                        busy[child.pipe] = (child, following)
                        child.give(following)
                    yield task, error
        finally:
            for child, _ in busy.values():
                child.end()


class _Child:
    """A worker process, as its parent sees it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks, and has no clean start
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=_work, args=(far,), daemon=True)
        self.process.start()
        far.close()

    def give(self, task: Task) -> None:
        with suppress(OSError):  # it has died: `outcome` says so
            self.pipe.send((task.scenario, str(task.folder)))

    def outcome(self) -> str | None:
        try:
            error: str | None = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            return f"its process {how}{'; was there memory enough?' if code == -signal.SIGKILL else ''}"
        return error

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _work(pipe: Connection) -> None:
    """What a worker process does: one run after the other, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    while True:
        scenario, folder = pipe.recv()
        pipe.send(make(scenario, Path(folder)))


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


class RayWorkers:
    """Ray tasks of one CPU each. What they write comes back as files, for their nodes may not share our disk."""

    def __init__(self, cluster: RayCluster, jobs: int | None = None) -> None:
        self._cluster = cluster
        self._jobs = jobs or max(1, int(cluster.total().get("CPU", 1)))

    def run(self, tasks: Iterable[Task]) -> Generator[tuple[Task, str | None], None, None]:
        """Make all runs; when the caller stops early, tasks under way are cancelled."""
        ray = self._cluster.process
        waiting = iter(tasks)
        busy: dict[int, Task] = {}
        try:
            while True:
                for _, task in zip(range(self._jobs - len(busy)), waiting, strict=False):
                    busy[ray.call("submit", MAKE, task.scenario)] = task
                if not busy:
                    return
                for number, made, lost in ray.call("finished"):
                    task = busy.pop(number)
                    error, files = (f"its Ray task was lost: {lost}", {}) if lost else made
                    yield task, error if error is not None else _write(task, files)
                time.sleep(_POLL_S)
        finally:
            with suppress(RayEndedError):
                ray.call("cancel")


def make(scenario: str, folder: Path) -> str | None:
    """Make one run in this process; returns what is wrong with it, None if it is there."""
    from pimserve.cluster.run.run import run  # noqa: PLC0415 heavy, and only here
    from pimserve.cluster.scenario.document import Scenario  # noqa: PLC0415
    from pimserve.cluster.scenario.prepared import prepare  # noqa: PLC0415

    try:
        run(prepare(Scenario.model_validate(json.loads(scenario))), folder)
    except PimserveError as error:
        return str(error)
    except MemoryError:
        return "out of memory: a smaller workload needs less"
    except OSError as error:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except Exception as error:  # noqa: BLE001 the other points go on, and the sweep tells
        return f"internal error: {type(error).__name__}: {error}"
    return None


def make_files(scenario: str) -> tuple[str | None, dict[str, str]]:
    """Make one run, wherever this is; returns its error and the files of its results folder, in base 64."""
    with tempfile.TemporaryDirectory(prefix="pimserve-") as scratch:
        folder = Path(scratch) / "results"
        error = make(scenario, folder)
        files = [] if error is not None else list(folder.iterdir())
        return error, {file.name: b64encode(file.read_bytes()).decode() for file in files}


def _write(task: Task, files: dict[str, str]) -> str | None:
    """Write a results folder that was made elsewhere."""
    try:
        with results_folder(task.folder, task.folder.name) as (folder, target):
            for name, content in files.items():
                (folder / name).write_bytes(b64decode(content))
            write_json(folder / "summary.json", {**load_document(folder), "results": str(target)})
            write_checksums(folder)
    except PimserveError as error:
        return str(error)
    return None
