"""When whoever follows may arrive at the earliest, by the steps that those whom they follow still need."""

from __future__ import annotations

from heapq import heappop, heappush

from pimserve.arrays import IntArray
from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.control import ReplicaState
from pimserve.scheduler.fleet import Fleet
from pimserve.scheduler.requests import FOREVER, SERVABLE, RequestTable
from pimserve.scheduler.sessions import Sessions


class FollowBounds:
    """Of requests under way that somebody follows, on replicas that are heard of now and then.

    A request takes a step for each token, or for as many as are verified at once, and no step takes less than
    `CostPlan.least_step_fs`. Steps count from those that its replica was last known to have run as it was sent there.

    Args:
        fleet: one pool, of which no replica fails, joins, leaves, or sheds load.
        table: requests of the run.
        sessions: whose turns they are.
    """

    def __init__(self, fleet: Fleet, table: RequestTable, sessions: Sessions) -> None:
        plan = fleet.pools[0].plan
        self._outputs, self._reasons = table.views["output_tokens"], table.views["reject_reason"]
        self._sessions = sessions
        self._step_fs = plan.least_step_fs
        self._step_tokens = plan.verify_tokens  # of a request in a step, at most
        self._replicas = fleet.replicas
        self.reset()

    def reset(self) -> None:
        """Nobody was sent anywhere."""
        self._unplaced: set[int] = set()  # who is under way, nobody told where
        # What each replica had run, and when its next step begins; and a heap of those on it, from which who has ended
        # is taken out late: (when a follower is sent, if its step 0 begins at 0, fs; request).
        self._steps = [0] * self._replicas
        self._clock_fs = [0] * self._replicas
        self._placed: list[list[tuple[int, int]]] = [[] for _ in range(self._replicas)]

    def heard(self, state: ReplicaState) -> None:
        """A replica reports."""
        self._steps[state.replica], self._clock_fs[state.replica] = state.steps, state.clock_fs

    def goes(self, request: int) -> None:
        """One whom somebody follows is under way."""
        self._unplaced.add(request)

    def place(self, requests: IntArray, replicas: IntArray) -> None:
        """Requests are sent to these replicas; none of them is known where the router is there."""
        for request, replica in zip(requests.tolist(), replicas.tolist(), strict=False):
            if request in self._unplaced:
                self._unplaced.remove(request)
                follows_ps = self.runs_ps(request) + self._sessions.least_ps[request]
                follows_fs = self._steps[replica] * self._step_fs + follows_ps * FS_PER_PS
                heappush(self._placed[replica], (follows_fs, request))

    def runs_ps(self, request: int) -> int:
        """How long a request takes at least; one that cannot be served has ended as it arrives."""
        if self._reasons[request] != SERVABLE:
            return 0
        steps: int = -(-self._outputs[request] // self._step_tokens)
        return steps * self._step_fs // FS_PER_PS

    @property
    def earliest_ps(self) -> int:
        """Nobody is sent before that time who follows one that is under way."""
        ended = self._sessions.ended
        self._unplaced = {request for request in self._unplaced if not ended[request]}
        if self._unplaced:
            return 0
        earliest_fs = FOREVER
        for steps, clock_fs, placed in zip(self._steps, self._clock_fs, self._placed, strict=True):
            while placed and ended[placed[0][1]]:
                heappop(placed)
            if placed:
                earliest_fs = min(earliest_fs, clock_fs - steps * self._step_fs + placed[0][0])
        return earliest_fs // FS_PER_PS
