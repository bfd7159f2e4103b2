"""The measured part of a run: which requests its latencies and its SLO are of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pimserve.device_models.plan import FS_PER_PS, FS_PER_S
from pimserve.scheduler.requests import Columns

_NO_END_PS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class MeasuredWindow:
    """Requests count that arrive in [start, end), steps that end there.

    Args:
        start_fs: the end of the warm-up.
        end_fs: the beginning of the cool-down; far away where everything counts.
        closed: in a closed loop with a warm-up, a replica's window ends when its clients have sent their last request.
    """

    start_fs: int = 0
    end_fs: int = _NO_END_PS * FS_PER_PS
    closed: bool = False

    @property
    def start_s(self) -> float:
        """Its start, simulated seconds."""
        return self.start_fs / FS_PER_S

    @property
    def end_s(self) -> float | None:
        """Its end; None where no time is set beforehand."""
        return self.end_fs / FS_PER_S if self._end_ps < _NO_END_PS else None

    def holds(self, columns: Columns, requests: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether these requests count, (n,).

        Args:
            columns: of the request table.
            requests: their numbers, (n,).
        """
        arrival = columns["arrival_ps"][requests]
        inside = (arrival >= -(-self.start_fs // FS_PER_PS)) & (arrival < self._end_ps)
        if self.closed and self.start_fs > 0:
            inside &= arrival < _last_sent_ps(columns)[columns["replica"][requests]]
        return np.asarray(inside)

    def of_steps_fs(self, columns: Columns, replica: int) -> tuple[int, int]:
        """When steps of a replica must end to count, [start, end), fs; `columns` as at the end of the run."""
        if self.closed and self.start_fs > 0:
            last = _last_sent_ps(columns)
            if replica < len(last):
                return self.start_fs, int(last[replica]) * FS_PER_PS
        return self.start_fs, self.end_fs

    def closes_ps(self, columns: Columns, end_ps: int) -> int:
        """When the window of the first replica ends, of a run that ended at that time."""
        if self.closed and self.start_fs > 0:
            return min(end_ps, int(_last_sent_ps(columns).min()))
        return min(end_ps, self._end_ps)

    @property
    def _end_ps(self) -> int:
        return min(-(-self.end_fs // FS_PER_PS), _NO_END_PS)


def _last_sent_ps(columns: Columns) -> NDArray[np.int64]:
    """By replica, when its clients sent their last request; far away while they have not."""
    replica, arrival = columns["replica"], columns["arrival_ps"]
    last = np.zeros(int(replica.max(initial=0)) + 1, np.int64)
    last[replica] = np.arange(len(replica))  # of equal replicas, the last one stays
    return np.where(arrival[last] >= 0, arrival[last], _NO_END_PS)
