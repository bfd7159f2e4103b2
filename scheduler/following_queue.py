"""The queue of a replica on which all turns of all sessions are served, so that it need not ask who follows whom."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.queue import FcfsQueue
from pimserve.scheduler.requests import RequestTable
from pimserve.scheduler.sessions import Sessions


class FollowingQueue(FcfsQueue):
    """First come, first served, of requests that are submitted, and of those that follow on others that ended here.

    Args:
        table: requests of the run.
        reject: takes requests that cannot be served, when it is their turn.
        sessions: tell who follows whom, and are told of ends.
    """

    def __init__(self, table: RequestTable, reject: Callable[[int], None], sessions: Sessions) -> None:
        self._sessions = sessions
        super().__init__(table, reject)

    @property
    def next_fs(self) -> int:
        """When somebody can be scheduled, also who has yet to be sent."""
        coming = self._sessions.coming
        return min(self._known_fs, coming[0][0] * FS_PER_PS) if coming else self._known_fs

    @next_fs.setter
    def next_fs(self, known_fs: int) -> None:
        self._known_fs = known_fs

    def peek(self, now_fs: int) -> int:
        """Who is admitted next, once it is `next_fs`."""
        coming = self._sessions.coming
        if coming and not self._first and (coming[0][0] * FS_PER_PS, coming[0][1]) < (self._head_fs, self._head):
            if self._head >= 0:
                self._inbox.appendleft(self._head)
            follower = self._sessions.arrives(coming)
            self.tokens += self.tokens_of((follower,))
            self._inbox.appendleft(follower)
            self._next_head()
        return super().peek(now_fs)

    def arrive(self, before_fs: int) -> None:
        """Whoever was sent before that time waits here from now on, in order of arrival."""
        coming, refused, arrived = self._sessions.coming, self._sessions.refused, []
        while refused and refused[0][0] * FS_PER_PS < before_fs:
            self._reject(self._sessions.arrives(refused))
        while coming and coming[0][0] * FS_PER_PS < before_fs:
            arrived.append(self._sessions.arrives(coming))
        if arrived:
            self.tokens += self.tokens_of(arrived)
            head = [self._head] if self._head >= 0 else []
            everyone = [*head, *self._inbox, *arrived]
            self._inbox = deque(sorted(everyone, key=lambda request: (self._arrival_ps[request], request)))
            self._next_head()
