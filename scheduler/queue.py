"""The waiting requests of a replica: who is next, and who has to give way.

A policy is a class with the public methods of `FcfsQueue`; engine and admission use no others. It keeps numbers of
requests, rows of the request table, and decides by columns that a server knows too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.requests import FOREVER, SERVABLE, RequestTable

NOBODY = -1


class FcfsQueue:
    """First come, first served, as vLLM: preempted requests before all others, the one that was preempted last first.

    `next_fs`: from when on somebody can be scheduled, maybe long ago; FOREVER if nobody waits.

    Args:
        table: requests of the run.
        reject: takes requests that cannot be served, when it is their turn.
    """

    def __init__(self, table: RequestTable, reject: Callable[[int], None]) -> None:
        self._reject = reject
        self.bind(table)
        self._inbox: deque[int] = deque()  # requests routed here, by arrival, behind
        self._head = NOBODY  # the next one that can be served, arrived or not
        self._head_fs = self.next_fs = FOREVER  # when it can be scheduled
        self._preempted: deque[int] = deque()
        self._coming: dict[int, int] = {}  # requests of the inbox that were elsewhere: from when they can be scheduled

    def bind(self, table: RequestTable) -> None:
        """Read this table from here on, which holds the same requests."""
        self._arrival_ps = table.views["arrival_ps"]
        self._reject_reason = table.views["reject_reason"]

    def __len__(self) -> int:
        """How many wait, or have yet to arrive."""
        return len(self._preempted) + (self._head >= 0) + len(self._inbox)

    def submit(self, requests: Iterable[int]) -> None:
        """Take requests, by arrival; none may arrive before those that came earlier."""
        self._inbox.extend(requests)
        if self._head < 0:
            self._next_head()

    def expect(self, request: int, since_fs: int) -> None:
        """A request that will be submitted was elsewhere, and can be scheduled from `since_fs` on."""
        self._coming[request] = since_fs

    def next_change_fs(self, now_fs: int) -> int:
        """When somebody comes who may be admitted before those that wait now; FOREVER if nobody does."""
        return FOREVER if self.next_fs <= now_fs else self.next_fs

    def peek(self) -> int:
        """Who is admitted next, once it is `next_fs`."""
        return self._preempted[0] if self._preempted else self._head

    def pop(self) -> None:
        """Take the one that `peek` told out of the queue."""
        if self._preempted:
            self._preempted.popleft()
            self.next_fs = 0 if self._preempted else self._head_fs
        else:
            self._next_head()

    def victim(self, running: dict[int, int]) -> int:
        """Who of the running requests, the keys in order of admission, is preempted when the KV cache is full."""
        return next(reversed(running))

    def put_back(self, request: int) -> None:
        """A request was preempted."""
        self._preempted.appendleft(request)
        self.next_fs = 0

    def waiting(self) -> list[int]:
        """All that wait or have yet to arrive, the next one first."""
        head = [self._head] if self._head >= 0 else []
        return [*self._preempted, *head, *self._inbox]

    def withdraw(self, request: int) -> None:
        """Give up one that has yet to come."""
        if request == self._head:
            self._next_head()
        else:
            self._inbox.remove(request)
            del self._coming[request]

    def drain(self) -> list[int]:
        """Give up all that wait, which are returned."""
        drained = self.waiting()
        self._preempted.clear()
        self._coming.clear()
        self._inbox.clear()
        self._next_head()
        return drained

    def state(self) -> dict[str, Any]:
        """Who waits, as JSON can hold it."""
        return {
            "_head": self._head,
            "_head_fs": self._head_fs,
            "inbox": list(self._inbox),
            "preempted": list(self._preempted),
            "coming": list(self._coming.items()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._head, self._head_fs = state["_head"], state["_head_fs"]
        self._inbox = deque(state["inbox"])
        self._preempted = deque(state["preempted"])
        self.next_fs = 0 if self._preempted else self._head_fs
        self._coming = dict(state["coming"])

    def _next_head(self) -> None:
        """Find the next request of the inbox that can be served at all; those that cannot are rejected on the way."""
        inbox = self._inbox
        while inbox:
            request = inbox.popleft()
            if self._reject_reason[request] == SERVABLE:
                self._head = request
                if request in self._coming:
                    self._head_fs = self._coming.pop(request)
                else:
                    self._head_fs = self._arrival_ps[request] * FS_PER_PS
                break
            self._reject(request)
        else:
            self._head, self._head_fs = NOBODY, FOREVER
        self.next_fs = 0 if self._preempted else self._head_fs


class ClosedLoop:
    """Clients of which each sends its next request when one of theirs has left.

    Args:
        requests: what they send, in order.
        queue: where it goes.
        table: requests of the run; the clients write when theirs arrive.
        reject: takes requests that cannot be served.
        sent_all: called with the time at which the last one is sent, fs.
    """

    def __init__(
        self,
        requests: Sequence[int],
        queue: FcfsQueue,
        table: RequestTable,
        reject: Callable[[int], None],
        sent_all: Callable[[int], None],
    ) -> None:
        self._requests = requests
        self._queue = queue
        self._reject = reject
        self._sent_all = sent_all
        self.issued = 0  # of `requests`
        self.bind(table)

    def bind(self, table: RequestTable) -> None:
        """Write into this table from here on, which holds the same requests."""
        self._arrival_ps = table.views["arrival_ps"]
        self._reject_reason = table.views["reject_reason"]

    def issue(self, at_ps: int) -> None:
        """The next request reaches the queue, and in place of one that is rejected the next."""
        while self.issued < len(self._requests):
            request = self._requests[self.issued]
            self.issued += 1
            self._arrival_ps[request] = at_ps
            if self.issued == len(self._requests):
                self._sent_all(at_ps * FS_PER_PS)
            if self._reject_reason[request] == SERVABLE:
                self._queue.submit((request,))
                return
            self._reject(request)
