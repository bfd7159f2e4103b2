"""Keeps runs going: starts those in the queue, finds again those of a server that is gone, replaces dead workers."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from pimserve.cluster.base.files import read_json
from pimserve.cluster.base.locks import take_lock
from pimserve.cluster.base.processes import LOCKED, TO_BE_CONTINUED
from pimserve.cluster.base.rpc.statuses import RefusedError, unknown_run
from pimserve.cluster.metrics.run_metrics import RunMetrics
from pimserve.cluster.service.folders import DataFolder, RunFolder
from pimserve.cluster.service.link import UNKNOWN, WORKER, Link
from pimserve.cluster.service.registry import ACTIVE, ENDED, Record, Registry, State
from pimserve.v1 import simulation_pb2

LOG = logging.getLogger(__name__)
_TICK_S = 0.1
_QUOTA_S = 2.0
_MOST_RESTARTS = 3  # within
_DEATHS_S = 120.0
_AGAIN_S = 1.0
_STOP_S = 10.0
_METRICS_KEPT_S, _MOST_KEPT = 120.0, 20  # of runs that have ended


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a server takes on.

    Args:
        running: runs that go on at once, paused ones too.
        queued: runs that wait.
        disk_bytes: of all runs together; None: as much as there is.
    """

    running: int
    queued: int
    disk_bytes: int | None


