"""Runs whose process has ended for want of disk space: they wait for it, and do not fail."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from pimserve.cluster.run.checkpoint_files import STATE_FILE
from pimserve.cluster.service.data_folder import DataFolder

_MARGIN_BYTES = 1_000_000
_AGAIN_S, _ANYWAY_S = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class _Wait:
    """A run goes on from `soon_s` on if `needed_bytes` are free, and from `anyway_s` on if `least_bytes` are."""

    needed_bytes: int
    least_bytes: int
    soon_s: float
    anyway_s: float


class DiskSpace:
    """What is free where the runs of a server are, and which of them wait for more. Usable by one thread at a time, but
    for `why`.

    A run goes on as soon as a state of it and a bit more would fit. Where that was too little, it needs more than was
    free then; but others may have taken it, so that it is tried again now and then.

    Args:
        data: the server's folder.
    """

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._waits: dict[str, _Wait] = {}
        self._tried_bytes: dict[str, int] = {}  # that were free when a run went on

    def __len__(self) -> int:
        """Runs that wait."""
        return len(self._waits)

    def wait(self, run_id: str) -> None:
        """There was too little for the run."""
        now = time.monotonic()
        state = self._data.run(run_id).checkpoints / STATE_FILE
        least = _MARGIN_BYTES + (state.stat().st_size if state.is_file() else 0)
        needed = max(least, self._tried_bytes.get(run_id, 0) + _MARGIN_BYTES)
        self._waits[run_id] = _Wait(needed, least, now + _AGAIN_S, now + _ANYWAY_S)

    def due(self) -> list[str]:
        """Runs that need wait no longer; they do not, from now on."""
        if not self._waits:
            return []
        now, free = time.monotonic(), self._free_bytes()
        runs = [
            run_id
            for run_id, wait in self._waits.items()
            if (now >= wait.soon_s and free >= wait.needed_bytes) or (now >= wait.anyway_s and free >= wait.least_bytes)
        ]
        for run_id in runs:
            del self._waits[run_id]
            self._tried_bytes[run_id] = free
        return runs

    def forget(self, run_id: str) -> None:
        """The run has ended."""
        self._waits.pop(run_id, None)
        self._tried_bytes.pop(run_id, None)

    def why(self, run_id: str) -> str:
        """What the run waits for; empty if it does not."""
        wait = self._waits.get(run_id)
        if wait is None:
            return ""
        free, needed = self._free_bytes() / 1e6, wait.needed_bytes / 1e6
        return f"waits for disk space: {free:,.1f} MB free of {needed:,.1f} MB needed"

    def _free_bytes(self) -> int:
        status = os.statvfs(self._data.path)
        return status.f_bavail * status.f_frsize
