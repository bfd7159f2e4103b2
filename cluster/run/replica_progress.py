"""What a replica of a finished run had done by moments of simulated time."""

from __future__ import annotations

import numpy as np

from pimserve.cluster.run.history import History
from pimserve.cluster.run.prompt_waits import PromptWaits
from pimserve.errors import InputError
from pimserve.scheduler.control import Ledger
from pimserve.scheduler.steplog import StepLog


class ReplicaProgress:
    """What a replica had done by moments of simulated time, ascending."""

    def __init__(self, history: History, replica: int) -> None:
        self._history = history
        self._replica = replica
        self._spans = history.spans[replica]
        self._next = 0
        self.waits = PromptWaits(history, replica)
        self._gaps = 0  # of those, how many were counted
        window_fs = history.measured.of_steps_fs(history.columns, replica)
        self._log = StepLog(history.costs[replica], window_fs)

    def until(self, now_ps: int, *, last: bool) -> Ledger:
        """All spans that have begun; all that there are, if it is the last moment.

        Raises:
            InputError: they are no spans of this run.
        """
        end = len(self._spans) if last else int(np.searchsorted(self._spans["begin_ps"], now_ps))
        for rows, costs in self._history.stretches(self._replica, self._next, end, self._log.steps):
            if costs != self._log.costs:
                self._log.use(costs)
            try:
                self._log.digest_rows(rows)
            except (AssertionError, ValueError, ArithmeticError, MemoryError):  # whatever does not add up
                raise InputError(
                    str(self._history.folder / "steps.npy"),
                    f"replica {self._replica}: steps take another time than scenario.yaml says; the file was changed, "
                    "or is of another run",
                ) from None
        self._next = max(self._next, end)
        gaps = self.waits.gaps
        while self._gaps < len(gaps) and (gap := gaps[self._gaps]).span < end:
            self._log.joined([gap.gap_fs] * gap.requests, gap.step_fs, gap.end_fs)
            self._gaps += 1
        return self._log.ledger(self._replica)

    def digest(self) -> str:
        """Digest of the steps so far."""
        return self._log.digest()
