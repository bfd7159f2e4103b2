"""Who is next where the first to come is the first to be served, and clients that wait for an end before they send."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.request_queue import RequestQueue
from pimserve.scheduler.requests import FOREVER, SERVABLE, RequestTable


class FcfsQueue(RequestQueue[int]):
    """First come, first served, as vLLM: preempted requests before all others, the one that was preempted last first.

    `_first` has those that were preempted, the last one behind.
    """

    in_turn = True

    def next_change_fs(self, now_fs: int) -> int:
        """When somebody comes who may be admitted before those that wait now; FOREVER if nobody does."""
        return FOREVER if self.next_fs <= now_fs else self.next_fs

    def peek(self, now_fs: int) -> int:
        """Who is admitted next, once it is `next_fs`."""
        return self._first[-1] if self._first else self._head

    def pop(self) -> None:
        """Take the one that `peek` told out of the queue."""
        if self._first:
            self._first.pop()
            self.next_fs = 0 if self._first else self._head_fs
        else:
            self._next_head()

    def victim(self, running: dict[int, int], now_fs: int) -> int:
        """The one that was admitted last."""
        return next(reversed(running))

    def put_back(self, request: int) -> None:
        """A request was preempted."""
        self._first.append(request)
        self.next_fs = 0

    def _waiting_first(self) -> list[int]:
        return self._first[::-1]


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
        queue: RequestQueue[Any],
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
