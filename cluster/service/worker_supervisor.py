"""Keeps the workers of runs going: starts them, finds again those of a server that is gone, replaces those that die."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pimserve.cluster.base.locks import take_lock
from pimserve.cluster.base.processes import Deaths
from pimserve.cluster.metrics.run_metrics import RunMetrics
from pimserve.cluster.service.folders import DataFolder
from pimserve.cluster.service.worker_link import UNKNOWN, WorkerLink
from pimserve.v1 import simulation_pb2

_TICK_S = 0.1
_MOST_RESTARTS, _DEATHS_S = 3, 120.0
_AGAIN_S = 1.0
_STOP_S = 10.0
_METRICS_KEPT_S, _MOST_KEPT = 120.0, 20  # of runs that have ended


class WorkerSupervisor:
    """Workers by the id of their run. `metrics` may be called from any thread, the rest from one at a time.

    Args:
        data: the server's folder.
        command: that runs a run's folder.
        on_progress: takes news of a run.

    Attributes:
        links: to the workers that are there.
    """

    def __init__(
        self, data: DataFolder, command: Sequence[str], on_progress: Callable[[str, simulation_pb2.Progress], None]
    ) -> None:
        self.links: dict[str, WorkerLink] = {}
        self._data = data
        self._command = tuple(command)
        self._on_progress = on_progress
        self._deaths: dict[str, Deaths] = {}
        self._restart_at: dict[str, float] = {}  # of runs whose worker has ended
        self._last_metrics: dict[str, tuple[float, RunMetrics]] = {}  # of runs that ended lately, and until when

    def __len__(self) -> int:
        """Runs that have a worker, or are about to."""
        return len(self.links) + len(self._restart_at)

    def start(self, run_id: str, *, held: bool) -> None:
        """Start the worker of a run.

        Raises:
            OSError: it cannot be started.
        """
        self.links[run_id] = WorkerLink.start(
            self._data.run(run_id), self._command, held=held, on_progress=self._progress_of(run_id)
        )

    def adopt(self, run_id: str) -> bool:
        """Take over the worker of a run that a server left which is gone; whether there is one."""
        folder = self._data.run(run_id)
        if not folder.path.is_dir():
            return False
        lock = take_lock(folder.lock)
        if lock is not None:
            lock.close()
            return False
        self.links[run_id] = WorkerLink.adopt(folder, on_progress=self._progress_of(run_id))
        return True

    def ended(self) -> list[tuple[str, int]]:
        """Runs whose worker has ended since the last call, and its exit code."""
        ended = []
        for run_id, link in list(self.links.items()):
            code = link.poll()
            if code is not None:
                link.take_last_news()
                if link.metrics is not None:
                    self._keep_metrics(run_id, link.metrics)
                self.links.pop(run_id).close()
                ended.append((run_id, code))
        return ended

    def restart(self, run_id: str) -> None:
        """Have another worker for a run soon."""
        self._restart_at[run_id] = time.monotonic() + _AGAIN_S

    def replace(self, run_id: str, code: int) -> str | None:
        """Have another worker in the place of one that died, later each time; what is wrong if it dies too often.

        Args:
            run_id: of the run.
            code: with which the worker ended.
        """
        deaths = self._deaths.setdefault(run_id, Deaths(_MOST_RESTARTS, _DEATHS_S))
        count = deaths.add()
        if deaths.too_many:
            return f"its process {deaths} ({cause_of(code)}); {self._data.run(run_id).log} may say why"
        self._restart_at[run_id] = time.monotonic() + _AGAIN_S * (2 ** (count - 1) - 1)
        return None

    def due(self) -> list[str]:
        """Runs whose next worker is to be started now."""
        runs = [run_id for run_id, at in self._restart_at.items() if time.monotonic() >= at]
        for run_id in runs:
            del self._restart_at[run_id]
        return runs

    def forget(self, run_id: str) -> None:
        """The run has ended: it gets no other worker."""
        self._restart_at.pop(run_id, None)

    def stop(self) -> None:
        """Let all workers end for now, and let go of them."""
        for link in self.links.values():
            link.stop()
        end = time.monotonic() + _STOP_S
        while time.monotonic() < end and any(link.poll() is None and link.known for link in self.links.values()):
            time.sleep(_TICK_S)
        for link in self.links.values():
            link.close()

    def metrics(self) -> list[RunMetrics]:
        """Of the runs that go on, and of those that ended within the last minutes, for the last scrape of them."""
        now = time.monotonic()
        going_on = {run_id: link.metrics for run_id, link in self.links.copy().items()}
        ended = {run_id: metrics for run_id, (until, metrics) in self._last_metrics.copy().items() if until > now}
        return [metrics for metrics in {**ended, **going_on}.values() if metrics is not None]

    def _progress_of(self, run_id: str) -> Callable[[simulation_pb2.Progress], None]:
        return lambda progress: self._on_progress(run_id, progress)

    def _keep_metrics(self, run_id: str, metrics: RunMetrics) -> None:
        now = time.monotonic()
        for old, (until, _) in list(self._last_metrics.items()):
            if until <= now:
                del self._last_metrics[old]
        while len(self._last_metrics) >= _MOST_KEPT:
            del self._last_metrics[next(iter(self._last_metrics))]
        self._last_metrics[run_id] = now + _METRICS_KEPT_S, metrics


def cause_of(code: int) -> str:
    """Why a worker died."""
    return f"signal {-code}" if code < 0 else "cause unknown" if code == UNKNOWN else f"exit code {code}"