class Supervisor:
    """Usable from any thread.

    Args:
        data: its folder.
        registry: of all runs.
        limits: how much it takes on.
        worker: command that runs a run's folder.
    """

    def __init__(self, data: DataFolder, registry: Registry, limits: Limits, worker: Sequence[str] = WORKER) -> None:
        self.registry = registry
        self.stopping = False
        self._data = data
        self._limits = limits
        self._worker = tuple(worker)
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._version = 0
        self._wake = threading.Event()
        self._links: dict[str, Link] = {}
        self._progress: dict[str, simulation_pb2.Progress] = {}
        self._deaths: dict[str, list[float]] = {}  # when each run's process died lately
        self._waiting: dict[str, float] = {}  # runs whose worker died: when the next is started
        self._sizes: dict[str, int] = {}  # bytes of runs that have ended
        self._last_metrics: dict[str, tuple[float, RunMetrics]] = {}  # of runs that ended lately, and until when
        self._quota_at = 0.0
        self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)

    def start(self) -> None:
        """Go on with the runs that were going on, and begin with those in the queue."""
        self._data.sweep()
        with self._lock:
            for record in self.registry.in_states(*ACTIVE):
                try:
                    self._find(record)
                except (ValueError, KeyError, OSError) as error:  # one run's files must not keep the others waiting
                    self._end(record.id, "failed", f"its files are damaged: {error}")
        self._thread.start()

    def stop(self) -> None:
        """Let all runs end for now; a server that is started later goes on with them."""
        self.stopping = True
        self.notify()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        for link in self._links.values():
            link.stop()
        end = time.monotonic() + _STOP_S
        while time.monotonic() < end and any(link.poll() is None and link.known for link in self._links.values()):
            time.sleep(_TICK_S)
        for link in self._links.values():
            link.close()

    def launch(
        self, scenario: str, name: str, *, speed: float, paused: bool, key: str, digest: str
    ) -> tuple[Record, bool]:
        """Put a run in the queue; returns it, and whether it is new.

        Raises:
            RefusedError: the queue or the disk is full, the server stops, or the key stands for something else.
        """
        with self._lock:
            if key and (known := self.registry.by_key(key)) is not None:
                if known.request_digest != digest:
                    raise RefusedError(
                        grpc.StatusCode.ALREADY_EXISTS, f"run {known.id} was launched with this key and other options"
                    )
                return known, False
            self._admit()
            run_id = self._new_id()
            try:
                self._data.create(run_id, scenario, {"speed": speed})
            except OSError as error:
                raise RefusedError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, f"the server cannot write its files: {error.strerror}"
                ) from None
            try:
                record = self.registry.add(
                    run_id, name, speed=speed, start_paused=paused, idempotency_key=key, request_digest=digest
                )
            except BaseException:
                self._data.remove(run_id)
                raise
            self._start_queued()
        self.notify()
        return record, True

    def record(self, run_id: str) -> Record:
        """The run.

        Raises:
            RefusedError: there is none of that id.
        """
        record = self.registry.get(run_id)
        if record is None:
            raise unknown_run(run_id)
        return record

    def link(self, run_id: str) -> Link:
        """The worker of a run, ready to be called.

        Raises:
            RefusedError: it has none, or none that is ready.
        """
        record = self.record(run_id)
        if record.state in ENDED:
            raise RefusedError(
                grpc.StatusCode.FAILED_PRECONDITION, f"run {run_id} is {record.state}: only a run that goes on answers"
            )
        if record.state == "queued":
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, f"run {run_id} is still in the queue")
        link = self._links.get(run_id)
        if link is None or link.simulation is None:
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, f"run {run_id} is starting; try again")
        return link

    def progress(self, record: Record) -> simulation_pb2.Progress | None:
        """How far a run is, as far as is known."""
        if record.state in ENDED:
            return simulation_pb2.Progress(**json.loads(record.progress))
        return self._progress.get(record.id)

    def metrics(self) -> list[RunMetrics]:
        """Of the runs that go on, and of those that ended within the last minutes, for the last scrape of them."""
        now = time.monotonic()
        going_on = {run_id: link.metrics for run_id, link in self._links.copy().items()}
        ended = {run_id: metrics for run_id, (until, metrics) in self._last_metrics.copy().items() if until > now}
        return [metrics for metrics in {**ended, **going_on}.values() if metrics is not None]

    def queue_position(self, record: Record) -> int:
        """Runs in the queue before this one."""
        return sum(other.number < record.number for other in self.registry.in_states("queued"))

    def cancel(self, run_id: str) -> Record:
        """End a run without results; one that has ended stays as it is."""
        with self._lock:
            record = self.record(run_id)
            link = self._links.get(run_id)
            if record.state in ACTIVE and link is not None:
                self.registry.cancel(run_id)
            elif record.state not in ENDED:
                self._end(run_id, "cancelled")
        if link is not None:
            link.end()
        return self.record(run_id)

    def delete(self, run_id: str) -> None:
        """Forget a run and remove its files.

        Raises:
            RefusedError: it has not ended.
        """
        with self._lock:
            record = self.record(run_id)
            if record.state not in ENDED:
                raise RefusedError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"run {run_id} is {record.state}: cancel it before you delete it",
                )
            self.registry.remove(run_id)
            self._data.remove(run_id)
            self._sizes.pop(run_id, None)
        self.notify()

    def hold(self, run_id: str, *, held: bool) -> None:
        """A run is held, or goes on."""
        self.registry.hold(run_id, "paused" if held else "running")
        self.notify()

    def folder(self, run_id: str) -> RunFolder:
        """Files of a run."""
        return self._data.run(run_id)

    def notify(self) -> None:
        """There is news of some run."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def wait(self, version: int, timeout_s: float) -> int:
        """Wait for news since `version`, or for the time; returns the version then."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version or self.stopping, timeout_s)
            return self._version

    def _loop(self) -> None:
        while not self.stopping:
            try:
                with self._lock:
                    self._tick()
            except Exception:
                LOG.exception("internal error")
            self._wake.wait(_TICK_S)

    def _tick(self) -> None:
        for run_id, link in list(self._links.items()):
            code = link.poll()
            if code is not None:
                link.hear_out()
                if link.metrics is not None:
                    self._keep_metrics(run_id, link.metrics)
                self._links.pop(run_id).close()
                self._ended(run_id, code)
        for run_id, at in list(self._waiting.items()):
            if time.monotonic() >= at:
                del self._waiting[run_id]
                self._start(self.record(run_id))
        self._start_queued()
        if time.monotonic() >= self._quota_at:
            self._quota_at = time.monotonic() + _QUOTA_S
            self._hold_quota()

    def _start_queued(self) -> None:
        for record in self.registry.in_states("queued"):
            if len(self._links) + len(self._waiting) >= self._limits.running or self.stopping:
                return
            self.registry.start(record.id, "paused" if record.start_paused else "running")
            self._start(self.record(record.id))

    def _start(self, record: Record) -> None:
        folder = self._data.run(record.id)
        try:
            self._links[record.id] = Link.start(
                folder, self._worker, held=record.state == "paused", heard=self._hears(record.id)
            )
        except OSError as error:
            self._end(record.id, "failed", f"its process cannot be started: {error}")
        self.notify()

    def _find(self, record: Record) -> None:
        """Go on with a run of a server that is gone: adopt its worker if that lives, else start another."""
        folder = self._data.run(record.id)
        if self._take_outcome(record):
            return
        lock = take_lock(folder.lock) if folder.path.is_dir() else None
        if lock is None and folder.path.is_dir():
            LOG.info("run %s: its worker goes on", record.id)
            self._links[record.id] = Link.adopt(folder, heard=self._hears(record.id))
            if record.cancelled:
                self._links[record.id].end()
            return
        if lock is not None:
            lock.close()
        if record.cancelled:
            self._end(record.id, "cancelled")
        elif not folder.path.is_dir():
            self._end(record.id, "failed", "its files are gone")
        else:
            LOG.info("run %s: goes on from its checkpoint", record.id)
            self._start(record)

    def _ended(self, run_id: str, code: int) -> None:
        """A worker has ended."""
        record = self.registry.get(run_id)
        if record is None or record.state in ENDED or self._take_outcome(record):
            return
        if record.cancelled:
            self._end(run_id, "cancelled")
        elif code == LOCKED:
            self._find(record)
        elif code == TO_BE_CONTINUED:
            self._waiting[run_id] = time.monotonic() + _AGAIN_S
        elif (deaths := self._death_of(run_id)) > _MOST_RESTARTS:
            folder = self._data.run(run_id)
            self._end(
                run_id,
                "failed",
                f"its process died {deaths} times within {_DEATHS_S:g} s ({_cause(code)}); {folder.log} may say why",
            )
        else:
            record = self.registry.restarted(run_id)
            LOG.warning("run %s: its worker died (%s), restart %d", run_id, _cause(code), record.restarts)
            self._waiting[run_id] = time.monotonic() + _AGAIN_S * (2 ** (deaths - 1) - 1)
        self.notify()

    def _keep_metrics(self, run_id: str, metrics: RunMetrics) -> None:
        now = time.monotonic()
        for old, (until, _) in list(self._last_metrics.items()):
            if until <= now:
                del self._last_metrics[old]
        while len(self._last_metrics) >= _MOST_KEPT:
            del self._last_metrics[next(iter(self._last_metrics))]
        self._last_metrics[run_id] = now + _METRICS_KEPT_S, metrics

    def _death_of(self, run_id: str) -> int:
        """How often the run's process has died lately, this time included."""
        now = time.monotonic()
        deaths = [at for at in self._deaths.get(run_id, []) if at > now - _DEATHS_S] + [now]
        self._deaths[run_id] = deaths
        return len(deaths)

    def _take_outcome(self, record: Record) -> bool:
        """Whether the run's worker has said how it ended."""
        outcome = read_json(self._data.run(record.id).outcome)
        if outcome is None:
            return False
        self._end(record.id, outcome["state"], outcome["error"], outcome["progress"])
        return True

    def _end(self, run_id: str, state: State, error: str = "", progress: dict[str, Any] | None = None) -> None:
        last = self._progress.pop(run_id, None)
        if not progress and last is not None:
            progress = {field.name: value for field, value in last.ListFields()}
        LOG.info("run %s: %s%s", run_id, state, f": {error}" if error else "")
        self.registry.end(run_id, state, error, progress or {})
        self._waiting.pop(run_id, None)
        self.notify()

    def _hears(self, run_id: str) -> Callable[[simulation_pb2.Progress], None]:
        def heard(progress: simulation_pb2.Progress) -> None:
            self._progress[run_id] = progress
            self.notify()

        return heard

    def _admit(self) -> None:
        if self.stopping:
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        queued = len(self.registry.in_states("queued"))
        if queued >= self._limits.queued and len(self._links) + len(self._waiting) >= self._limits.running:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"the queue is full: {queued} runs wait; try again later"
            )
        if self._limits.disk_bytes is not None and self._usage() >= self._limits.disk_bytes:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"runs take up the {self._limits.disk_bytes:,} bytes that the server may use; delete some",
            )

    def _hold_quota(self) -> None:
        """Fail the run that writes most when all together have written too much."""
        limit = self._limits.disk_bytes
        if limit is None or not self._links or self._usage() < limit:
            return
        run_id = max(self._links, key=lambda run_id: self._data.run(run_id).size())
        self._links[run_id].kill()
        shutil.rmtree(self._data.run(run_id).checkpoints, ignore_errors=True)  # else the next run would pay for it
        self._end(run_id, "failed", f"disk quota: all runs together may take up {limit:,} bytes")

    def _usage(self) -> int:
        total = 0
        for folder in self._data.runs.iterdir():
            run_id = folder.name
            if run_id in self._sizes:
                total += self._sizes[run_id]
                continue
            size = self._data.run(run_id).size()
            record = self.registry.get(run_id)
            if record is not None and record.state in ENDED:
                self._sizes[run_id] = size
            total += size
        return total

    def _new_id(self) -> str:
        while True:
            run_id = secrets.token_hex(4)
            if self.registry.get(run_id) is None and not self._data.run(run_id).path.exists():
                return run_id


def _cause(code: int) -> str:
    return f"signal {-code}" if code < 0 else "cause unknown" if code == UNKNOWN else f"exit code {code}"
