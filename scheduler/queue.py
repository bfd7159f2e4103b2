"""The waiting requests of a replica: who is next, and who has to give way.

First come, first served, as vLLM: preempted requests before all others, the one that was preempted last first; the
request that was admitted last is preempted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pimserve.device_models.plan import FS_PER_PS
from pimserve.scheduler.requests import FOREVER, RequestTable


class Queue:
    """First come, first served.

    Args:
        table: requests of the run.
        max_model_len: tokens of prompt and output together that a request may have.
        reject: takes requests whose prompt leaves no room for one token of output, when it is their turn.
    """

    def __init__(self, table: RequestTable, max_model_len: int, reject: Callable[[int], None]) -> None:
        self._max_model_len = max_model_len
        self._reject = reject
        self.bind(table)
        self.submitted = 0  # requests that came here
        self._inbox: list[int] = []  # requests routed here, by arrival, of which
        self._next_in = 0  # is the one after `head`
        self.head = -1  # next request of the inbox that can be served, arrived or not; -1 for none known
        self.head_fs = FOREVER  # when it can be scheduled
        self.head_tokens = 0  # that it has so far
        self.preempted: deque[int] = deque()
        self._coming: dict[int, int] = {}  # requests of the inbox that were elsewhere: from when they can be scheduled
        self.emitted: dict[int, int] = {}  # tokens of requests that were preempted, or elsewhere
        self.token_at_fs: dict[int, int] = {}  # when those had their last one

    def bind(self, table: RequestTable) -> None:
        """Read this table from here on, which holds the same requests."""
        self._arrival_ps = table.views["arrival_ps"]
        self._input = table.views["input_tokens"]

    def submit(self, requests: Sequence[int]) -> None:
        """Take requests, by arrival; none may arrive before those that came earlier."""
        self._inbox.extend(requests)
        self.submitted += len(requests)
        if self.head < 0:
            self._next_head()

    def offer(self, request: int) -> bool:
        """Take a request, or reject it at once; whether it was taken."""
        if self._input[request] < self._max_model_len:
            self.submit((request,))
            return True
        self.submitted += 1
        self._reject(request)
        return False

    def expect(self, request: int, since_fs: int, emitted: int, token_fs: int) -> None:
        """A request that will be submitted was elsewhere; it can be scheduled from `since_fs` on."""
        self._coming[request] = since_fs
        if emitted:
            self.emitted[request] = emitted
            self.token_at_fs[request] = token_fs

    def next(self) -> tuple[int, int]:
        """(request, tokens that it has) of who is admitted next: a preempted one, or the head from `head_fs` on."""
        if self.preempted:
            request = self.preempted[0]
            return request, self._input[request] + self.emitted.get(request, 0)
        return self.head, self.head_tokens

    def take(self) -> bool:
        """Take the one that `next` told out of the queue; whether it is its first time here."""
        if self.preempted:
            self.preempted.popleft()
            return False
        self._next_head()
        return True

    def victim(self, running: dict[int, int]) -> int:
        """Who of the running requests, in order of admission, is preempted when the KV cache is full."""
        return next(reversed(running))

    def preempt(self, request: int, emitted: int, token_fs: int | None) -> None:
        """A running request waits again; it had its last token at `token_fs`, if it decoded."""
        self.preempted.appendleft(request)
        self.emitted[request] = emitted
        if token_fs is not None:
            self.token_at_fs[request] = token_fs

    def next_change_fs(self, now_fs: int) -> int:
        """When somebody comes who could be admitted; FOREVER if those who wait already have to wait for others."""
        return FOREVER if self.preempted or self.head_fs <= now_fs else self.head_fs

    def waiting(self) -> list[int]:
        """All of them, preempted ones first."""
        head = [self.head] if self.head >= 0 else []
        return [*self.preempted, *head, *self._inbox[self._next_in :]]

    def tokens_of(self, request: int) -> int:
        """Tokens that a waiting request has so far."""
        return int(self._input[request]) + self.emitted.get(request, 0)

    def drain(self, first: Sequence[int]) -> list[tuple[int, int]]:
        """Give up `first` and all that wait; returns them, with the times of their last tokens."""
        gone = [(request, self.token_at_fs.pop(request, 0)) for request in (*first, *self.waiting())]
        for request, _ in gone:
            self.emitted.pop(request, None)
        self.preempted.clear()
        self._coming.clear()
        self._inbox, self._next_in = [], 0
        self._next_head()
        return gone

    def state(self) -> dict[str, Any]:
        """Who waits, as JSON can hold it."""
        return {
            "submitted": self.submitted,
            "_head": self.head,
            "_head_fs": self.head_fs,
            "_head_length": self.head_tokens,
            "inbox": self._inbox[self._next_in :],
            "preempted": list(self.preempted),
            "coming": list(self._coming.items()),
            "emitted": list(self.emitted.items()),
            "token_at": list(self.token_at_fs.items()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.submitted = state["submitted"]
        self.head, self.head_fs, self.head_tokens = state["_head"], state["_head_fs"], state["_head_length"]
        self._inbox, self._next_in = list(state["inbox"]), 0
        self.preempted = deque(state["preempted"])
        self._coming, self.emitted, self.token_at_fs = (dict(state[key]) for key in ("coming", "emitted", "token_at"))

    def _next_head(self) -> None:
        """Find the next request of the inbox that can be served at all; those that cannot are rejected on the way."""
        inbox, count = self._inbox, len(self._inbox)
        while self._next_in < count:
            request = inbox[self._next_in]
            self._next_in += 1
            length = self._input[request]
            if length < self._max_model_len:
                self.head = request
                if self._coming and request in self._coming:
                    self.head_fs = self._coming.pop(request)
                    self.head_tokens = length + self.emitted.get(request, 0)
                else:
                    self.head_fs = self._arrival_ps[request] * FS_PER_PS
                    self.head_tokens = length
                return
            self._reject(request)
        self.head = -1
        self.head_fs = FOREVER


class ClosedLoop:
    """Clients of which each sends its next request when one of theirs has left.

    Args:
        requests: what they send, in order.
        queue: where it goes.
        table: requests of the run; the clients write when theirs arrive.
        sent_all: called with the time at which the last one is sent, fs.
    """

    def __init__(
        self, requests: Sequence[int], queue: Queue, table: RequestTable, sent_all: Callable[[int], None]
    ) -> None:
        self._requests = requests
        self._queue = queue
        self._sent_all = sent_all
        self.issued = 0  # of `requests`
        self.bind(table)

    def bind(self, table: RequestTable) -> None:
        """Write into this table from here on, which holds the same requests."""
        self._arrival_ps = table.views["arrival_ps"]

    def issue(self, at_ps: int) -> None:
        """The next request reaches the queue, and in place of one that is rejected the next."""
        while self.issued < len(self._requests):
            request = self._requests[self.issued]
            self.issued += 1
            self._arrival_ps[request] = at_ps
            if self.issued == len(self._requests):
                self._sent_all(at_ps * FS_PER_PS)
            if self._queue.offer(request):
                return
