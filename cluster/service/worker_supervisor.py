"""Keeps the workers of runs going: starts them, finds again those of a server that is gone, replaces those that die."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence

from pimserve.cluster.base.locks import take_lock
from pimserve.cluster.base.processes import Process
from pimserve.cluster.base.rpc.security import TOKEN_ENV
from pimserve.cluster.base.supervisor import Patience, Supervisor
from pimserve.cluster.metrics.run_metrics import RunMetrics
from pimserve.cluster.service.data_folder import DataFolder
from pimserve.cluster.service.disk_space import DiskSpace
from pimserve.cluster.service.worker_link import UNKNOWN, WorkerLink
from pimserve.v1 import simulation_pb2

_PATIENCE = Patience(deaths=3, span_s=120.0, stop_s=10.0)
_AGAIN_S = 1.0
_METRICS_KEPT_S, _MOST_KEPT = 120.0, 20  # of runs that have ended


class WorkerSupervisor(Supervisor[WorkerLink]):
    """Workers by the id of their run; `space` has runs that wait for some.

    `metrics` may be called from any thread, the rest from one at a time.

    Args:
        data: the server's folder.
        command: that runs a run's folder.
        held: whether a run is held as it begins.
        on_progress: takes news of a run.
    """

    def __init__(
        self,
        data: DataFolder,
        command: Sequence[str],
        held: Callable[[str], bool],
        on_progress: Callable[[str, simulation_pb2.Progress], None],
    ) -> None:
        super().__init__(_PATIENCE)
        self._data = data
        self._command = tuple(command)
        self._held = held
        self._on_progress = on_progress
        self._restart_at: dict[str, float] = {}  # of runs whose worker has ended
        self.space = DiskSpace(data)
        self._last_metrics: dict[str, tuple[float, RunMetrics]] = {}  # of runs that ended lately, and until when

    def __len__(self) -> int:
        """Runs that have a worker, or are about to."""
        return len(self.children) + len(self._restart_at) + len(self.space)

    def adopt(self, run_id: str) -> bool:
        """Take over the worker of a run that a server left which is gone; whether there is one."""
        folder = self._data.run(run_id)
        if not folder.path.is_dir():
            return False
        lock = take_lock(folder.lock)
        if lock is not None:
            lock.close()
            return False
        self.children[run_id] = self._link(run_id, None)
        return True

    def take_ended(self) -> dict[str, int]:
        """Runs whose worker has ended since the last call, and its exit code."""
        ended = self.ended()
        for run_id in ended:
            link = self.children[run_id]
            link.take_last_news()
            self._last_metrics.pop(run_id, None)  # the newest are the last
            if link.metrics is not None:
                self._last_metrics[run_id] = time.monotonic() + _METRICS_KEPT_S, link.metrics
                if len(self._last_metrics) > _MOST_KEPT:
                    del self._last_metrics[next(iter(self._last_metrics))]
            del self.children[run_id]  # only now: who asks for metrics meanwhile finds them
            link.close()
        return ended

    def restart(self, run_id: str) -> None:
        """Have another worker for a run soon."""
        self._restart_at[run_id] = time.monotonic() + _AGAIN_S

    def replace(self, run_id: str, code: int) -> str | None:
        """Have another worker in the place of one that died with that code, later each time.

        Returns what is wrong if it dies too often.
        """
        if (deaths := self.died(run_id)) > self._patience.deaths:
            times = f"{deaths} times within {self._patience.span_s:g} s"
            return f"its process died {times} ({cause_of(code)}); {self._data.run(run_id).log} may say why"
        self._restart_at[run_id] = time.monotonic() + _AGAIN_S * (2 ** (deaths - 1) - 1)
        return None

    def due(self) -> list[str]:
        """Runs whose next worker is to be started now."""
        runs = [run_id for run_id, at in self._restart_at.items() if time.monotonic() >= at]
        for run_id in runs:
            del self._restart_at[run_id]
        return [*runs, *self.space.due()]

    def forget(self, run_id: str) -> None:
        """The run has ended: it gets no other worker, and its deaths do not count if it is continued."""
        self._restart_at.pop(run_id, None)
        self.space.forget(run_id)
        self._deaths.pop(run_id, None)

    def close(self) -> None:
        """Let all workers end for now, and let go of them."""
        links = list(self.children.values())
        self.children = {run_id: link for run_id, link in self.children.items() if link.known}
        self.stop(self._patience.stop_s)
        for link in links:
            link.close()

    def metrics(self) -> list[RunMetrics]:
        """Of the runs that go on, and of those that ended within the last minutes, for the last scrape of them."""
        now = time.monotonic()
        going_on = {run_id: link.metrics for run_id, link in self.children.copy().items()}
        ended = {run_id: metrics for run_id, (until, metrics) in self._last_metrics.copy().items() if until > now}
        return [metrics for metrics in {**ended, **going_on}.values() if metrics is not None]

    def _launch(self, name: str, generation: int) -> WorkerLink:
        """Start a worker, in a session of its own: what ends the server does not end it."""
        folder = self._data.run(name)
        with folder.log.open("ab") as log:
            process = subprocess.Popen(
                [*self._command, str(folder.path), *(["--paused"] if self._held(name) else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder.path,
                env={key: value for key, value in os.environ.items() if key != TOKEN_ENV},
                start_new_session=True,
            )
        return self._link(name, process)

    def _link(self, run_id: str, process: subprocess.Popen[bytes] | None) -> WorkerLink:
        known = None if process is None else Process.of(process.pid)
        return WorkerLink(self._data.run(run_id), known, process, lambda progress: self._on_progress(run_id, progress))


def cause_of(code: int) -> str:
    """Why a worker died."""
    return f"signal {-code}" if code < 0 else "cause unknown" if code == UNKNOWN else f"exit code {code}"
