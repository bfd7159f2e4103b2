"""The server's end of one worker: its process, and a channel to it."""

from __future__ import annotations

import logging
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import grpc

from pimserve.cluster.base.files import read_json
from pimserve.cluster.base.locks import take_lock
from pimserve.cluster.base.processes import Process
from pimserve.cluster.base.rpc.channels import process_channel
from pimserve.cluster.base.rpc.security import bearer
from pimserve.cluster.metrics.layout import Layout
from pimserve.cluster.metrics.run_metrics import RunMetrics
from pimserve.cluster.service.data_folder import RunFolder
from pimserve.errors import InputError
from pimserve.v1 import scheduler_pb2_grpc, simulation_pb2, simulation_pb2_grpc, worker_pb2, worker_pb2_grpc

LOG = logging.getLogger(__name__)
WORKER = (sys.executable, "-m", "pimserve.cluster.service.worker")
_FOLLOW_S = 0.2
_LAST_NEWS_S = 1.0
_STALE_S = 1.0  # what was heard longer ago is not passed on
_END_AFTER_S = 20.0  # a worker that was told to end and has not is killed
UNKNOWN = 256  # exit code of a worker that is nobody's child any more


class WorkerLink:
    """A worker.

    Args:
        folder: of the run.
        process: the worker; None: one that was left behind, and may not have said yet where it is.
        child: the same if it is ours.
        on_progress: takes news of the run.

    `metrics` are those that it told last.
    """

    def __init__(
        self,
        folder: RunFolder,
        process: Process | None,
        child: subprocess.Popen[bytes] | None,
        on_progress: Callable[[simulation_pb2.Progress], None],
    ) -> None:
        self.folder = folder
        self.metrics: RunMetrics | None = None
        self._process = process
        self._child = child
        self._on_progress = on_progress
        self._kill_at: float | None = None
        self._channel: grpc.Channel | None = None
        self._latest: worker_pb2.FollowResponse | None = None
        self._changed_s = -math.inf
        self._heard = threading.Condition()
        self._layout: Layout | None = None
        self._follower: threading.Thread | None = None
        self.simulation: simulation_pb2_grpc.SimulationServiceStub | None = None
        self.scheduler: scheduler_pb2_grpc.SchedulerServiceStub | None = None
        self.metadata: tuple[tuple[str, str], ...] = ()

    def poll(self) -> int | None:
        """The exit code of the worker if it has ended, or UNKNOWN; None while it runs."""
        if self._channel is None:
            self._connect()
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self.kill()
        if self._child is not None:
            return self._child.poll()
        if self._process is not None:
            return None if self._process.alive() else UNKNOWN
        lock = take_lock(self.folder.lock)  # it has not said yet which process it is, but it has the lock
        if lock is None:
            return None
        lock.close()
        return UNKNOWN

    @property
    def known(self) -> bool:
        """Whether it is known which process it is."""
        return self._process is not None

    @property
    def begun(self) -> bool:
        """Whether the run has: its process and all that it runs on have started."""
        return self._latest is not None

    def latest(self) -> worker_pb2.FollowResponse | None:
        """The run as last heard of; None where that is old, or older than a change, or the run is held.

        A run that is held answers at once when it is asked, and exactly.
        """
        latest, now = self._latest, time.monotonic()
        if latest is None or latest.held or latest.taken_s < max(self._changed_s, now - _STALE_S):
            return None
        return latest

    def changed(self) -> None:
        """The run was held or changed just now, as the worker has answered."""
        self._changed_s = time.monotonic()

    def wait_for_news(self) -> None:
        """Wait until the run has told of itself as it is since the change, if it does soon."""
        with self._heard:
            self._heard.wait_for(lambda: self._latest and self._latest.taken_s >= self._changed_s, _LAST_NEWS_S)

    def end(self) -> None:
        """Have the run ended; if it does not follow, its process."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + _END_AFTER_S
        if self.simulation is None or not self.begun:
            self.kill()  # nothing is lost: it has not begun, or cannot be reached
            return
        try:
            request = simulation_pb2.CancelRequest(run_id=self.folder.id)
            self.simulation.Cancel(request, timeout=_END_AFTER_S, metadata=self.metadata)
        except grpc.RpcError:
            self.kill()

    def stop(self, grace_s: float) -> None:
        """Let it end for now."""
        if self._process is not None:
            self._process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End its process."""
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    def take_last_news(self) -> None:
        """Take in what a worker that has ended told last, and what it wrote down: it may have been too quick."""
        if self._follower is not None:
            self._follower.join(_LAST_NEWS_S)
        try:
            self.metrics = RunMetrics.from_bytes(self.folder.metrics.read_bytes())
        except FileNotFoundError:  # it was killed
            return
        except (OSError, InputError) as error:
            LOG.warning("run %s: its last metrics cannot be read: %s", self.folder.id, error)

    def close(self) -> None:
        """Let go of the worker, which may go on."""
        if self._channel is not None:
            self._channel.close()

    def _connect(self) -> None:
        """Open the channel, once the worker says where it listens."""
        document = read_json(self.folder.worker)
        if document is None:
            return
        process = Process.from_document(document)
        if not process.alive() or (self._child is not None and process != self._process):
            return  # of a worker before this one, or beside it
        self._process = process
        self.metadata = bearer(document["token"])
        self._channel = process_channel(document["address"])
        self.scheduler = scheduler_pb2_grpc.SchedulerServiceStub(self._channel)
        self.simulation = simulation_pb2_grpc.SimulationServiceStub(self._channel)
        follow = worker_pb2_grpc.WorkerServiceStub(self._channel).Follow
        self._follower = threading.Thread(target=self._follow, args=(follow,), name="follow", daemon=True)
        self._follower.start()

    def _follow(self, follow: Callable[..., Iterator[worker_pb2.FollowResponse]]) -> None:
        """Take note of the run until its worker is gone; anew when the connection was broken, as by a long stop."""
        request = worker_pb2.FollowRequest(run_id=self.folder.id, interval_s=_FOLLOW_S)
        while True:
            try:
                for news in follow(request, metadata=self.metadata):
                    self._latest = news
                    self._take_metrics(news)
                    self._on_progress(news.progress)
                    with self._heard:
                        self._heard.notify_all()
            except grpc.RpcError:
                if self._process is None or not self._process.alive():
                    return
            except ValueError:  # the channel was closed
                return
            else:
                return
            time.sleep(_FOLLOW_S)

    def _take_metrics(self, news: worker_pb2.FollowResponse) -> None:
        try:
            if news.metrics_layout:
                self._layout = Layout.from_json(news.metrics_layout)
            if news.metrics and self._layout is not None:
                self.metrics = RunMetrics.unpack(self._layout, news.metrics)
        except InputError:  # of another version: the run goes on without
            LOG.warning("run %s: its metrics are of another version", self.folder.id)
            self._layout = None
