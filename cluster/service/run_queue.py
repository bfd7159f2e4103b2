"""The runs of a server: launched into a queue, begun in turn, kept going until they end, cancelled and deleted."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc

from pimserve.cluster.base.files import PRIVATE, disk_is_full, read_json, write_json
from pimserve.cluster.base.processes import LOCKED, NO_SPACE, TO_BE_CONTINUED
from pimserve.cluster.base.rpc.statuses import RefusedError, unknown_run
from pimserve.cluster.metrics.run_metrics import RunMetrics
from pimserve.cluster.service.data_folder import DataFolder, RunFolder
from pimserve.cluster.service.disk_usage import DiskUsage
from pimserve.cluster.service.limits import Limits
from pimserve.cluster.service.run_registry import ACTIVE, ENDED, Record, Registry, RunRequest, State
from pimserve.cluster.service.worker_link import WORKER, WorkerLink
from pimserve.cluster.service.worker_supervisor import WorkerSupervisor, cause_of
from pimserve.v1 import simulation_pb2

LOG = logging.getLogger(__name__)
_TICK_S = 0.1
_QUOTA_S = 2.0


class RunQueue:
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
        self._workers = WorkerSupervisor(data, worker, self._is_held, self._on_progress)
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._version = 0
        self._wake = threading.Event()
        self._progress: dict[str, simulation_pb2.Progress] = {}
        self._begun: set[str] = set()  # runs whose worker has told of them
        self._ended: dict[str, int] = {}  # exit codes of workers that have not been acted on
        self._disk = DiskUsage(data, registry)
        self._quota_at = 0.0
        self._thread = threading.Thread(target=self._loop, name="runs", daemon=True)

    def start(self) -> None:
        """Go on with the runs that were going on, and begin with those in the queue."""
        self._data.remove_leftovers(lambda run_id: self.registry.get(run_id) is not None)
        with self._lock:
            for record in self.registry.in_states(*ACTIVE):
                try:
                    self._resume(record)
                except (ValueError, KeyError, OSError) as error:  # one run's files must not keep the others waiting
                    if disk_is_full(error):
                        self._wait_for_space(record.id)
                        continue
                    self._end(record.id, "failed", f"its files are damaged: {error}")
        self._thread.start()

    def stop(self) -> None:
        """Let all runs end for now; a server that is started later goes on with them."""
        self.stopping = True
        self.notify()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._workers.close()

    def launch(self, scenario: str, asked: RunRequest) -> tuple[Record, bool]:
        """Put a run of a scenario (YAML) in the queue; returns it, and whether it is new.

        Raises:
            RefusedError: the queue or the disk is full, the server stops, or the key stands for something else.
        """
        with self._lock:
            known = self.registry.by_key(asked.idempotency_key) if asked.idempotency_key else None
            if known is not None:
                if known.request_digest != asked.request_digest:
                    raise RefusedError(
                        grpc.StatusCode.ALREADY_EXISTS, f"run {known.id} was launched with this key and other options"
                    )
                return known, False
            self._admit()
            run_id = self._new_id()
            try:
                self._data.create(run_id, scenario, {"speed": asked.speed, "place": json.loads(asked.place)})
            except OSError as error:
                raise RefusedError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, f"the server cannot write its files: {error.strerror}"
                ) from None
            try:
                record = self.registry.add(run_id, asked)
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
        if (record := self.registry.get(run_id)) is None:
            raise unknown_run(run_id)
        return record

    def link(self, run_id: str) -> WorkerLink:
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
        link = self._workers.children.get(run_id)
        if link is None or link.simulation is None:
            why = self._workers.space.why(run_id) or "is starting; try again"
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, f"run {run_id} {why}")
        return link

    def replaced(self, run_id: str, link: WorkerLink) -> bool:
        """Whether a run that goes on has, or is about to have, another worker than this one."""
        with self._lock:
            return self.record(run_id).state in ACTIVE and self._workers.children.get(run_id) is not link

    def progress(self, record: Record) -> simulation_pb2.Progress | None:
        """How far a run is, as far as is known."""
        latest = self._progress.get(record.id)
        if latest is None and (reached := json.loads(record.progress)):  # it has ended, or did before it was continued
            return simulation_pb2.Progress(**reached)
        return latest

    def trouble(self, record: Record) -> str:
        """Why a run failed, or what it waits for; empty if there is nothing to say."""
        return record.error or self._workers.space.why(record.id)

    def metrics(self) -> list[RunMetrics]:
        """Of the runs that go on, and of those that ended within the last minutes, for the last scrape of them."""
        return self._workers.metrics()

    def queue_position(self, record: Record) -> int:
        """Runs in the queue before this one."""
        return sum(other.number < record.number for other in self.registry.in_states("queued"))

    def cancel(self, run_id: str) -> Record:
        """End a run without results; one that has ended stays as it is."""
        with self._lock:
            record = self.record(run_id)
            link = self._workers.children.get(run_id)
            if record.state in ACTIVE and link is not None:
                self.registry.cancel(run_id)
            elif record.state not in ENDED:
                self._end(run_id, "cancelled")
        if link is not None:
            link.end()
        return self.record(run_id)

    def go_on(self, run_id: str) -> Record:
        """Put a run that has failed into the queue, to go on from its checkpoint; one that goes on stays as it is.

        Raises:
            RefusedError: it ended otherwise, there is nothing to go on from, or the queue or the disk is full.
        """
        with self._lock:
            record = self.record(run_id)
            if record.state not in ENDED:
                return record
            folder = self._data.run(run_id)
            if record.state != "failed" or not folder.resumable:
                why = "it has no checkpoint to go on from" if record.state == "failed" else "only a failed run goes on"
                raise RefusedError(
                    grpc.StatusCode.FAILED_PRECONDITION, f"run {run_id} is {record.state}: {why}; launch it again"
                )
            if run_id in self._workers.children:
                raise RefusedError(grpc.StatusCode.UNAVAILABLE, f"the process of run {run_id} is ending; try again")
            self._admit()
            folder.outcome.unlink(missing_ok=True)
            self.registry.requeue(run_id)
            self._disk.forget(run_id)
            self._start_queued()
        self.notify()
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
            self._data.remove(run_id)  # first: what is left of it can be deleted again
            self.registry.remove(run_id)
            self._disk.forget(run_id)
        self.notify()

    def hold(self, run_id: str, *, held: bool) -> None:
        """A run is held, or goes on."""
        self.registry.hold(run_id, held=held)
        self.notify()

    def pace(self, run_id: str, speed: float, states: Sequence[State]) -> bool:
        """A run in one of these states goes on at another speed, also after a restart; whether it is in one."""
        with self._lock:
            if self.record(run_id).state not in states:
                return False
            options = self._data.run(run_id).options
            write_json(options, {**(read_json(options) or {}), "speed": speed}, PRIVATE)
            self.registry.pace(run_id, speed)
        self.notify()
        return True

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
        self._ended |= self._workers.take_ended()
        for run_id, code in list(self._ended.items()):
            self._worker_ended(run_id, code)
            del self._ended[run_id]  # only now: where this fails, it is tried again
        for run_id in self._workers.due():
            self._start(self.record(run_id))
        self._start_queued()
        if time.monotonic() >= self._quota_at:
            self._quota_at = time.monotonic() + _QUOTA_S
            self._hold_quota()

    def _start_queued(self) -> None:
        for record in self.registry.in_states("queued"):
            if len(self._workers) >= self._limits.running or self.stopping:
                return
            self.registry.start(record.id)
            self._start(record)

    def _is_held(self, run_id: str) -> bool:
        return self.record(run_id).held

    def _start(self, record: Record) -> None:
        self._begun.discard(record.id)
        with suppress(OSError):  # a full disk; it is started all the same
            self.registry.restarting(record.id)
        try:
            self._workers.start(record.id)
        except OSError as error:
            if disk_is_full(error):
                self._wait_for_space(record.id)
            else:
                self._end(record.id, "failed", f"its process cannot be started: {error}")
        self.notify()

    def _resume(self, record: Record) -> None:
        """Go on with a run of a server that is gone: adopt its worker if that lives, else start another."""
        if self._take_outcome(record):
            return
        if self._workers.adopt(record.id):
            LOG.info("run %s: its worker goes on", record.id)
            if record.cancelled:
                self._workers.children[record.id].end()
        elif record.cancelled:
            self._end(record.id, "cancelled")
        elif not self._data.run(record.id).path.is_dir():
            self._end(record.id, "failed", "its files are gone")
        else:
            LOG.info("run %s: goes on from its checkpoint", record.id)
            self._start(record)

    def _worker_ended(self, run_id: str, code: int) -> None:
        record = self.registry.get(run_id)
        if record is None or record.state in ENDED or self._take_outcome(record):
            return
        if record.cancelled:
            self._end(run_id, "cancelled")
        elif code == LOCKED:
            self._resume(record)
        elif code == TO_BE_CONTINUED:
            self._workers.restart(run_id)
            self.registry.restarting(run_id)
        elif code == NO_SPACE:
            self._wait_for_space(run_id)
        elif (wrong := self._workers.replace(run_id, code)) is not None:
            self._end(run_id, "failed", wrong)
        else:
            record = self.registry.died(run_id)
            LOG.warning("run %s: its worker died (%s), restart %d", run_id, cause_of(code), record.restarts)
        self.notify()

    def _wait_for_space(self, run_id: str) -> None:
        """Have another worker for a run when there is room for its files."""
        self._workers.space.wait(run_id)
        LOG.warning("run %s %s", run_id, self._workers.space.why(run_id))
        self.registry.restarting(run_id)

    def _take_outcome(self, record: Record) -> bool:
        """Whether the run's worker has said how it ended."""
        outcome = read_json(self._data.run(record.id).outcome)
        if outcome is None:
            return False
        self._end(record.id, outcome["state"], outcome["error"], outcome["progress"])
        return True

    def _end(self, run_id: str, state: State, error: str = "", progress: dict[str, Any] | None = None) -> None:
        self._begun.discard(run_id)
        last = self._progress.pop(run_id, None)
        if not progress and last is not None:
            progress = {field.name: value for field, value in last.ListFields()}
        LOG.info("run %s: %s%s", run_id, state, f": {error}" if error else "")
        self.registry.end(run_id, state, error, progress or json.loads(self.record(run_id).progress))
        self._workers.forget(run_id)
        if state == "cancelled":
            shutil.rmtree(self._data.run(run_id).checkpoints, ignore_errors=True)
        self.notify()

    def _on_progress(self, run_id: str, progress: simulation_pb2.Progress) -> None:
        if run_id not in self._begun:
            with suppress(OSError):  # a full disk; it is noted with the next news
                self.registry.begun(run_id)
                self._begun.add(run_id)
        self._progress[run_id] = progress
        self.notify()

    def _admit(self) -> None:
        if self.stopping:
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        queued = len(self.registry.in_states("queued"))
        if queued >= self._limits.queued and len(self._workers) >= self._limits.running:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"the queue is full: {queued} runs wait; try again later"
            )
        if self._limits.disk_bytes is not None and self._disk.bytes() >= self._limits.disk_bytes:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"runs take up the {self._limits.disk_bytes:,} bytes that the server may use; delete some",
            )

    def _hold_quota(self) -> None:
        """Fail the run that writes most when all together have written too much."""
        limit = self._limits.disk_bytes
        if limit is None or not self._workers.children or self._disk.bytes() < limit:
            return
        run_id = max(self._workers.children, key=lambda run_id: self._data.run(run_id).size())
        self._workers.children[run_id].kill()
        shutil.rmtree(self._data.run(run_id).checkpoints, ignore_errors=True)  # else the next run would pay for it
        self._end(run_id, "failed", f"disk quota: all runs together may take up {limit:,} bytes")

    def _new_id(self) -> str:
        while True:
            run_id = secrets.token_hex(4)
            if self.registry.get(run_id) is None and not self._data.run(run_id).path.exists():
                return run_id
